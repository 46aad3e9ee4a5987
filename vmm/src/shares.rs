//! Entries of a share of a VM that runs: whoever may change the VMM's mounts adds and removes them.
//!
//! The VMM itself cannot mount anything, and is not asked: a process with CAP_SYS_ADMIN mounts what
//! is to be shared in the VMM's mount namespace, in the directory of a share that is a
//! [`Collection`](crate::config::ShareSource::Collection).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
    thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces},
};

use crate::{
    config::CollectionEntry,
    sandbox::{
        mount::{clone_mount, set_private, set_read_only, set_writable},
        share,
    },
};

/// Failure to change what a VM that runs shares.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The name could lead to another place.
    #[error("{0:?} is no name of an entry")]
    Name(String),
    /// What is to be shared cannot be had.
    #[error("Failed to share {path}")]
    Source {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VMM's mounts cannot be changed.
    #[error("Failed to {action} the entry {name:?} of a share of the VM")]
    Change {
        /// What was attempted.
        action: &'static str,
        /// The entry.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Adds an entry to share `index` of the VM whose VMM is the process `vmm`.
///
/// # Errors
///
/// There is nothing to be shared at the entry's path, an entry of this name is there already, the VMM
/// has ended, or the caller lacks CAP_SYS_ADMIN.
pub fn add(vmm: BorrowedFd<'_>, index: usize, entry: &CollectionEntry) -> Result<(), ShareError> {
    let name = checked(&entry.name)?;
    let source = || {
        let mount = clone_mount(&entry.path, true)?;
        set_private(mount.as_fd())?;
        if entry.read_only {
            set_read_only(mount.as_fd(), true)?;
        }
        let is_dir = FileType::from_raw_mode(fstat(&mount)?.st_mode) == FileType::Directory;
        Ok((mount, is_dir))
    };
    let (mount, is_dir) = source().map_err(|error: Errno| ShareError::Source {
        path: entry.path.clone(),
        source: error.into(),
    })?;
    let place = share(index).join(name);
    let added = inside(vmm, || {
        let root = writable_root()?;
        let relative = relative(&place);
        if is_dir {
            mkdirat(&root, relative, Mode::RUSR | Mode::XUSR)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&root, relative, flags, Mode::RUSR)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let mounted = move_mount(&mount, "", CWD, &place, flags);
        if mounted.is_err() {
            // The first error is the one that matters.
            let _ = unlink(&root, relative);
        }
        mounted
    });
    added.map_err(changing("add", name))
}

/// Removes an entry, which need not be there, from share `index` of the VM whose VMM is the process
/// `vmm`. What the guest has open in it stays open; on the host it is unmounted once that is closed.
///
/// # Errors
///
/// The VMM has ended, or the caller lacks CAP_SYS_ADMIN.
pub fn remove(vmm: BorrowedFd<'_>, index: usize, name: &str) -> Result<(), ShareError> {
    let name = checked(name)?;
    let place = share(index).join(name);
    let removed = inside(vmm, || {
        match unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
        match unlink(&writable_root()?, relative(&place)) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    });
    removed.map_err(changing("remove", name))
}

fn changing(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> ShareError {
    move |source| ShareError::Change {
        action,
        name: name.into(),
        source,
    }
}

fn checked(name: &str) -> Result<&str, ShareError> {
    let is_name = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    is_name
        .then_some(name)
        .ok_or_else(|| ShareError::Name(name.into()))
}

fn relative(place: &Path) -> &Path {
    place.strip_prefix("/").unwrap_or(place)
}

fn unlink(root: &OwnedFd, relative: &Path) -> rustix::io::Result<()> {
    match unlinkat(root, relative, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR) => unlinkat(root, relative, AtFlags::empty()),
        done => done,
    }
}

/// The VMM's root file system once more, where it can be written. The VMM's own mount of it stays
/// read-only.
fn writable_root() -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags)?;
    set_writable(root.as_fd())?;
    Ok(root)
}

/// Runs `change` in the mount namespace of the process `vmm`, in a thread of its own.
fn inside(
    vmm: BorrowedFd<'_>,
    change: impl FnOnce() -> rustix::io::Result<()> + Send,
) -> io::Result<()> {
    thread::scope(|scope| {
        let visitor = thread::Builder::new().name("shares".into());
        let visitor = visitor.spawn_scoped(scope, || {
            // SAFETY: only this thread's root and working directory become its own; nothing in it
            // depends on sharing them.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            move_into_thread_name_spaces(vmm, ThreadNameSpaceType::MOUNT)?;
            change()
        })?;
        match visitor.join() {
            Ok(changed) => Ok(changed?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Child, Command, Stdio},
    };

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// A process with a mount namespace as a VMM has it: `/shares/0`, read-only.
    struct Vmm {
        child: Child,
        pidfd: OwnedFd,
    }

    impl Vmm {
        fn new(root: &Path) -> Self {
            fs::create_dir_all(root).unwrap();
            let script = "mount -t tmpfs x \"$1\" && mkdir -p \"$1/shares/0\" && cd \"$1\" \
                 && mkdir old && mount -o remount,bind,ro . && pivot_root . old 2>&1 && echo ready \
                 && read end";
            // What it runs is still reached over descriptors and mapped files.
            let mut child = Command::new("unshare")
                .args([
                    "--mount",
                    "--propagation",
                    "private",
                    "sh",
                    "-c",
                    script,
                    "sh",
                ])
                .arg(root)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = String::new();
            let out = child.stdout.take().unwrap();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said).unwrap();
            assert_eq!(said, "ready\n");
            let pid = Pid::from_child(&child);
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            Self { child, pidfd }
        }

        /// What it sees.
        fn path(&self, path: &str) -> PathBuf {
            PathBuf::from(format!("/proc/{}/root{path}", self.child.id()))
        }
    }

    impl Drop for Vmm {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn entry(name: &str, path: &Path, read_only: bool) -> CollectionEntry {
        CollectionEntry {
            name: name.into(),
            path: path.into(),
            read_only,
        }
    }

    #[test]
    fn entries_come_and_go_while_the_process_runs() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a mount namespace needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "x").unwrap();
        let vmm = Vmm::new(&dir.path().join("root"));
        let vmm_fd = vmm.pidfd.as_fd();
        add(vmm_fd, 0, &entry("1", &shared, false)).unwrap();
        add(vmm_fd, 0, &entry("2", &shared.join("file"), true)).unwrap();
        fs::write(vmm.path("/shares/0/1/new"), "y").unwrap();
        assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "y");
        assert_eq!(fs::read_to_string(vmm.path("/shares/0/2")).unwrap(), "x");
        assert!(fs::write(vmm.path("/shares/0/2"), "z").is_err());
        assert!(fs::write(vmm.path("/shares/0/3"), "z").is_err());
        let again = add(vmm_fd, 0, &entry("1", &shared, false));
        assert!(matches!(again, Err(ShareError::Change { .. })), "{again:?}");
        for name in ["1", "2", "1"] {
            remove(vmm_fd, 0, name).unwrap();
        }
        assert_eq!(fs::read_dir(vmm.path("/shares/0")).unwrap().count(), 0);
        assert!(shared.join("file").exists());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("/shares/0"), "nothing spreads to the host");
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        for name in ["", ".", "..", "a/b", "a\0"] {
            let refused = add(own.as_fd(), 0, &entry(name, Path::new("/"), false));
            assert!(matches!(refused, Err(ShareError::Name(_))), "{name:?}");
        }
        let nothing = entry("1", Path::new("/no/such/place"), false);
        let refused = add(own.as_fd(), 0, &nothing).unwrap_err();
        assert!(refused.to_string().contains("/no/such/place"));
    }
}
