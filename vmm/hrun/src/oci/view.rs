//! What engines find who look into the shim's mount namespace, as podman does to copy files: the
//! container's root file system is its root. The shim itself goes on with the host's files, which are
//! there for nobody else.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::CWD,
    mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
        move_mount, open_tree, unmount,
    },
    process::{chdir, chroot, fchdir, pivot_root},
    thread::UnshareFlags,
};

/// The host's files, as long as this is held.
#[derive(Debug)]
pub(crate) struct HostFiles(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// Makes `root` the root of this thread's mount namespace, and keeps the host's files for the thread
/// and those that it starts.
#[expect(
    deprecated,
    reason = "what is unsafe about it is another flag's: this one shares nothing with anybody"
)]
pub(crate) fn show(root: &Path) -> io::Result<HostFiles> {
    let all = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::thread::unshare(UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let host = open_tree(CWD, "/", all)?;
    let shown = open_tree(CWD, root, all)?;
    let here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&shown, "", CWD, root, here)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH)?;
    fchdir(&host)?;
    chroot(".")?;
    chdir("/")?;
    Ok(HostFiles(host))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs, os::fd::AsFd, thread};

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;

    #[test]
    fn the_namespace_shows_the_root_and_the_thread_sees_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("inside"), "x").unwrap();
        let path = root.clone();
        thread::spawn(move || {
            let _host = show(&path).unwrap();
            fs::write(path.join("more"), "y").unwrap();
            fs::metadata("/etc").unwrap();
            // Whoever joins the namespace begins at its root.
            let shown = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
            let visitor = thread::spawn(move || visit(&shown));
            assert_eq!(visitor.join().unwrap(), ["inside", "more"]);
        })
        .join()
        .unwrap();
        assert!(root.join("more").exists());
    }

    /// What is in the root of a mount namespace.
    #[expect(deprecated, reason = "a thread of its own")]
    fn visit(namespace: &fs::File) -> Vec<OsString> {
        rustix::thread::unshare(UnshareFlags::FS).unwrap();
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        let entries = fs::read_dir("/").unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}
