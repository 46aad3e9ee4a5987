//! The control groups that an engine makes for all its containers together, and leaves behind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::engine::Kind;

const TOP: &str = "/sys/fs/cgroup";

/// How long the kernel may take to let go of whoever was in one.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it is called by default.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Podman => "libpod_parent",
        Kind::Docker => "docker",
        Kind::Ctr => "default",
    }
}

/// The engine's groups in every hierarchy, and those below.
pub(crate) fn now(kind: Kind) -> BTreeSet<PathBuf> {
    let top = Path::new(TOP);
    // With version 1 there is a hierarchy for each controller.
    let hierarchies = directories(top).into_iter().chain([top.into()]);
    let of_engine = hierarchies.map(|hierarchy| hierarchy.join(name(kind)));
    with_all_below(of_engine.filter(|path| path.is_dir()).collect())
}

/// Groups, wherever they are, that have one of these in their names.
pub(crate) fn named(names: &[String]) -> BTreeSet<PathBuf> {
    let mut groups = with_all_below(vec![TOP.into()]);
    groups.retain(|path| {
        let own = path.file_name().unwrap_or_default().to_string_lossy();
        names.iter().any(|name| own.contains(name))
    });
    groups
}

fn with_all_below(mut todo: Vec<PathBuf>) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    while let Some(path) = todo.pop() {
        todo.extend(directories(&path));
        found.insert(path);
    }
    found
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes those that were not there before; a group in use stays.
pub(crate) fn remove_new(kind: Kind, before: &BTreeSet<PathBuf>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let new: Vec<_> = now(kind).difference(before).cloned().collect();
        // What is below another sorts behind it.
        for path in new.iter().rev() {
            // The next round tells whether it is gone.
            let _ = fs::remove_dir(path);
        }
        if new.is_empty() || Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
