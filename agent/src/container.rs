//! A container: namespaces, the usual mounts, a root file system, and a process that waits to
//! become the container's first.
//!
//! Everything that does not depend on the container, a [`Sandbox`], is made before anybody asks
//! for it: it costs a template's boot, not a container's start. What is left for [`Container`] is
//! to mount the root file system, move the prepared mounts into it and change roots.
//!
//! What the container gets is docker's default, with what a VM of its own makes needless left
//! out: `/sys` and `/sys/fs/cgroup` are read-only and the capabilities are docker's fourteen, so
//! that software behaves alike, but `/proc` is not masked: the kernel behind it belongs to the
//! container alone. There is no user namespace; the network is the VM's.
//!
//! Boundary: how a root file system is put together is in `assembly`, what runs in a container in
//! `process`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_protocol::{Mount, ProcessId, Source};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    self, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::process;

use crate::assembly::Assembly;
use crate::cgroup::{Cgroup, CgroupError};
use crate::confine::Confined;
use crate::joined::Joins;
use crate::paths::{self, Missing};
use crate::sys::{self, Stack, Twin};

/// Failure to set a container up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("Failed to {action} {what}")]
    Setup {
        action: &'static str,
        what: String,
        source: io::Error,
    },
    #[error("Failed to limit the container by its cgroup")]
    Cgroup(#[source] CgroupError),
    #[error("Host name {0:?} is longer than 64 bytes")]
    HostName(String),
    #[error("The container's first process died while it was set up")]
    Died,
    #[error("{0} is a place in /proc, where nothing can be mounted")]
    InProc(String),
    #[error("The guest's kernel has no device {numbers} for {path}")]
    NoDevice { path: String, numbers: String },
}

/// Puts a failure into words.
pub(crate) fn failed<E: Into<io::Error>>(
    action: &'static str,
    what: impl Into<String>,
) -> impl FnOnce(E) -> ContainerError {
    move |source| ContainerError::Setup {
        action,
        what: what.into(),
        source: source.into(),
    }
}

pub(crate) type Result<T, E = ContainerError> = std::result::Result<T, E>;

/// Mounts a share of the host, by its tag, on a directory.
pub type MountShare = fn(tag: &str, target: &Path) -> io::Result<()>;

/// Mounts a virtio-fs share.
///
/// # Errors
///
/// Those of `mount(2)`: there is no such tag, or the host refuses.
pub fn mount_virtiofs(tag: &str, target: &Path) -> io::Result<()> {
    mount::mount(tag, target, "virtiofs", MountFlags::empty(), None)?;
    Ok(())
}

/// Where containers are put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// A directory for it, in a mount namespace of each container's own.
    pub(crate) staging: &'a Path,
    pub(crate) mount_share: MountShare,
}

/// A share that is mounted where nobody sees it, so that its file system and what is known of its
/// files outlive the containers that have it mounted.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) tag: String,
    mount: OwnedFd,
}

impl Kept {
    /// Looks at a place in it again, which the kernel may have thought to know: should it be gone,
    /// all that is known of what was below goes as well.
    pub(crate) fn look_again(&self, path: &str) -> io::Result<()> {
        match fs::statat(&self.mount, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn new(place: Place<'_>, tag: &str) -> Result<Self> {
        let target = place.at(KEPT);
        make_dir(&target)?;
        (place.mount_share)(tag, &target).map_err(failed("mount share", tag))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = mount::open_tree(CWD, &target, flags).map_err(failed("keep share", tag));
        mount::unmount(&target, UnmountFlags::DETACH).map_err(failed("hide share", tag))?;
        Ok(Self {
            tag: tag.into(),
            mount: mount?,
        })
    }
}

/// Namespaces with the usual mounts, for a container that is not known yet.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The share that is its root already: the twin lives in it, with the usual mounts in place.
    root: Option<String>,
    twin: Twin,
    cgroup: Cgroup,
    devices: Devices,
    /// The capabilities that its processes can have.
    bounding: u64,
    shares_processes: bool,
    namespaces: Vec<OwnedFd>,
}

/// What a sandbox is to be.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Its own.
    pub(crate) cgroup: Cgroup,
    /// The share that is its root, if that is known.
    pub(crate) root: Option<String>,
    /// The capabilities that its processes can have.
    pub(crate) bounding: u64,
    /// One to spare, if there is one.
    pub(crate) stack: Option<Stack>,
    pub(crate) joins: Joins,
    /// The agent itself.
    pub(crate) agent: BorrowedFd<'a>,
}

/// What the agent keeps of the container's `/dev`, `/proc` and `/sys`.
#[derive(Debug)]
pub(crate) struct Devices {
    /// `/dev/null`
    pub(crate) null: OwnedFd,
    /// `/dev/pts`
    pub(crate) pts: OwnedFd,
    /// `/proc`
    pub(crate) proc: OwnedFd,
    /// `/sys`
    pub(crate) sys: OwnedFd,
    /// `/proc` and `/sys` as engines want them.
    pub(crate) confined: Confined,
}

/// Directories below the staging directory: the container's root, and what is moved into it.
pub(crate) const ROOT: &str = "root";
pub(crate) const SHARE: &str = "share";
const KEPT: &str = "kept";
const STAGED: [&str; 3] = ["proc", "sys", "dev"];

/// Character devices of every container: name, major, minor (devices.txt of the kernel).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes of a twin what every process of a container is from the beginning: the head of a session
/// of its own, without the agent's scheduling policy and without more rights than it can have.
pub(crate) fn settle(bounding: u64) -> io::Result<()> {
    sys::set_scheduler(libc::SCHED_OTHER)?;
    process::setsid()?;
    bound_capabilities(u64::MAX, bounding)
}

/// Takes away what a container's root may not do, of what it may now. It is the bounding set alone
/// that decides what programs of root get; the caller itself keeps its rights until it executes
/// one.
pub(crate) fn bound_capabilities(now: u64, bounding: u64) -> io::Result<()> {
    let taken = now & !bounding;
    for capability in (0..64).filter(|capability| taken & (1 << capability) != 0) {
        if !sys::drop_bounding_capability(capability)? {
            break;
        }
    }
    Ok(())
}

impl Sandbox {
    /// Prepares a sandbox whose mounts are staged in a mount namespace of its own, in the share
    /// `root` if that is known. Its processes can have the
    /// capabilities `bounding`.
    pub(crate) fn prepare(place: Place<'_>, wanted: Wanted<'_>) -> Result<Self> {
        let Wanted {
            cgroup,
            root,
            bounding,
            stack,
            joins,
            agent,
        } = wanted;
        let stack = stack
            .map_or_else(Stack::new, Ok)
            .map_err(failed("make", "a stack"))?;
        let mut twin = joins
            .spawn(agent, || {
                Twin::spawn(joins.own(), Some(cgroup.dir()), stack)
            })
            .map_err(failed("make", "the container's namespaces"))?;
        let devices = twin
            .run(|| {
                joins
                    .enter()
                    .map_err(failed("enter", "another container's namespaces"))?;
                let devices = stage(place.staging, bounding)?;
                if let Some(tag) = &root {
                    let root = place.mount_root(tag)?;
                    place.move_in(root.as_fd(), None)?;
                    change_root(root.as_fd())?;
                }
                Ok(devices)
            })
            .ok_or(ContainerError::Died)??;
        Ok(Self {
            root,
            namespaces: namespaces_of(&twin),
            twin,
            cgroup,
            devices,
            bounding,
            shares_processes: joins.pid.is_some(),
        })
    }

    /// Whether it can become this container.
    pub(crate) fn fits(&self, spec: &agent_protocol::Container) -> bool {
        spec.joined.is_empty()
            && spec.capabilities & !self.bounding == 0
            && (self.root.is_none() || self.has_root(&spec.root))
    }

    /// Whether this is what was mounted already.
    fn has_root(&self, root: &Mount) -> bool {
        match &root.source {
            Source::Share { tag, path } => path.is_empty() && self.root.as_ref() == Some(tag),
            _ => false,
        }
    }
}

impl Place<'_> {
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.staging.join(name)
    }

    /// Makes a share the root.
    pub(crate) fn mount_root(&self, tag: &str) -> Result<OwnedFd> {
        let target = self.at(ROOT);
        (self.mount_share)(tag, &target).map_err(failed("mount share", tag))?;
        open_place(&target)
    }

    /// Moves the usual mounts to their places in the root, or those that are confined already.
    pub(crate) fn move_in(&self, root: BorrowedFd<'_>, confined: Option<&Confined>) -> Result<()> {
        for name in STAGED {
            if let Some(tree) = confined.and_then(|confined| confined.tree(name)) {
                let target = paths::open_or_make(root, name, Missing::Directory)
                    .map_err(failed("make", format!("/{name}")))?;
                attach(tree, Path::new(""), target.as_fd(), &format!("/{name}"))?;
                continue;
            }
            let staged = self.at(name);
            // Usually there is a directory of that name, and one call is enough. It follows no
            // link.
            if mount::move_mount(CWD, &staged, root, name, MoveMountFlags::empty()).is_ok() {
                continue;
            }
            let target = paths::open_or_make(root, name, Missing::Directory)
                .map_err(failed("make", format!("/{name}")))?;
            attach(CWD, &staged, target.as_fd(), &format!("/{name}"))?;
        }
        Ok(())
    }
}

/// Namespaces to hold on to; a kernel that cannot give them away serves containers as well.
fn namespaces_of(twin: &Twin) -> Vec<OwnedFd> {
    [sys::PIDFD_GET_MNT_NAMESPACE, sys::PIDFD_GET_IPC_NAMESPACE]
        .into_iter()
        .filter_map(|request| sys::namespace(twin.pidfd()?, request).ok())
        .collect()
}

/// Runs in the sandbox: makes its usual mounts and drops what it will not need.
fn stage(staging: &Path, bounding: u64) -> Result<Devices> {
    let nosuid = MountFlags::NOSUID;
    let inert = nosuid | MountFlags::NOEXEC | MountFlags::NODEV;
    let at = |name: &str| staging.join(name);
    let mount =
        |kind: &'static str, name: &str, flags: MountFlags, options: Option<&std::ffi::CStr>| {
            mount::mount(kind, at(name), kind, flags, options).map_err(failed("mount", kind))
        };

    sys::unshare_cgroup().map_err(failed("make", "a cgroup namespace"))?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount::mount_change("/", private).map_err(failed("make private", "the mounts"))?;
    process::umask(Mode::empty());
    for name in STAGED.into_iter().chain([ROOT, SHARE]) {
        make_dir(&at(name))?;
    }

    mount("proc", "proc", inert, None)?;
    mount("sysfs", "sys", inert, None)?;
    mount("cgroup2", "sys/fs/cgroup", inert, None)?;
    sys::mount_read_only(CWD, &c_path(&at("sys"))?, true)
        .map_err(failed("make read-only", "/sys"))?;

    mount(
        "tmpfs",
        "dev",
        nosuid | MountFlags::STRICTATIME,
        Some(c"mode=755,size=65536k"),
    )?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        let device = fs::makedev(major, minor);
        fs::mknodat(
            CWD,
            at("dev").join(name),
            FileType::CharacterDevice,
            mode,
            device,
        )
        .map_err(failed("make", format!("/dev/{name}")))?;
    }
    for (name, target) in LINKS {
        fs::symlink(target, at("dev").join(name))
            .map_err(failed("make", format!("/dev/{name}")))?;
    }
    // A terminal is mounted over it.
    fs::mknodat(
        CWD,
        at("dev/console"),
        FileType::RegularFile,
        Mode::from_raw_mode(0o600),
        0,
    )
    .map_err(failed("make", "/dev/console"))?;
    for name in ["dev/pts", "dev/shm", "dev/mqueue"] {
        make_dir(&at(name))?;
    }
    let pts_options = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount(
        "devpts",
        "dev/pts",
        nosuid | MountFlags::NOEXEC,
        Some(pts_options),
    )?;
    mount("tmpfs", "dev/shm", inert, Some(c"mode=1777,size=64m"))?;
    mount("mqueue", "dev/mqueue", inert, None)?;

    settle(bounding).map_err(failed("settle", "the container's first process"))?;
    process::umask(Mode::from_raw_mode(0o022));
    let open = |name: &str, flags| {
        fs::open(at(name), flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open", format!("/{name}")))
    };
    let null = open("dev/null", OFlags::RDWR)?;
    Ok(Devices {
        confined: Confined::new(staging, null.as_fd())?,
        null,
        pts: open("dev/pts", OFlags::PATH | OFlags::DIRECTORY)?,
        proc: open("proc", OFlags::PATH | OFlags::DIRECTORY)?,
        sys: open("sys", OFlags::PATH | OFlags::DIRECTORY)?,
    })
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed("make", path.display().to_string())(error)),
    }
}

fn c_path(path: &Path) -> Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|error| failed("use", path.display().to_string())(io::Error::from(error)))
}

/// How far a container's first process has come.
#[derive(Debug)]
pub(crate) enum Init {
    /// It waits for its program.
    Waiting(Twin),
    /// It runs its program.
    Running(ProcessId),
    /// It ended, and with it every other process; or it could not be started.
    Gone,
}

/// A container that is set up.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) init: Init,
    pub(crate) cgroup: Cgroup,
    pub(crate) devices: Devices,
    /// The capabilities that its processes can have.
    pub(crate) bounding: u64,
    /// Whether others are in its pid namespace, which does not end with its first process.
    pub(crate) shares_processes: bool,
    /// Its root directory, as a mere place.
    pub(crate) root: OwnedFd,
    /// Namespaces that take long to dissolve: as long as these are open, the end of the first
    /// process does not wait until everything is unmounted.
    _namespaces: Vec<OwnedFd>,
}

impl Container {
    /// Turns a sandbox into a container; `joined` is what of others is mounted in it. If that fails, the sandbox is gone with all its mounts.
    pub(crate) fn create(
        sandbox: Sandbox,
        spec: &agent_protocol::Container,
        place: Place<'_>,
        joined: Vec<OwnedFd>,
    ) -> Result<Self> {
        if spec.hostname.len() > 64 {
            return Err(ContainerError::HostName(spec.hostname.clone()));
        }
        sandbox
            .cgroup
            .configure(&spec.cgroup)
            .map_err(ContainerError::Cgroup)?;
        let prepared = sandbox.has_root(&spec.root);
        // Last, as it must be gone before its cgroup can be removed.
        let Sandbox {
            root: _,
            cgroup,
            devices,
            bounding,
            shares_processes,
            namespaces,
            mut twin,
        } = sandbox;
        let root = twin
            .run(|| Assembly::new(place, prepared, &devices, joined).assemble(spec))
            .ok_or(ContainerError::Died)??;
        Ok(Self {
            init: Init::Waiting(twin),
            cgroup,
            devices,
            bounding,
            shares_processes,
            root,
            _namespaces: namespaces,
        })
    }
}

/// Changes to the root directory `root`, a mount.
pub(crate) fn change_root(root: BorrowedFd<'_>) -> Result<()> {
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and with
    // it goes everything of the agent's.
    process::fchdir(root)
        .and_then(|()| process::pivot_root(".", "."))
        .and_then(|()| mount::unmount(".", UnmountFlags::DETACH))
        .map_err(failed("change to", "the root file system"))
}

/// Attaches a mount to a place in the container; `from_path` is empty for the mount `from` itself.
pub(crate) fn attach(
    from: BorrowedFd<'_>,
    from_path: &Path,
    to: BorrowedFd<'_>,
    target: &str,
) -> Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    if from_path.as_os_str().is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    }
    mount::move_mount(from, from_path, to, "", flags).map_err(failed("mount on", target))
}

pub(crate) fn open_place(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(failed("open", path.display().to_string()))
}

pub(crate) fn is_dir(place: BorrowedFd<'_>) -> Result<bool> {
    let stat = fs::fstat(place).map_err(failed("inspect", "a mount's source"))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

pub(crate) fn mount_tmpfs(target: &Path, options: &str) -> Result<()> {
    let data = std::ffi::CString::new(options)
        .map_err(|error| failed("mount", "tmpfs")(io::Error::from(error)))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount::mount("tmpfs", target, "tmpfs", flags, data.as_c_str()).map_err(failed("mount", "tmpfs"))
}
