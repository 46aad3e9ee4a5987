//! Processes of this machine, as `/proc` shows them.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// A process that lives, or lived a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command line, or its name in brackets if it has none.
    pub command: String,
}

impl Process {
    fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }

    fn of(pid: i32) -> Option<Self> {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = match bytes.as_slice() {
            [] => format!("[{}]", stat(pid)?.0),
            bytes => String::from_utf8_lossy(bytes)
                .trim_end_matches('\0')
                .replace('\0', " "),
        };
        Some(Self { pid, command })
    }

    /// Whether it runs the program of this file name.
    #[must_use]
    pub fn runs(&self, program: &str) -> bool {
        fs::read_link(self.dir().join("exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == program))
    }

    /// Whether it still lives: a zombie does not.
    #[must_use]
    pub fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|(_, state, _)| state != 'Z' && state != 'X')
            && Self::of(self.pid).is_some_and(|now| now.command == self.command)
    }

    /// CPU time it and its threads have used, in clock ticks.
    #[must_use]
    pub fn cpu_ticks(&self) -> u64 {
        fs::read_to_string(self.dir().join("stat"))
            .ok()
            .and_then(|stat| {
                let fields = stat.rsplit_once(')')?.1;
                let mut fields = fields.split_ascii_whitespace().skip(11);
                let user: u64 = fields.next()?.parse().ok()?;
                let system: u64 = fields.next()?.parse().ok()?;
                Some(user + system)
            })
            .unwrap_or(0)
    }

    /// Sends it a signal; that it is gone already is no matter.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it has anything to do with files, sockets or mounts below `dir`.
    fn uses(&self, dir: &str, sockets: &HashSet<u64>) -> bool {
        let names = |file: &str, text: &str| {
            fs::read(self.dir().join(file)).is_ok_and(|bytes| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            })
        };
        let mentions = |file: &str| names(file, dir);
        // A namespace that was made from ours has the mounts of all tests that ran just then.
        let is_a_neighbours = || {
            let parent = Path::new(dir).parent();
            let parent = parent.filter(|parent| *parent != std::env::temp_dir());
            parent.is_some_and(|parent| names("environ", &parent.to_string_lossy()))
        };
        let links = |dir_of_links: &str| {
            fs::read_dir(self.dir().join(dir_of_links))
                .into_iter()
                .flatten()
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        };
        let socket = |link: &Path| {
            link.to_str()
                .and_then(|link| {
                    link.strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .parse()
                        .ok()
                })
                .is_some_and(|inode| sockets.contains(&inode))
        };
        mentions("cmdline")
            || mentions("environ")
            || mentions("mountinfo") && !shares_mounts_with_us(self.pid) && !is_a_neighbours()
            || links("fd").any(|link| link.starts_with(dir) || socket(&link))
            || fs::read_link(self.dir().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    }
}

/// Name, state and parent of a process.
fn stat(pid: i32) -> Option<(String, char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((name, state, fields.next()?.parse().ok()?))
}

fn shares_mounts_with_us(pid: i32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    namespace(&pid.to_string()) == namespace("self")
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// All processes of this machine.
pub fn all() -> impl Iterator<Item = Process> {
    pids().filter_map(Process::of)
}

/// Descendants of a process: children, their children and so on.
#[must_use]
pub fn descendants(of: i32) -> Vec<Process> {
    let parents: Vec<(i32, i32)> = pids().filter_map(|pid| Some((pid, stat(pid)?.2))).collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
    }
    found[1..]
        .iter()
        .filter_map(|&pid| Process::of(pid))
        .collect()
}

/// Processes other than this one that have to do with `dir`, in whatever way: by command line,
/// environment, open files, bound sockets, working directory, mounts of their own.
#[must_use]
pub fn users_of(dir: &Path) -> Vec<Process> {
    let Some(text) = dir.to_str() else {
        return Vec::new();
    };
    let sockets = sockets_below(dir)
        .into_iter()
        .map(|(inode, _)| inode)
        .collect();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    pids()
        .filter(|&pid| pid != own)
        .filter_map(Process::of)
        .filter(|process| process.lives() && process.uses(text, &sockets))
        .collect()
}

/// Unix sockets bound below `dir`, by inode and path.
#[must_use]
pub fn sockets_below(dir: &Path) -> Vec<(u64, PathBuf)> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(6);
            let inode = fields.next()?.parse().ok()?;
            let path = PathBuf::from(fields.next()?);
            path.starts_with(dir).then_some((inode, path))
        })
        .collect()
}
