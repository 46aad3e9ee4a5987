//! Many lives of a container, one after the other: create, start, exec, kill, delete. Whatever one
//! of them leaked would be counted many times in the end.

use std::{env, fmt, fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::processes;

use crate::{
    engine::{Engine, Feature, IMAGE, Kind},
    groups,
};

/// How many, unless `HRUN_CYCLES` says otherwise.
const DEFAULT: usize = 3;

/// So many come first: directories and caches of the engine's are made once.
const WARM_UP: usize = 2;

/// Progress is told after so many.
const TOLD: usize = 25;

const PATIENT: [&str; 3] = ["sh", "-c", "while :; do sleep 1; done"];

pub(crate) fn feature(kind: Kind) -> Option<Feature> {
    let name = match kind {
        Kind::Podman => "cycles by conmon",
        // Its containers are containerd's.
        Kind::Docker => return None,
        Kind::Ctr => "cycles by containerd",
    };
    Some(Feature { name, check })
}

/// Everything that a container may leave behind, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Census {
    processes: usize,
    /// Open files of the engine's daemons.
    descriptors: usize,
    mounts: usize,
    sockets: usize,
    /// Control groups of our containers.
    groups: usize,
    /// Files and directories in `HRUN_STATE` and `HRUN_STORE`.
    files: usize,
}

impl Census {
    /// Now, with containers of these names, or identifiers, having lived.
    fn of(engine: &Engine, names: &[String]) -> Self {
        let lines = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().count()
        };
        let descriptors = |pid: &u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"));
            open.map_or(0, Iterator::count)
        };
        Self {
            processes: processes::users_of(engine.dir()).len(),
            descriptors: engine.daemons().iter().map(descriptors).sum(),
            // Both are the namespaces' of these tests.
            mounts: lines("/proc/self/mountinfo"),
            sockets: lines("/proc/net/unix"),
            groups: groups::named(names).len(),
            files: files_below(&engine.path("state")) + files_below(&engine.path("store")),
        }
    }

    /// Whether nothing of it is more than it was.
    fn is_within(&self, before: &Self) -> bool {
        self.processes <= before.processes
            && self.descriptors <= before.descriptors
            && self.mounts <= before.mounts
            && self.sockets <= before.sockets
            && self.groups <= before.groups
            && self.files <= before.files
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} descriptors of daemons, {} mounts, {} sockets, {} groups, {} files",
            self.processes, self.descriptors, self.mounts, self.sockets, self.groups, self.files
        )
    }
}

fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => 1 + files_below(&entry.path()),
            _ => 1,
        })
        .sum()
}

fn check(engine: &Engine) -> Result<()> {
    let count = match env::var("HRUN_CYCLES") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("HRUN_CYCLES is {text:?}, which is no number"))?,
        Err(_) => DEFAULT,
    };
    // The usual runtime says whether the engine itself leaks, which a few show.
    let count = match engine.is_hrun() {
        true => count,
        false => DEFAULT.min(count),
    };
    // What is counted in control groups must not be another's.
    let name = format!("cycle-{}", std::process::id());
    let mut names = vec![name.clone()];
    for _ in 0..WARM_UP {
        live(engine, &name, &mut names)?;
    }
    let before = Census::of(engine, &names);
    eprintln!("before: {before}");
    for number in 1..=count {
        live(engine, &name, &mut names).with_context(|| format!("cycle {number} of {count}"))?;
        if number % TOLD == 0 {
            let now = Census::of(engine, &names);
            eprintln!("after {number} of {count} cycles: {now}");
        }
    }
    // Daemons close and collect in their own time.
    let mut after = Census::of(engine, &names);
    for _ in 0..150 {
        if after.is_within(&before) {
            break;
        }
        thread::sleep(Duration::from_millis(200));
        after = Census::of(engine, &names);
    }
    eprintln!("after {count} cycles: {after}");
    ensure!(
        after.is_within(&before),
        "after {count} cycles there are {after}; there were {before}"
    );
    Ok(())
}

fn live(engine: &Engine, name: &str, names: &mut Vec<String>) -> Result<()> {
    match engine.kind {
        Kind::Ctr => by_containerd(engine, name),
        Kind::Podman | Kind::Docker => {
            names.push(by_conmon(engine, name)?);
            Ok(())
        }
    }
}

/// Gives the container's identifier, which its control groups are called by.
fn by_conmon(engine: &Engine, name: &str) -> Result<String> {
    let create = ["create", "--name", name, "--net=none", IMAGE];
    let create = [&create[..], &PATIENT].concat();
    let created = engine.run(&create)?.exits(0)?;
    let words: [&[&str]; 4] = [
        &["start", name],
        &["exec", name, "true"],
        &["kill", name],
        &["rm", "--force", name],
    ];
    for words in words {
        engine.run(words)?.exits(0)?;
    }
    Ok(created.stdout.trim().to_owned())
}

fn by_containerd(engine: &Engine, name: &str) -> Result<()> {
    let words = [&[name][..], &PATIENT].concat();
    engine.ctr_run(&["--detach"], &words)?.exits(0)?;
    let exec = ["tasks", "exec", "--exec-id", "e", name, "true"];
    engine.run(&exec)?.exits(0)?;
    let kill = ["tasks", "kill", "--signal", "KILL", name];
    engine.run(&kill)?.exits(0)?;
    // Refused until containerd has heard of the end.
    let mut removed = engine.run(&["tasks", "rm", name])?;
    for _ in 0..100 {
        if removed.code == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        removed = engine.run(&["tasks", "rm", name])?;
    }
    removed.exits(0)?;
    engine.run(&["containers", "rm", name])?.exits(0)?;
    Ok(())
}
