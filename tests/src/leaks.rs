//! What a test leaves behind, if it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::processes;

/// How long a VM may take to go once its command has ended: KVM frees it in the background.
const GRACE: Duration = Duration::from_secs(10);

/// What was there before a test, below one directory and on the machine.
#[derive(Debug)]
pub(crate) struct LeakCheck {
    dir: PathBuf,
    files: BTreeMap<PathBuf, Entry>,
}

/// What is compared of a file. Not its time stamps: reading changes those.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    size: u64,
}

impl LeakCheck {
    /// Notes what is below `dir` now.
    pub(crate) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            files: files_below(dir),
        }
    }

    /// Says what is more, or other, than before; waits a little for what is about to go.
    pub(crate) fn find(&self) -> Vec<String> {
        let started = Instant::now();
        loop {
            let found = self.find_now();
            if found.is_empty() || started.elapsed() > GRACE {
                return found;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn find_now(&self) -> Vec<String> {
        let processes = processes::users_of(&self.dir)
            .into_iter()
            .map(|process| format!("process {} is left: {}", process.pid, process.command));
        let sockets = processes::sockets_below(&self.dir)
            .into_iter()
            .map(|(_, path)| format!("somebody listens on {}", path.display()));
        let mounts = mounts_below(&self.dir).map(|mount| format!("mount is left: {mount}"));
        let now = files_below(&self.dir);
        let more = now
            .iter()
            .filter(|(path, _)| !self.files.contains_key(*path) && !is_kept(path, &now))
            .map(|(path, _)| format!("file is left: {}", path.display()));
        let other = self
            .files
            .iter()
            .filter_map(|(path, before)| match now.get(path) {
                None => Some(format!("file is gone: {}", path.display())),
                Some(after) if after != before => Some(format!(
                    "file was changed: {}: {before:?} became {after:?}",
                    path.display()
                )),
                Some(_) => None,
            });
        processes
            .chain(sockets)
            .chain(mounts)
            .chain(more)
            .chain(other)
            .collect()
    }

    /// Ends whatever lives on `dir`.
    pub(crate) fn kill(&self) {
        for process in processes::users_of(&self.dir) {
            process.signal(Signal::KILL);
        }
        let started = Instant::now();
        while !processes::users_of(&self.dir).is_empty() && started.elapsed() < GRACE {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Network interfaces and cgroups of this machine that may be hrun's: they are compared before
/// and after all tests, as tests run side by side.
#[derive(Debug)]
pub(crate) struct Machine {
    interfaces: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let interfaces = fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let mut cgroups = BTreeSet::new();
        cgroups_of_hrun(Path::new("/sys/fs/cgroup"), &mut cgroups);
        Self {
            interfaces,
            cgroups,
        }
    }

    /// What is there now and was not then.
    pub(crate) fn more(&self) -> Vec<String> {
        let now = Self::now();
        let interfaces = now
            .interfaces
            .difference(&self.interfaces)
            .map(|name| format!("network interface is left: {name}"));
        let cgroups = now
            .cgroups
            .difference(&self.cgroups)
            .map(|path| format!("cgroup is left: {}", path.display()));
        interfaces.chain(cgroups).collect()
    }
}

fn cgroups_of_hrun(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains("hrun") {
                found.insert(entry.path());
            }
            cgroups_of_hrun(&entry.path(), found);
        }
    }
}

fn mounts_below(dir: &Path) -> impl Iterator<Item = String> {
    let dir = dir.to_string_lossy().into_owned();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains(&dir))
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                dirs.push(entry.path());
            }
            let found = Entry {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                // A directory's own size depends on its history.
                size: if metadata.is_dir() { 0 } else { metadata.len() },
            };
            files.insert(entry.path(), found);
        }
    }
    files
}

/// Empty lock files, and directories that hold nothing but them, are no litter: they cannot be
/// removed without a race. An image that was used has one in `images/use`. Nor is the note that a
/// template was checked, nor the disk of an image, which goes with it, nor the record of what
/// happened, whose size is bounded.
fn is_kept(path: &Path, files: &BTreeMap<PathBuf, Entry>) -> bool {
    const S_IFMT: u32 = 0o170_000;
    const S_IFDIR: u32 = 0o040_000;
    let Some(entry) = files.get(path) else {
        return false;
    };
    if entry.mode & S_IFMT == S_IFDIR {
        return files
            .keys()
            .filter(|other| other.parent() == Some(path))
            .all(|other| is_kept(other, files));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_disk = path
        .parent()
        .is_some_and(|dir| dir.ends_with("images/erofs"));
    if name.ends_with(".trusted") || name.starts_with("events.json") || is_disk {
        return true;
    }
    let in_use = path.parent().is_some_and(|dir| dir.ends_with("images/use"));
    entry.size == 0 && (name == "lock" || name.ends_with(".lock") || in_use)
}
