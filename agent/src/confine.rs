//! What a container must not see, must not write, and finds set: masked and read-only paths and
//! kernel parameters of the OCI specification.
//!
//! Paths are looked up in the container's root by descriptors, before anything runs in it: whatever
//! an image has in their place leads nowhere else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent_protocol::{Mount, Source};
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process;

use crate::container::{ContainerError, Devices, attach, failed, is_dir, make_dir, open_place};
use crate::{paths, sys};

/// What every engine asks for, of what there is in a guest: see [`Confined`].
const USUAL_MASKED: [&str; 3] = ["/proc/kcore", "/proc/timer_list", "/sys/firmware"];
const USUAL_READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// `/proc` and `/sys` once more, confined as usual: making these mounts takes a guest longer than
/// all else that a container needs, so it is done before anybody asks.
///
/// They are attached nowhere. Those that nobody wants are kept, as their end takes time as well.
#[derive(Debug)]
pub(crate) struct Confined {
    proc: OwnedFd,
    sys: OwnedFd,
    /// The empty directory in the second one that hides another: once that is attached, this can
    /// be mounted in further places, which is cheaper than a new file system.
    empty: Option<OwnedFd>,
}

impl Confined {
    /// Makes them of what is mounted below `staging`, in a mount namespace of the caller's own.
    pub(crate) fn new(staging: &Path, null: BorrowedFd<'_>) -> Result<Self, ContainerError> {
        let at = staging.join("confined");
        make_dir(&at)?;
        let tree = |name: &str| {
            let place = paths::open(open_place(staging)?.as_fd(), name)
                .map_err(failed("open", format!("/{name}")))?;
            let tree = clone_of(place.as_fd()).map_err(failed("clone", format!("/{name}")))?;
            // Only what is attached can be mounted on.
            let target = open_place(&at)?;
            attach(tree.as_fd(), Path::new(""), target.as_fd(), name)?;
            let usual = |paths: &[&'static str]| -> Vec<&'static str> {
                let below = |path: &&'static str| path.strip_prefix('/')?.strip_prefix(name);
                paths.iter().filter_map(below).collect()
            };
            for path in usual(&USUAL_READ_ONLY) {
                unless_missing(make_read_only(tree.as_fd(), path))
                    .map_err(failed("make read-only", path))?;
            }
            for path in usual(&USUAL_MASKED) {
                unless_missing(mask(tree.as_fd(), null, None, path))
                    .map_err(failed("mask", path))?;
            }
            let whole = clone_of(tree.as_fd()).map_err(failed("clone", format!("/{name}")))?;
            mount::unmount(&at, UnmountFlags::DETACH).map_err(failed("detach", name))?;
            Ok(whole)
        };
        let sys = tree("sys")?;
        Ok(Self {
            proc: tree("proc")?,
            empty: paths::open(sys.as_fd(), "/firmware").ok(),
            sys,
        })
    }

    /// Whether this is part of what a container is to have.
    pub(crate) fn suits(spec: &agent_protocol::Container) -> bool {
        let asks = |asked: &[String], usual: &[&str]| {
            let mut usual = usual.iter();
            usual.all(|path| asked.iter().any(|asked| asked == path))
        };
        // What is mounted over them is to be confined as well.
        let hides = |mount: &Mount| {
            matches!(&*mount.target, "/proc" | "/sys")
                && !matches!(mount.source, Source::Present { .. })
        };
        asks(&spec.readonly_paths, &USUAL_READ_ONLY)
            && asks(&spec.masked_paths, &USUAL_MASKED)
            && !spec.mounts.iter().any(hides)
    }

    /// The tree for this place of the root.
    pub(crate) fn tree(&self, name: &str) -> Option<BorrowedFd<'_>> {
        match name {
            "proc" => Some(self.proc.as_fd()),
            "sys" => Some(self.sys.as_fd()),
            _ => None,
        }
    }
}

/// Confines a container that is put together in `root`, which has the usual confinement already if
/// `confined`; runs in the sandbox.
pub(crate) fn apply(
    root: BorrowedFd<'_>,
    devices: &Devices,
    spec: &agent_protocol::Container,
    confined: bool,
) -> Result<(), ContainerError> {
    for (name, value) in &spec.sysctls {
        set(devices.proc.as_fd(), name, value).map_err(failed("set the kernel parameter", name))?;
    }
    let is_left = |path: &&String, usual: &[&str]| !(confined && usual.contains(&path.as_str()));
    let left = spec.readonly_paths.iter();
    for path in left.filter(|path| is_left(path, &USUAL_READ_ONLY)) {
        unless_missing(make_read_only(root, path)).map_err(failed("make read-only", path))?;
    }
    let left = spec.masked_paths.iter();
    for path in left.filter(|path| is_left(path, &USUAL_MASKED)) {
        let empty = devices.confined.empty.as_ref().filter(|_| confined);
        let masked = mask(root, devices.null.as_fd(), empty, path);
        unless_missing(masked).map_err(failed("mask", path))?;
    }
    Ok(())
}

/// What is not there needs no confinement.
fn unless_missing(result: Result<(), ConfineError>) -> io::Result<()> {
    match result {
        Err(ConfineError::Missing) | Ok(()) => Ok(()),
        Err(ConfineError::System(error)) => Err(error),
    }
}

enum ConfineError {
    Missing,
    System(io::Error),
}

impl<E: Into<io::Error>> From<E> for ConfineError {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

fn find(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, ConfineError> {
    paths::open(root, path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ConfineError::Missing,
        _ => error.into(),
    })
}

fn mask(
    root: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
    empty: Option<&OwnedFd>,
    path: &str,
) -> Result<(), ConfineError> {
    let target = find(root, path)?;
    let hide_by = |source: BorrowedFd<'_>| {
        let source = clone_of(source)?;
        attach(source.as_fd(), Path::new(""), target.as_fd(), path).map_err(io::Error::other)?;
        Ok(())
    };
    if is_dir(target.as_fd()).map_err(io::Error::other)? {
        if let Some(empty) = empty {
            return hide_by(empty.as_fd());
        }
        // mount(2) wants a path, and this is the one that nothing can redirect.
        process::fchdir(&target)?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let options = c"nr_blocks=1,nr_inodes=1";
        mount::mount("tmpfs", ".", "tmpfs", flags, Some(options))?;
        return Ok(());
    }
    hide_by(null)
}

fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<(), ConfineError> {
    let target = find(root, path)?;
    let tree = clone_of(target.as_fd())?;
    sys::mount_read_only(tree.as_fd(), c"", true)?;
    attach(tree.as_fd(), Path::new(""), target.as_fd(), path).map_err(io::Error::other)?;
    Ok(())
}

/// A mount of what is at `place` and below, attached nowhere.
pub(crate) fn clone_of(place: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    mount::open_tree(place, "", flags)
}

/// Sets a kernel parameter by its name as sysctl(8) has it: with dots for slashes, or with slashes.
fn set(proc: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let path = match name.find(['.', '/']).map(|first| &name[first..=first]) {
        // Dots in names are written as slashes then, as in net.ipv4.conf.eth0/1.forwarding.
        Some(".") => name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Errno::INVAL.into());
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = fs::openat2(proc, format!("sys/{path}"), flags, Mode::empty(), resolve)?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}
