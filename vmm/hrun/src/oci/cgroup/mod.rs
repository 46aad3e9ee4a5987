//! The control groups of a container on the host: shim and VMM are in them from the beginning, so
//! that what the container costs is charged where the engine looks for it, and limited there.
//!
//! There is one directory for each hierarchy of version 1 and one for version 2, whichever the
//! host has (cgroups(7)).

mod limits;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Mount};

/// How long killed processes may take to leave their group.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);

/// The groups of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Groups(Vec<Group>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    dir: PathBuf,
    /// Where the way to it begins.
    base: PathBuf,
    version2: bool,
    controllers: Vec<String>,
    /// Whether we made it: what was there before stays.
    made: bool,
}

/// Failure to set control groups up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("Failed to read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("invalid cgroup path {0:?}: it must not contain ..")]
    Path(PathBuf),
    #[error("Failed to make the cgroup {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("Failed to move process {pid} into the cgroup {path}")]
    Enter {
        pid: u32,
        path: PathBuf,
        source: io::Error,
    },
    #[error("Failed to set {path} to {value}")]
    Limit {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("Failed to remove the cgroup {path}")]
    Remove { path: PathBuf, source: io::Error },
}

/// The path of a container's groups below the root of each hierarchy, or below the group that we
/// are in if it is relative.
pub(crate) fn path(wanted: Option<&Path>, id: &str, systemd: bool) -> PathBuf {
    match wanted.and_then(Path::to_str) {
        None | Some("") => Path::new("/").join(id),
        Some(wanted) if systemd => scope(wanted),
        Some(wanted) => wanted.into(),
    }
}

/// Where systemd has the scope that `slice:prefix:name` stands for (systemd.slice(5)): a dash in the
/// name of a slice is a step down.
fn scope(wanted: &str) -> PathBuf {
    let mut parts = wanted.splitn(3, ':');
    let (slice, prefix, name) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let mut path = PathBuf::from("/");
    if let Some(stem) = slice.strip_suffix(".slice").filter(|stem| *stem != "-") {
        let dashes = stem.match_indices('-').map(|(at, _)| at);
        for end in dashes.chain([stem.len()]) {
            path.push(format!("{}.slice", &stem[..end]));
        }
    }
    path.join(match (prefix, name) {
        ("", name) => format!("{name}.scope"),
        (prefix, name) => format!("{prefix}-{name}.scope"),
    })
}

impl Groups {
    /// The groups at `path`, which [`Groups::make`] makes: who is to remove them should write them
    /// down before that.
    pub(crate) fn at(path: &Path) -> Result<Self, GroupError> {
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(GroupError::Path(path.into()));
        }
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| GroupError::Read {
                path: path.into(),
                source,
            })
        };
        let own = read("/proc/self/cgroup")?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let group = |mount: Mount| {
            let base = match path.strip_prefix("/") {
                Ok(_) => mount.at.clone(),
                Err(_) => cgroup::home(&mount, &own),
            };
            let dir = base.join(below);
            Group {
                made: !dir.exists(),
                dir,
                base,
                version2: mount.version2,
                controllers: mount.controllers,
            }
        };
        let mounts = cgroup::mounts(&read("/proc/self/mountinfo")?);
        Ok(Self(mounts.into_iter().map(group).collect()))
    }

    /// Makes them.
    pub(crate) fn make(&mut self) -> Result<(), GroupError> {
        self.0.iter_mut().try_for_each(Group::make)
    }

    /// Moves a process there.
    pub(crate) fn enter(&self, pid: u32) -> Result<(), GroupError> {
        self.0.iter().try_for_each(|group| {
            fs::write(group.dir.join("cgroup.procs"), pid.to_string()).map_err(|source| {
                GroupError::Enter {
                    pid,
                    path: group.dir.clone(),
                    source,
                }
            })
        })
    }

    /// Applies what the engine allows the container, and `overhead` bytes of memory for what is
    /// not the container's own.
    pub(crate) fn limit(
        &self,
        resources: &LinuxResources,
        overhead: u64,
    ) -> Result<(), GroupError> {
        for group in &self.0 {
            for (file, value) in limits::of(group, resources, overhead) {
                let path = group.dir.join(file);
                fs::write(&path, &value).map_err(|source| GroupError::Limit {
                    path,
                    value,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The processes in them.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, GroupError> {
        let Some(group) = self.0.first() else {
            return Ok(Vec::new());
        };
        let path = group.dir.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(GroupError::Read { path, source }),
        }
    }

    /// The directory of the hierarchy that has this controller.
    pub(crate) fn of(&self, controller: &str) -> Option<(&Path, bool)> {
        let group = self.0.iter().find(|group| group.has(controller))?;
        Some((&group.dir, group.version2))
    }

    /// Removes those that we made, once they are empty.
    pub(crate) fn remove(&self) -> Result<(), GroupError> {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        for group in self.0.iter().filter(|group| group.made) {
            loop {
                match fs::remove_dir(&group.dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy
                            && Instant::now() < deadline =>
                    {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(source) => {
                        return Err(GroupError::Remove {
                            path: group.dir.clone(),
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

impl Group {
    /// Makes it, with all on the way to it.
    fn make(&mut self) -> Result<(), GroupError> {
        let mut dir = self.base.clone();
        for part in self.dir.strip_prefix(&self.base).unwrap_or(Path::new("")) {
            let parent = dir.clone();
            dir.push(part);
            if self.version2 {
                // A controller that the parent does not have, or whose processes forbid it: what
                // needs it fails later, by name.
                let _ = enable_controllers(&parent);
            }
            match fs::create_dir(&dir) {
                Ok(()) if self.has("cpuset") && !self.version2 => inherit_cpuset(&parent, &dir)?,
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(GroupError::Make {
                        path: dir,
                        source: error,
                    });
                }
                _ => {}
            }
        }
        if self.version2 {
            let path = self.dir.join("cgroup.controllers");
            let text = fs::read_to_string(&path);
            let text = text.map_err(|source| GroupError::Read { path, source })?;
            self.controllers = text.split_whitespace().map(Into::into).collect();
        }
        Ok(())
    }

    fn has(&self, controller: &str) -> bool {
        // What is accounted for apart in version 1 is of the other in version 2.
        let controller = match controller {
            "cpuacct" if self.version2 => "cpu",
            "blkio" if self.version2 => "io",
            controller => controller,
        };
        self.controllers.iter().any(|name| name == controller)
    }
}

/// A new cpuset of version 1 is empty, and lets nobody in.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), GroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherit = || fs::write(dir.join(file), fs::read(parent.join(file))?);
        inherit().map_err(|source| GroupError::Make {
            path: dir.join(file),
            source,
        })?;
    }
    Ok(())
}

/// Gives the groups below this one all controllers that it has.
fn enable_controllers(dir: &Path) -> io::Result<()> {
    let has = fs::read_to_string(dir.join("cgroup.controllers"))?;
    for controller in has.split_whitespace() {
        fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_where_systemd_has_it() {
        let at = |wanted| scope(wanted).display().to_string();
        assert_eq!(
            at("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
             cri-containerd-abc.scope"
        );
        assert_eq!(at(":docker:abc"), "/system.slice/docker-abc.scope");
        assert_eq!(at("-.slice:x:abc"), "/x-abc.scope");
        assert_eq!(at("a.slice::abc"), "/a.slice/abc.scope");
    }

    #[test]
    fn paths_are_the_engines_or_our_own() {
        let own = |wanted: Option<&str>| path(wanted.map(Path::new), "id", false);
        assert_eq!(own(None), Path::new("/id"));
        assert_eq!(own(Some("")), Path::new("/id"));
        assert_eq!(own(Some("/a/b")), Path::new("/a/b"));
        assert_eq!(own(Some("a")), Path::new("a"));
    }

    #[test]
    fn a_path_that_leads_up_is_refused() {
        let refused = Groups::at(Path::new("/a/../../b")).unwrap_err();
        assert!(matches!(refused, GroupError::Path(_)));
    }
}
