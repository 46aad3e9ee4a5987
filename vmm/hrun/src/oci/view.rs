//! What engines find who look into the shim's mount namespace, as podman does to copy files: the
//! container's root file system is its root, and what stands for the container on the host, the shim
//! and the VM, is what they find for processes. The shim itself goes on with the host's files, which
//! are there for nobody else.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{chdir, chroot, fchdir, pivot_root},
    thread::UnshareFlags,
};
use vmm::sandbox::{attach, clone_mount, tmpfs};

/// Files of procfs that are about no process, and that who lists processes reads (proc(5)).
const TIMES: [&str; 2] = ["stat", "uptime"];

/// The host's files, as long as this is held.
#[derive(Debug)]
pub(crate) struct HostFiles(#[expect(dead_code, reason = "held, not used")] OwnedFd);

/// Makes `root` the root of this thread's mount namespace, with these processes, and keeps the host's
/// files for the thread and those that it starts.
#[expect(
    deprecated,
    reason = "what is unsafe about it is another flag's: this one shares nothing with anybody"
)]
pub(crate) fn show(root: &Path, processes: &[i32]) -> io::Result<HostFiles> {
    rustix::thread::unshare(UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let host = clone_mount(Path::new("/"), true)?;
    let shown = clone_mount(root, true)?;
    attach(&shown, CWD, root)?;
    show_processes(shown.as_fd(), processes)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH)?;
    fchdir(&host)?;
    chroot(".")?;
    chdir("/")?;
    Ok(HostFiles(host))
}

/// Shows processes in `/proc` of `root`, each as the host's own procfs has it.
fn show_processes(root: BorrowedFd<'_>, processes: &[i32]) -> io::Result<()> {
    let proc = tmpfs()?;
    match attach(&proc, root, Path::new("proc")) {
        // The image has no such directory, or something else there: then nobody is shown.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => return Ok(()),
        attached => attached?,
    }
    let show = |name: &str| {
        let source = Path::new("/proc").join(name);
        match clone_mount(&source, false).and_then(|shown| attach(shown, &proc, Path::new(name))) {
            // It has just ended.
            Err(Errno::NOENT) => Ok(()),
            shown => shown,
        }
    };
    for pid in processes {
        let name = pid.to_string();
        mkdirat(&proc, &name, Mode::from_raw_mode(0o555))?;
        show(&name)?;
    }
    for name in TIMES {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&proc, name, flags, Mode::from_raw_mode(0o444))?;
        show(name)?;
    }
    Ok(())
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
            let _host = show(&path, &[]).unwrap();
            fs::write(path.join("more"), "y").unwrap();
            fs::metadata("/etc").unwrap();
            // Whoever joins the namespace begins at its root.
            let shown = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
            let visitor = thread::spawn(move || visit(&shown, "/"));
            assert_eq!(visitor.join().unwrap(), ["inside", "more"]);
        })
        .join()
        .unwrap();
        assert!(root.join("more").exists());
    }

    #[test]
    fn the_namespace_shows_the_processes_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        let root = dir.path().to_owned();
        let pid = i32::try_from(std::process::id()).unwrap();
        thread::spawn(move || {
            // The second does not exist.
            let _host = show(&root, &[pid, i32::MAX]).unwrap();
            assert!(fs::exists("/proc/1").unwrap());
            let shown = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
            let again = shown.try_clone().unwrap();
            let visitor = thread::spawn(move || visit(&shown, "/proc"));
            let (pid, none) = (pid.to_string(), i32::MAX.to_string());
            let mut expected = ["stat".to_owned(), "uptime".into(), pid.clone(), none];
            expected.sort();
            assert_eq!(visitor.join().unwrap(), expected.map(OsString::from));
            let visitor = thread::spawn(move || visit(&again, &format!("/proc/{pid}/ns")));
            assert!(visitor.join().unwrap().contains(&"mnt".into()));
        })
        .join()
        .unwrap();
        assert_eq!(fs::read_dir(dir.path().join("proc")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_proc_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("rootfs"), dir.path().join("other"));
        for dir in [&root, &other] {
            fs::create_dir(dir).unwrap();
        }
        std::os::unix::fs::symlink(&other, root.join("proc")).unwrap();
        thread::spawn(move || {
            let _host = show(&root, &[1]).unwrap();
            assert_eq!(fs::read_dir(other).unwrap().count(), 0);
        })
        .join()
        .unwrap();
    }

    /// What is in a directory of a mount namespace.
    #[expect(deprecated, reason = "a thread of its own")]
    fn visit(namespace: &fs::File, path: &str) -> Vec<OsString> {
        rustix::thread::unshare(UnshareFlags::FS).unwrap();
        let kind = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}
