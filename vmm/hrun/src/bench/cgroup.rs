//! Cgroups of the harness's own, one for each arm: everything that an arm starts is in it,
//! whoever's child it is, so its CPU time and its memory are the arm's.
//!
//! Version 1, version 2 and both beside each other; without any, [`Cgroups::open`] says so and
//! the harness counts processes instead.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::owned;
use crate::cgroup::{home, mounts};

/// The group that holds those of all arms, with the number of the harness behind it.
const TOP: &str = "hrun-bench-";

/// How often something is tried that others may be in the way of, every 20 ms.
const ATTEMPTS: u32 = 100;

/// Below an arm's group: the processes, and the groups that an OCI runtime makes. Version 2
/// allows no processes where there are groups with controllers below.
const PROCESSES: &str = "commands";
const CONTAINERS: &str = "containers";

/// The hierarchies that count what is wanted.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// All places where cgroups are mounted: an OCI runtime makes groups in each.
    mounts: Vec<PathBuf>,
    name: String,
    /// Say that the group has an owner.
    _locks: Vec<File>,
}

/// One cgroup file system that counts something.
#[derive(Debug, Clone)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// Where the harness itself was found.
    home: PathBuf,
    cpu: bool,
    memory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The group of one arm.
#[derive(Debug)]
pub(crate) struct Group {
    places: Vec<(Hierarchy, PathBuf)>,
    path: String,
}

impl Cgroups {
    /// Finds the hierarchies, makes the group that holds all others, and ends what killed benchmarks
    /// left.
    pub(crate) fn open() -> io::Result<Self> {
        let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo")?);
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mount in &mounts {
            let holds = |controller: &str| mount.controllers.iter().any(|held| held == controller);
            let (cpu, memory) = if mount.version2 {
                let controllers = fs::read_to_string(mount.at.join("cgroup.controllers"))?;
                let memory = controllers.split_whitespace().any(|held| held == "memory");
                (true, memory)
            } else {
                (holds("cpuacct"), holds("memory"))
            };
            if cpu || memory {
                hierarchies.push(Hierarchy {
                    version: if mount.version2 {
                        Version::V2
                    } else {
                        Version::V1
                    },
                    home: home(mount, &own),
                    mount: mount.at.clone(),
                    cpu,
                    memory,
                });
            }
        }
        // Two of them may count the same: version 1 is what OCI runtimes use then.
        hierarchies.sort_by_key(|hierarchy| hierarchy.version == Version::V2);
        for wanted in [cpu_of as fn(&mut Hierarchy) -> &mut bool, memory_of] {
            let mut counted = false;
            for hierarchy in &mut hierarchies {
                let counts = wanted(hierarchy);
                *counts &= !counted;
                counted |= *counts;
            }
        }
        hierarchies.retain(|hierarchy| hierarchy.cpu || hierarchy.memory);
        let mounts: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.at).collect();
        end_abandoned(&mounts);
        let name = format!("{TOP}{}", std::process::id());
        let mut locks = Vec::new();
        for hierarchy in &hierarchies {
            // Another benchmark may just look whether somebody has it. One in another PID namespace may
            // have it for good.
            let top = hierarchy.mount.join(&name);
            let own = || {
                fs::create_dir_all(&top)?;
                owned::own(&top)
            };
            let lock = (0..ATTEMPTS).find_map(|attempt| {
                if attempt > 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
                own().transpose()
            });
            locks.push(lock.ok_or(io::ErrorKind::WouldBlock)??);
        }
        Ok(Self {
            hierarchies,
            mounts,
            name,
            _locks: locks,
        })
    }

    /// Whether CPU time is counted, and whether memory is.
    pub(crate) fn counts(&self) -> (bool, bool) {
        (
            self.hierarchies.iter().any(|hierarchy| hierarchy.cpu),
            self.hierarchies.iter().any(|hierarchy| hierarchy.memory),
        )
    }

    /// What was found, for people.
    pub(crate) fn describe(&self) -> String {
        let has = |version| self.hierarchies.iter().any(|h| h.version == version);
        let version = match (has(Version::V1), has(Version::V2)) {
            (true, true) => "version 1 with 2 beside it",
            (true, false) => "version 1",
            (false, true) => "version 2",
            (false, false) => return "none".into(),
        };
        match self.counts() {
            (true, true) => version.into(),
            (true, false) => format!("{version}, without memory"),
            (false, _) => format!("{version}, without CPU time"),
        }
    }

    /// Makes the group of an arm.
    pub(crate) fn group(&self, arm: &str) -> io::Result<Group> {
        let mut places = Vec::new();
        for hierarchy in &self.hierarchies {
            let top = hierarchy.mount.join(&self.name);
            let dir = top.join(arm);
            fs::create_dir_all(&dir)?;
            if hierarchy.version == Version::V2 && hierarchy.memory {
                for above in [&hierarchy.mount, &top] {
                    // Refused where processes are in the group: then memory is not counted.
                    let _ = fs::write(above.join("cgroup.subtree_control"), "+memory");
                }
            }
            fs::create_dir_all(dir.join(PROCESSES))?;
            places.push((hierarchy.clone(), dir));
        }
        Ok(Group {
            places,
            path: format!("/{}/{arm}", self.name),
        })
    }
}

fn cpu_of(hierarchy: &mut Hierarchy) -> &mut bool {
    &mut hierarchy.cpu
}

fn memory_of(hierarchy: &mut Hierarchy) -> &mut bool {
    &mut hierarchy.memory
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for mount in &self.mounts {
            remove(&mount.join(&self.name));
        }
    }
}

impl Group {
    /// Does something as a member of the group, so that every process it starts is one too. The
    /// harness itself is put back where it was.
    pub(crate) fn within<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
        let own = std::process::id().to_string();
        let enter = self
            .places
            .iter()
            .try_for_each(|(_, dir)| fs::write(dir.join(PROCESSES).join("cgroup.procs"), &own));
        let started = enter.map(|()| start());
        for (hierarchy, _) in &self.places {
            fs::write(hierarchy.home.join("cgroup.procs"), &own)?;
        }
        started
    }

    /// CPU time that was used in it so far, by processes that have ended as well.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let (hierarchy, dir) = self.places.iter().find(|(h, _)| h.cpu)?;
        match hierarchy.version {
            Version::V1 => {
                let text = fs::read_to_string(dir.join("cpuacct.usage")).ok()?;
                text.trim().parse().ok().map(Duration::from_nanos)
            }
            Version::V2 => usage_usec(&fs::read_to_string(dir.join("cpu.stat")).ok()?),
        }
    }

    /// Bytes of memory that are charged to it now, page cache and kernel memory included.
    pub(crate) fn memory(&self) -> Option<u64> {
        let (hierarchy, dir) = self.places.iter().find(|(h, _)| h.memory)?;
        let file = match hierarchy.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        let text = fs::read_to_string(dir.join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// The path under which an OCI runtime is to make a container's group.
    pub(crate) fn containers(&self) -> String {
        format!("{}/{CONTAINERS}", self.path)
    }
}

/// Ends what runs in the groups of killed benchmarks, and removes them.
fn end_abandoned(mounts: &[PathBuf]) {
    let found: Vec<_> = mounts
        .iter()
        .flat_map(|mount| owned::abandoned(mount, TOP))
        .collect();
    // Of one that lives, a group that an OCI runtime made has no lock.
    let lives = |group: &Path| {
        let name = group.file_name().unwrap_or_default();
        mounts
            .iter()
            .map(|mount| mount.join(name))
            .any(|other| other.exists() && !found.iter().any(|(path, _)| *path == other))
    };
    for (group, _) in found.iter().filter(|(group, _)| !lives(group)) {
        end(group);
        remove(group);
    }
}

/// Kills the processes of a group and of all below it.
fn end(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            end(&entry.path());
        }
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Removes a group and all below it. Processes that just ended may hold it for a moment.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..ATTEMPTS {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            // It is gone, or was never there.
            _ => return,
        }
    }
}

fn usage_usec(stat: &str) -> Option<Duration> {
    let value = stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    value.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_version_2_is_read() {
        let stat = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
        assert_eq!(usage_usec(stat), Some(Duration::from_micros(1500)));
        assert_eq!(usage_usec("user_usec 1000\n"), None);
    }
}
