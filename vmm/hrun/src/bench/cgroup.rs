//! Cgroups of the harness's own, one for each arm: everything that an arm starts is in it,
//! whoever's child it is, so its CPU time and its memory are the arm's.
//!
//! Version 1, version 2 and both beside each other; without any, [`Cgroups::open`] says so and
//! the harness counts processes instead.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

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

/// A line of `/proc/self/mountinfo` that is a cgroup file system (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    root: String,
    pub(super) at: PathBuf,
    pub(super) version2: bool,
    controllers: Vec<String>,
}

impl Cgroups {
    /// Finds the hierarchies. `name` is that of the group that holds all others.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
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
        Ok(Self {
            hierarchies,
            mounts: mounts.into_iter().map(|mount| mount.at).collect(),
            name: name.into(),
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

/// Removes a group and all below it. Processes that just ended may hold it for a moment.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..100 {
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

/// The cgroup file systems of a mountinfo.
pub(super) fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(3);
        let (root, at) = (head.next()?, head.next()?);
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let version2 = match kind {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        Some(Mount {
            root: root.into(),
            at: at.into(),
            version2,
            controllers: options.split(',').map(Into::into).collect(),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The directory of the group that `/proc/self/cgroup` names for this mount (cgroups(7)).
fn home(mount: &Mount, own: &str) -> PathBuf {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = if mount.version2 {
            controllers.is_empty()
        } else {
            controllers
                .split(',')
                .any(|name| !name.is_empty() && mount.controllers.iter().any(|held| held == name))
        };
        ours.then_some(path)
    });
    let below = path
        .and_then(|path| Path::new(path).strip_prefix(&mount.root).ok())
        .unwrap_or(Path::new(""));
    mount.at.join(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /docker/1 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn mounts_of_both_versions_are_found() {
        let found = mounts(MOUNTINFO);
        let places: Vec<_> = found
            .iter()
            .map(|mount| mount.at.to_str().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/unified"
            ]
        );
        assert!(found[2].version2 && !found[0].version2);
        assert_eq!(found[0].controllers, ["rw", "cpu", "cpuacct"]);
    }

    #[test]
    fn the_way_home_is_that_of_the_hierarchy() {
        let own = "3:memory:/docker/1/sub\n2:cpu,cpuacct:/a/b\n1:name=systemd:/x\n0::/user\n";
        let homes: Vec<_> = mounts(MOUNTINFO)
            .iter()
            .map(|mount| home(mount, own))
            .collect();
        assert_eq!(homes[0], Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(homes[1], Path::new("/sys/fs/cgroup/memory/sub"));
        assert_eq!(homes[2], Path::new("/sys/fs/cgroup/unified/user"));
    }

    #[test]
    fn the_cpu_time_of_version_2_is_read() {
        let stat = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
        assert_eq!(usage_usec(stat), Some(Duration::from_micros(1500)));
        assert_eq!(usage_usec("user_usec 1000\n"), None);
    }
}
