//! `mounts`: in their order, as few of them as show what was asked for.
//!
//! What the agent has mounted before anybody asked is not mounted again: engines write the same
//! list for every container. Where a bundle differs from that, the mount that is there is changed.

use std::path::{Component, Path, PathBuf};

use agent_protocol::{Attributes, ContainerId, Source};
use oci_spec::runtime::{Mount, Spec};
use vmm::config::CollectionEntry;

use super::{
    bind::{self, Bound},
    mount_options::{
        ATIME, NODEV, NOEXEC, NOSUID, Options, RDONLY, STRICTATIME, is_of_the_host, is_special,
    },
    refused::{Refused, value},
    text,
};
use crate::{
    oci::pod::Role,
    options::size,
    translate::{self, VOLUMES_TAG},
};

/// What `mounts` comes to.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<agent_protocol::Mount>,
    /// Sources of bind mounts, named by their numbers.
    pub(super) volumes: Vec<CollectionEntry>,
}

impl Mounts {
    /// The directories that all this needs in the root file system itself: for mounts of
    /// directories, for what the agent mounts, and to work in.
    pub(super) fn directories(&self, cwd: &str) -> Vec<PathBuf> {
        const USUAL_TREES: [&str; 3] = ["/dev", "/proc", "/sys"];
        let is_directory = |mount: &&agent_protocol::Mount| match &mount.source {
            Source::FileSystem { .. } => true,
            Source::Share { path, .. } => {
                let mut volumes = self.volumes.iter();
                volumes.any(|volume| volume.name == *path && volume.path.is_dir())
            }
            _ => false,
        };
        let targets = self.mounts.iter().filter(is_directory);
        let paths = targets.map(|mount| mount.target.as_str()).chain([cwd]);
        translate::directories(USUAL_TREES.into_iter().chain(paths), |path| {
            let mut targets = self.mounts.iter().map(|mount| mount.target.as_str());
            targets.any(|target| path.starts_with(target))
                || USUAL_TREES.iter().any(|tree| path.starts_with(tree))
        })
    }
}

/// What a container has in common with others of its VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) role: &'a Role,
    /// Whose message queues and shared memory it has.
    pub(super) ipc: Option<ContainerId>,
}

/// What the agent mounts in every container: target, type, attributes, options. The same as in
/// `stage` of the agent's `container`.
struct Usual {
    target: &'static str,
    kinds: &'static [&'static str],
    attributes: u64,
    options: &'static [(&'static str, &'static str)],
}

const INERT: u64 = NOSUID | NODEV | NOEXEC;

const USUAL: [Usual; 7] = [
    usual("/proc", &["proc"], INERT, &[]),
    usual("/sys", &["sysfs"], INERT | RDONLY, &[]),
    usual(
        "/sys/fs/cgroup",
        &["cgroup", "cgroup2"],
        INERT | RDONLY,
        &[],
    ),
    usual(
        "/dev",
        &["tmpfs"],
        NOSUID | STRICTATIME,
        &[("mode", "755"), ("size", "65536k")],
    ),
    usual(
        "/dev/pts",
        &["devpts"],
        NOSUID | NOEXEC,
        &[
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ],
    ),
    usual(
        "/dev/shm",
        &["tmpfs"],
        INERT,
        &[("mode", "1777"), ("size", "64m")],
    ),
    usual("/dev/mqueue", &["mqueue"], INERT, &[]),
];

const fn usual(
    target: &'static str,
    kinds: &'static [&'static str],
    attributes: u64,
    options: &'static [(&'static str, &'static str)],
) -> Usual {
    Usual {
        target,
        kinds,
        attributes,
        options,
    }
}

/// File systems of the guest's kernel that a container may have more of.
const FILE_SYSTEMS: [&str; 8] = [
    "tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup", "cgroup2", "ramfs",
];

/// Files of `/proc` that something may be mounted on, as runc has it.
const IN_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

pub(super) fn mounts(
    spec: &Spec,
    bundle: &Path,
    shared: Shared<'_>,
    warnings: &mut Vec<String>,
) -> Result<Mounts, Refused> {
    let mut translation = Translation {
        bundle,
        shared,
        warnings,
        hidden: Vec::new(),
        all: Mounts::default(),
    };
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        translation.add(&format!("mounts[{index}]"), mount)?;
    }
    Ok(translation.all)
}

struct Translation<'a> {
    bundle: &'a Path,
    shared: Shared<'a>,
    warnings: &'a mut Vec<String>,
    /// Where something is mounted by now: what was there before is not to be seen any more.
    hidden: Vec<String>,
    all: Mounts,
}

impl Translation<'_> {
    fn add(&mut self, property: &str, mount: &Mount) -> Result<(), Refused> {
        let options = mount.options().iter().flatten().map(String::as_str);
        let options = Options::parse(options);
        let target = target(property, mount.destination())?;
        let mapped = [mount.uid_mappings(), mount.gid_mappings()];
        if options.id_mapped || mapped.iter().any(|mapping| mapping.is_some()) {
            let reason = "files are shared with their owners as they are";
            return Err(value(format!("{property}.idmap"), target, reason));
        }
        let kind = mount.typ().as_deref().unwrap_or("");
        if options.bind || kind == "bind" {
            return self.bind(property, mount, &target, &options);
        }
        if options.remount {
            self.present(
                &target,
                options.attributes,
                &options,
                options.data.join(","),
            );
            return Ok(());
        }
        if let Some(usual) = self
            .usual(&target)
            .filter(|usual| usual.kinds.contains(&kind))
        {
            return self.usual_mount(property, usual, &options);
        }
        self.file_system(property, mount, kind, &target, &options)
    }

    /// What the agent has mounted there, if that is to be seen yet.
    fn usual(&self, target: &str) -> Option<&'static Usual> {
        let usual = USUAL.iter().find(|usual| usual.target == target)?;
        let mut hidden = self.hidden.iter();
        (!hidden.any(|hidden| Path::new(target).starts_with(hidden))).then_some(usual)
    }

    /// Changes what the agent has mounted, as far as that is not what is asked for.
    fn usual_mount(
        &mut self,
        property: &str,
        usual: &Usual,
        options: &Options,
    ) -> Result<(), Refused> {
        let mut attributes = options.attributes;
        // What is not named may be stricter than by default, but for writing.
        if options.applied_to(0) & RDONLY == 0 {
            attributes.clear |= RDONLY;
        }
        let changed = Options {
            attributes,
            recursive: options.recursive,
            ..Options::default()
        };
        let wanted = changed.applied_to(usual.attributes);
        let attributes = match wanted == usual.attributes {
            true => Attributes::NONE,
            false => attributes,
        };
        let is_cgroup = usual.kinds.contains(&"cgroup");
        let mut data: Vec<&str> = Vec::new();
        for option in options.data.iter().filter(|_| !is_cgroup) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if !usual.has(name, value) {
                data.push(option);
            }
        }
        let is_tmpfs = usual.kinds.contains(&"tmpfs");
        if is_tmpfs && data.iter().any(|option| is_of_the_root(option)) {
            if usual.target == "/dev" {
                let reason = "the agent makes it for root, with mode 755";
                return Err(value(format!("{property}.options"), data.join(","), reason));
            }
            self.push_new("tmpfs", "shm", usual.target, options);
            return Ok(());
        }
        if usual.target == "/dev/shm" && options.value("size").is_none() {
            // What a tmpfs has by default.
            data.push("size=50%");
        }
        let data = data.join(",");
        self.present(usual.target, attributes, options, data);
        Ok(())
    }

    /// Changes what is mounted on `target`; nothing is done if nothing is to be changed.
    fn present(&mut self, target: &str, attributes: Attributes, options: &Options, data: String) {
        let propagation = options.propagation.filter(is_special);
        let recursive = options.recursive;
        let is_same = attributes == Attributes::NONE && recursive == Attributes::NONE;
        if is_same && propagation.is_none() && data.is_empty() {
            return;
        }
        self.all.mounts.push(agent_protocol::Mount {
            source: Source::Present { options: data },
            target: target.into(),
            attributes,
            recursive,
            propagation,
        });
    }

    fn file_system(
        &mut self,
        property: &str,
        mount: &Mount,
        kind: &str,
        target: &str,
        options: &Options,
    ) -> Result<(), Refused> {
        if !FILE_SYSTEMS.contains(&kind) {
            let reason = match kind {
                "" => "without a type it must be a bind mount",
                "hugetlbfs" => "the guest's kernel has no huge pages to give",
                _ => "it is no file system of the guest's kernel that needs no device",
            };
            return Err(value(format!("{property}.type"), kind, reason));
        }
        if Path::new(target).starts_with("/proc") && target != "/proc" {
            return Err(in_proc(property, target));
        }
        let kind = if kind == "cgroup" { "cgroup2" } else { kind };
        let name = mount.source().as_deref().and_then(Path::to_str);
        let without_data;
        let options = if kind == "cgroup2" {
            // Its options are for version 1, or for the whole hierarchy.
            without_data = options.without_data();
            &without_data
        } else {
            options
        };
        self.push_new(kind, name.unwrap_or(kind), target, options);
        Ok(())
    }

    fn push_new(&mut self, kind: &str, name: &str, target: &str, options: &Options) {
        let source = Source::FileSystem {
            kind: kind.into(),
            name: name.into(),
            options: options.data.join(","),
            copy_up: options.copy_up && kind == "tmpfs",
        };
        self.push(source, target, options);
    }

    fn push(&mut self, source: Source, target: &str, options: &Options) {
        // A new mount has nothing that could be cleared, but the field of access times is set whole.
        let fresh = |change: Attributes| Attributes {
            clear: if change.set & ATIME == 0 { 0 } else { ATIME },
            ..change
        };
        self.hidden.push(target.into());
        self.all.mounts.push(agent_protocol::Mount {
            source,
            target: target.into(),
            attributes: match options.recursive == Attributes::NONE {
                true => fresh(options.attributes),
                false => options.attributes,
            },
            recursive: fresh(options.recursive),
            propagation: options.propagation.filter(is_special),
        });
    }

    fn bind(
        &mut self,
        property: &str,
        mount: &Mount,
        target: &str,
        options: &Options,
    ) -> Result<(), Refused> {
        let at = format!("{property}.source");
        let source = mount.source().as_deref();
        let source = source.ok_or_else(|| value(&at, "", "a bind mount needs one"))?;
        let source = self.bundle.join(source);
        if let Some(usual) = self.usual(target) {
            if usual.target == "/dev/shm" {
                return self.shared_memory(&at, &source, options);
            }
            if bind::is_like_the_guests(target, &source) {
                self.warnings.push(format!(
                    "{property}: {target} is the guest's own, not the host's {}",
                    source.display()
                ));
                return self.usual_mount(property, usual, &options.without_data());
            }
        }
        if target == "/proc" || Path::new(target).starts_with("/proc") && !IN_PROC.contains(&target)
        {
            return Err(in_proc(property, target));
        }
        let source = match bind::look(&at, &source)? {
            Bound::Guest(path) => Source::Container { path },
            Bound::Host(path) => {
                let read_only = options.applied_to(0) & RDONLY != 0;
                if options.propagation.as_ref().is_some_and(is_of_the_host) {
                    self.warnings.push(format!(
                        "{property}: what the host mounts below {} later is not seen in the guest",
                        path.display()
                    ));
                }
                let name = self.shared.role.volume(self.all.volumes.len());
                self.all.volumes.push(CollectionEntry {
                    name: name.clone(),
                    path,
                    read_only,
                });
                Source::share(VOLUMES_TAG, name)
            }
        };
        self.push(source, target, options);
        Ok(())
    }

    /// Shared memory of an engine's making cannot be the guest's, but be as large. Whoever has it in
    /// common with another container of the VM has that one's.
    fn shared_memory(&mut self, at: &str, source: &Path, options: &Options) -> Result<(), Refused> {
        if let Some(container) = self.shared.ipc {
            let path = "/dev/shm".to_owned();
            let source = Source::Joined { container, path };
            self.push(source, "/dev/shm", &options.without_data());
            return Ok(());
        }
        self.warnings.push(format!(
            "{at}: /dev/shm is the guest's own, not the host's {}",
            source.display()
        ));
        let usual = USUAL.iter().find(|usual| usual.target == "/dev/shm");
        let Some(usual) = usual else { return Ok(()) };
        let size = bind::tmpfs_size(at, source)?;
        let size = size.map_or_else(|| "size=64m".to_owned(), |size| format!("size={size}"));
        let as_tmpfs = Options {
            data: vec![size],
            ..options.without_data()
        };
        self.usual_mount(at, usual, &as_tmpfs)
    }
}

impl Usual {
    /// Whether an option says what is so anyway.
    fn has(&self, name: &str, value: &str) -> bool {
        let known = self.options.iter().find(|known| known.0 == name);
        known.is_some_and(|(name, known)| match *name {
            "size" => {
                let bytes = size::parse(value).ok();
                bytes.is_some() && bytes == size::parse(known).ok()
            }
            "mode" | "ptmxmode" => value.trim_start_matches('0') == known.trim_start_matches('0'),
            _ => value == *known,
        })
    }
}

/// Whether an option is about the root directory of a tmpfs, which is made once and for all.
fn is_of_the_root(option: &str) -> bool {
    matches!(option.split('=').next(), Some("mode" | "uid" | "gid"))
}

fn in_proc(property: &str, target: &str) -> Refused {
    let reason = "in /proc something can be mounted on a few files only";
    value(format!("{property}.destination"), target, reason)
}

/// The place in the container, without `.`, `..` and repeated slashes; relative ones are taken for
/// absolute, as by runc.
fn target(property: &str, destination: &Path) -> Result<String, Refused> {
    text(&format!("{property}.destination"), destination)?;
    let mut parts: Vec<&str> = Vec::new();
    for component in destination.components() {
        match component {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if parts.is_empty() {
        let reason = "the root itself is not mounted over";
        return Err(value(
            format!("{property}.destination"),
            destination.to_string_lossy(),
            reason,
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}
