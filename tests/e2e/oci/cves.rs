//! Known ways out of other runtimes, tried for real: hostile images and bundles, each test named
//! after the CVE whose pattern it repeats. The host's side is compared before and after: a tree
//! that nothing may touch, and the programs that a container could replace.

mod devices;
mod processes;
mod written;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Case, Outcome, Test, eventually};

use super::{Bundle, PATIENT, receive_terminal};

pub(super) fn tests() -> Vec<Test> {
    let topics = [processes::tests(), devices::tests(), written::tests()];
    topics.into_iter().flatten().collect()
}

/// A kernel parameter that a container could use to have the kernel run a program of its choice.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// A kernel parameter that a bundle may set.
const PARAMETER: &str = "sys/net/ipv4/ping_group_range";

/// What of the host must be the same at the end.
struct Host<'a> {
    case: &'a Case<'a>,
    /// A tree that no container was given.
    canary: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl<'a> Host<'a> {
    fn of(case: &'a Case<'a>) -> Result<Self> {
        let canary = case.path("canary");
        for dir in ["data", "dev", "dir", "sys/net/ipv4", "self/attr"] {
            fs::create_dir_all(canary.join(dir))?;
        }
        for (name, content) in [
            ("file", "canary\n"),
            ("dir/inner", "canary\n"),
            ("passwd", "root:x:0:0:root:/home/canary:/bin/sh\n"),
            (PARAMETER, "1\t0\n"),
            ("self/oom_score_adj", "0\n"),
            ("self/attr/exec", ""),
        ] {
            fs::write(canary.join(name), content)?;
        }
        let mut host = Self {
            case,
            canary,
            before: BTreeMap::new(),
        };
        host.before = host.now()?;
        Ok(host)
    }

    fn now(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        let built = self.case.built();
        let files = [
            built.hrun(),
            built.vmm(),
            built.kernel(),
            built.initramfs(),
            CORE_PATTERN.into(),
        ];
        let mut todo: Vec<PathBuf> = files.into_iter().chain([self.canary.clone()]).collect();
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path)?;
            let content = if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
                String::new()
            } else {
                format!("{:x}", Sha256::digest(fs::read(&path)?))
            };
            let seen = format!(
                "{:o} {}:{} inode {} changed at {} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.ino(),
                meta.mtime_nsec()
            );
            found.insert(path, seen);
        }
        Ok(found)
    }

    fn is_unchanged(&self) -> Result<()> {
        let now = self.now()?;
        // A file of /proc has the time at which it is looked at.
        let differs = |path: &&PathBuf| {
            let [before, now] = [&self.before, &now].map(|tree| tree.get(*path));
            match path.starts_with("/proc") {
                true => before.map(|text| text.rsplit_once(' ')) != now.map(|t| t.rsplit_once(' ')),
                false => before != now,
            }
        };
        let changed: Vec<_> = self
            .before
            .keys()
            .chain(now.keys())
            .filter(differs)
            .collect();
        ensure!(changed.is_empty(), "changed on the host: {changed:?}");
        Ok(())
    }

    /// Where a link must lead to get at something of the canary's: by its path on the host, and by
    /// more steps up than there are directories.
    fn ways(&self, name: &str) -> [PathBuf; 2] {
        let path = self.canary.join(name);
        let up = Path::new("../../../../../../../../../../../..");
        [
            path.clone(),
            up.join(path.strip_prefix("/").unwrap_or(&path)),
        ]
    }
}

/// Makes a link in an image, in the place of whatever is there.
fn link(root: &Path, at: &str, target: impl AsRef<Path>) -> Result<()> {
    let at = root.join(at);
    fs::create_dir_all(at.parent().context("no parent")?)?;
    symlink(target, &at).with_context(|| at.display().to_string())
}

fn program(path: &Path, content: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("no parent")?)?;
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A bundle whose image and configuration `edit` makes hostile.
fn hostile<'a>(
    case: &'a Case<'a>,
    script: &str,
    edit: impl FnOnce(&Path, &mut Value) -> Result<()>,
) -> Result<Bundle<'a>> {
    let path = case.path("bundle");
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let mut edited = Ok(());
    let bundle = Bundle::new(case, script, |config| {
        edited = edit(&path.join("rootfs"), config);
    })?;
    edited?;
    Ok(bundle)
}

/// Runs such a bundle to its end.
fn run(
    case: &Case,
    script: &str,
    edit: impl FnOnce(&Path, &mut Value) -> Result<()>,
) -> Result<Outcome> {
    let bundle = hostile(case, script, edit)?;
    let path = bundle.path.display().to_string();
    let outcome = bundle.hrun(&["run", "--bundle", &path, "box"]).run()?;
    bundle.is_gone()?;
    Ok(outcome)
}

fn mount(destination: &str, kind: &str, source: &Path) -> Value {
    let options: &[&str] = if kind == "bind" {
        &["rbind", "rw"]
    } else {
        &[]
    };
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn rights(config: &mut Value, names: &[&str]) {
    let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(names)));
    config["process"]["capabilities"] = Value::Object(sets.into_iter().collect());
}

/// One of the things that a path may be made.
type Making = dyn Fn(&Path) -> io::Result<()> + Sync;

/// Changes a path back and forth between two makings of it, as long as it is not dropped.
fn flip<T>(path: &Path, makings: [&Making; 2], while_it: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for make in makings.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                // Others hold it busy now and then.
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
                let _ = make(path);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = while_it();
        done.store(true, Ordering::Relaxed);
        result
    })
}
