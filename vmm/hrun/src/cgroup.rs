//! Control groups of version 1, version 2 and both beside each other (cgroups(7)).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::process::Pid;

/// A line of `/proc/self/mountinfo` that is a cgroup file system (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    root: String,
    pub(crate) at: PathBuf,
    pub(crate) version2: bool,
    pub(crate) controllers: Vec<String>,
}

/// A process that cannot be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// It is not known which groups there are.
    #[error("Failed to read {path}")]
    Read { path: String, source: io::Error },
    /// The kernel does not let it in.
    #[error("Failed to move process {pid} into {group}")]
    Move {
        pid: i32,
        group: PathBuf,
        source: io::Error,
    },
}

/// Moves another process into the groups that this one is in: what it uses from now on is charged
/// there, and their limits are its own.
pub(crate) fn adopt(pid: Pid) -> Result<(), AdoptError> {
    let pid = pid.as_raw_nonzero().get();
    let read = |path: String| {
        fs::read_to_string(&path).map_err(|source| AdoptError::Read { path, source })
    };
    let own = read("/proc/self/cgroup".into())?;
    let its = read(format!("/proc/{pid}/cgroup"))?;
    if own == its {
        return Ok(());
    }
    for mount in mounts(&read("/proc/self/mountinfo".into())?) {
        let group = home(&mount, &own);
        if group == home(&mount, &its) {
            continue;
        }
        fs::write(group.join("cgroup.procs"), pid.to_string())
            .map_err(|source| AdoptError::Move { pid, group, source })?;
    }
    Ok(())
}

/// The cgroup file systems of a mountinfo.
pub(crate) fn mounts(mountinfo: &str) -> Vec<Mount> {
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
pub(crate) fn home(mount: &Mount, own: &str) -> PathBuf {
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
    fn a_process_of_the_same_groups_stays_where_it_is() {
        let own = rustix::process::getpid();
        adopt(own).unwrap();
        let gone = adopt(Pid::from_raw(i32::MAX).unwrap()).unwrap_err();
        assert!(matches!(gone, AdoptError::Read { .. }), "{gone}");
    }
}
