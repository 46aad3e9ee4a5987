//! The bundle that an engine hands over: a directory with `config.json` and, usually, the root file
//! system (runtime-spec, bundle.md).

use std::{
    fs,
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use agent_protocol::WindowSize;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Mount, Process, Spec};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};

use super::{
    network::Network,
    plan::{Place, Plan, Refused, read},
    pod::{Peers, Role},
};

/// Longest config.json, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Kinds of mounts that bring no programs.
const WITHOUT_PROGRAMS: [&str; 7] = [
    "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs",
];

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("Failed to find the bundle {path}")]
    Find { path: PathBuf, source: io::Error },
    #[error("Failed to read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no configuration of an OCI container")]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path} is larger than 16 MiB")]
    TooLarge { path: PathBuf },
    #[error("{path} is for version {version} of the OCI runtime specification; hrun knows 1")]
    Version { path: PathBuf, version: String },
    #[error("{0} names no root file system (root.path)")]
    NoRoot(PathBuf),
    #[error("The root file system {path} is no directory")]
    Root { path: PathBuf },
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    #[error("exec: {0:?}: no such file or directory")]
    NoProgram(String),
    #[error("exec: {0:?}: permission denied")]
    NotExecutable(String),
}

/// What an engine hands over.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// config.json as it was read.
    pub(crate) json: Vec<u8>,
    pub(crate) spec: Spec,
    /// What of it was not understood, and is harmless to leave out.
    pub(crate) warnings: Vec<String>,
}

impl Bundle {
    /// Reads the bundle in a directory.
    pub(crate) fn read(path: &Path) -> Result<Self, BundleError> {
        let path = path.canonicalize().map_err(|source| BundleError::Find {
            path: path.into(),
            source,
        })?;
        let file = path.join("config.json");
        let read = |source| BundleError::Read {
            path: file.clone(),
            source,
        };
        let mut json = Vec::new();
        let opened = fs::File::open(&file).map_err(read)?;
        opened
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut json)
            .map_err(read)?;
        if json.len() as u64 > MAX_CONFIG {
            return Err(BundleError::TooLarge { path: file });
        }
        let (spec, warnings) = match read::spec(&json) {
            Ok(read) => read,
            Err(source) => return Err(BundleError::Parse { path: file, source }),
        };
        if !spec.version().starts_with("1.") {
            return Err(BundleError::Version {
                path: file,
                version: spec.version().clone(),
            });
        }
        let bundle = Self {
            path,
            json,
            spec,
            warnings,
        };
        let root = bundle.root().ok_or(BundleError::NoRoot(file))?;
        if !root.is_dir() {
            return Err(BundleError::Root { path: root });
        }
        Ok(bundle)
    }

    /// The root file system.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        let root = self.spec.root().as_ref()?;
        Some(self.path.join(root.path()))
    }

    /// Looks for the program, so that an engine hears at create that there is none. What only the
    /// guest can find is left to it.
    pub(crate) fn check_program(&self) -> Result<(), BundleError> {
        let (Some(root), Some(process)) = (self.root(), self.spec.process()) else {
            return Ok(());
        };
        let Some(program) = process.args().iter().flatten().next() else {
            return Ok(());
        };
        let mounts = self.spec.mounts().iter().flatten();
        let brings_programs = |mount: &&Mount| {
            let kind = mount.typ().as_deref().unwrap_or("bind");
            !WITHOUT_PROGRAMS.contains(&kind)
        };
        let mounts: Vec<_> = mounts
            .filter(brings_programs)
            .map(|mount| mount.destination().as_path())
            .collect();
        if program.is_empty() {
            return Ok(());
        }
        if program.contains('/') {
            return match look(&root, &process.cwd().join(program), &mounts) {
                Look::Program | Look::Unclear => Ok(()),
                Look::NotExecutable => Err(BundleError::NotExecutable(program.clone())),
                Look::Nothing => Err(BundleError::NoProgram(program.clone())),
            };
        }
        let variables = process.env().iter().flatten();
        let path = variables
            .filter_map(|text| text.strip_prefix("PATH="))
            .next_back();
        let mut unusable = false;
        for dir in path.unwrap_or_default().split(':') {
            match look(&root, &process.cwd().join(dir).join(program), &mounts) {
                Look::Program | Look::Unclear => return Ok(()),
                Look::NotExecutable => unusable = true,
                Look::Nothing => {}
            }
        }
        Err(if unusable {
            BundleError::NotExecutable(program.clone())
        } else {
            BundleError::NotInPath(program.clone())
        })
    }
}

enum Look {
    Program,
    NotExecutable,
    Nothing,
    Unclear,
}

/// Looks at a path of the container, following its links inside its root. What is, or may be, in one
/// of these mounts is not known.
fn look(root: &Path, path: &Path, mounts: &[&Path]) -> Look {
    let Ok(dir) = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return Look::Unclear;
    };
    let find = |path: &Path, flags: OFlags| {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        openat2(&dir, path, flags, Mode::empty(), within).map(fs::File::from)
    };
    let place = |file: &fs::File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    let top = find(Path::new("/"), OFlags::empty())
        .ok()
        .and_then(|top| place(&top));
    let is_mounted = |file: &fs::File| {
        let inside = place(file).and_then(|place| {
            let below = place.strip_prefix(top.as_ref()?).ok()?.to_owned();
            Some(Path::new("/").join(below))
        });
        inside.is_none_or(|inside| mounts.iter().any(|mount| inside.starts_with(mount)))
    };
    if mounts.iter().any(|mount| path.starts_with(mount)) {
        return Look::Unclear;
    }
    match find(path, OFlags::empty()) {
        Ok(file) if is_mounted(&file) => return Look::Unclear,
        Ok(file) => {
            return match file.metadata() {
                Ok(file) if file.is_file() && file.mode() & 0o111 != 0 => Look::Program,
                Ok(_) => Look::NotExecutable,
                Err(_) => Look::Unclear,
            };
        }
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(_) => return Look::Unclear,
    }
    // It is missing; what of the way to it is there must not lead into a mount.
    let mut way: Vec<_> = path.ancestors().skip(1).collect();
    way.reverse();
    for part in way {
        match find(part, OFlags::empty()) {
            Ok(file) if is_mounted(&file) => return Look::Unclear,
            Ok(_) => {}
            // A link that leads nowhere may lead into a mount.
            Err(_) if find(part, OFlags::NOFOLLOW).is_ok() => return Look::Unclear,
            Err(_) => return Look::Nothing,
        }
    }
    match find(path, OFlags::NOFOLLOW) {
        Ok(_) if !mounts.is_empty() => Look::Unclear,
        _ => Look::Nothing,
    }
}

/// What a container is to be.
pub(crate) fn plan(
    spec: &Spec,
    path: &Path,
    id: &str,
    role: &Role,
    peers: &Peers,
) -> Result<Plan, Refused> {
    let place = Place {
        bundle: path,
        id,
        role,
        owner: &|namespace| peers.owner(namespace),
    };
    Plan::new(spec, place)
}

/// The size that a process's terminal is to have.
pub(crate) fn window_size(process: &Process) -> Option<WindowSize> {
    let size = process.console_size()?;
    Some(WindowSize {
        rows: u16::try_from(size.height()).ok()?,
        columns: u16::try_from(size.width()).ok()?,
    })
}

/// Where the container's network is to be.
pub(crate) fn network(spec: &Spec) -> Network {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    match namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        None => Network::Host,
        Some(namespace) => match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() => Network::Path(path.clone()),
            _ => Network::New,
        },
    }
}

/// The control groups that the engine names.
pub(crate) fn cgroups_path(spec: &Spec) -> Option<&Path> {
    spec.linux().as_ref()?.cgroups_path().as_deref()
}

/// What the container may use.
pub(crate) fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn bundle(edit: impl FnOnce(&mut serde_json::Value)) -> (tempfile::TempDir, Bundle) {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("rootfs/usr/bin");
        fs::create_dir_all(&bin).unwrap();
        symlink("/usr/bin", dir.path().join("rootfs/bin")).unwrap();
        for (name, mode) in [("tool", 0o755), ("data", 0o644)] {
            fs::write(bin.join(name), "").unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut json = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["tool"], "env": ["PATH=/sbin:/bin"], "cwd": "/"},
        });
        edit(&mut json);
        fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        let bundle = Bundle::read(dir.path()).unwrap();
        (dir, bundle)
    }

    #[test]
    fn programs_are_looked_for_inside_the_root() {
        let check = |program: &str| {
            let (_dir, bundle) = bundle(|json| json["process"]["args"][0] = program.into());
            bundle.check_program()
        };
        for program in ["tool", "/bin/tool", "bin/tool", "/usr/bin/../bin/tool"] {
            check(program).unwrap();
        }
        assert!(matches!(check("none"), Err(BundleError::NotInPath(_))));
        assert!(matches!(check("/bin/sh"), Err(BundleError::NoProgram(_))));
        assert!(matches!(
            check("/bin/data"),
            Err(BundleError::NotExecutable(_))
        ));
        assert!(matches!(check("data"), Err(BundleError::NotExecutable(_))));
    }

    #[test]
    fn what_mounts_may_bring_is_left_to_the_guest() {
        let check = |program: &str, path: &str| {
            let (dir, bundle) = bundle(|json| {
                json["process"]["args"][0] = program.into();
                json["process"]["env"][0] = format!("PATH={path}").into();
                json["mounts"] = serde_json::json!([
                    {"destination": "/data", "type": "bind", "source": "/usr"},
                    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
                ]);
            });
            symlink("/data/bin", dir.path().join("rootfs/local")).unwrap();
            bundle.check_program()
        };
        check("none", "/data/bin").unwrap();
        check("none", "/usr/bin:/local").unwrap();
        check("/local/none", "").unwrap();
        check("/data/x", "").unwrap();
        for path in ["/usr/bin", "/none/bin", "/tmp"] {
            assert!(
                matches!(check("none", path), Err(BundleError::NotInPath(_))),
                "{path}"
            );
        }
        assert!(matches!(
            check("/usr/bin/none", ""),
            Err(BundleError::NoProgram(_))
        ));
    }

    #[test]
    fn a_bundle_that_is_none_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = |dir: &Path| format!("{:#}", anyhow::Error::new(Bundle::read(dir).unwrap_err()));
        assert!(text(dir.path()).contains("config.json"));
        assert!(text(&dir.path().join("none")).contains("none"));
        for (json, word) in [
            ("{", "no configuration"),
            (r#"{"ociVersion":"2.0.0"}"#, "2.0.0"),
            (r#"{"ociVersion":"1.0.2"}"#, "root"),
            (
                r#"{"ociVersion":"1.0.2","root":{"path":"x"}}"#,
                "no directory",
            ),
        ] {
            fs::write(dir.path().join("config.json"), json).unwrap();
            assert!(text(dir.path()).contains(word), "{}", text(dir.path()));
        }
    }

    #[test]
    fn the_network_is_the_engines() {
        let of = |namespaces: serde_json::Value| {
            let (_dir, bundle) = bundle(|json| json["linux"]["namespaces"] = namespaces);
            network(&bundle.spec)
        };
        assert_eq!(of(serde_json::json!([{"type": "pid"}])), Network::Host);
        assert_eq!(of(serde_json::json!([{"type": "network"}])), Network::New);
        let path = serde_json::json!([{"type": "network", "path": "/run/netns/a"}]);
        assert_eq!(of(path), Network::Path("/run/netns/a".into()));
    }
}
