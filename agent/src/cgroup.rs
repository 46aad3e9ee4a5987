//! The cgroup of a container: every process of the container is born in it.
//!
//! Boundary: version 2 only. Processes are counted; other controllers are off unless a container asks
//! for them: the VM itself is the limit, and a memory controller would charge every page.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// How long killed processes may take to be gone.
const END_TIMEOUT: Duration = Duration::from_secs(1);

const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// Has the cgroups in `parent` count their processes, before any of them is in use: then it costs
/// next to nothing, and many engines limit the number of processes.
pub(crate) fn count_processes(parent: &OwnedFd) -> io::Result<()> {
    write(parent, SUBTREE_CONTROL, "+pids")
}

/// A cgroup of the agent's making; removed when this value is dropped and it is empty.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parent: Rc<OwnedFd>,
    name: String,
    dir: OwnedFd,
}

impl Cgroup {
    /// Makes a cgroup below `parent`, a directory of a cgroup2 file system.
    pub(crate) fn new(parent: &Rc<OwnedFd>, name: String) -> io::Result<Self> {
        fs::mkdirat(parent, &name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::openat(parent, &name, flags, Mode::empty())?;
        Ok(Self {
            parent: Rc::clone(parent),
            name,
            dir,
        })
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Writes into files of it. The controllers that they belong to are switched on if they are not:
    /// that takes long.
    pub(crate) fn configure(&self, files: &[(String, String)]) -> Result<(), CgroupError> {
        for (name, value) in files {
            let written = if name.contains('/') {
                Err(io::ErrorKind::InvalidFilename.into())
            } else {
                self.set(name, value)
            };
            written.map_err(|source| CgroupError {
                name: name.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        match write(&self.dir, name, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let controller = name.split('.').next().unwrap_or(name);
                write(&self.parent, SUBTREE_CONTROL, &format!("+{controller}"))?;
                write(&self.dir, name, value)
            }
            written => written,
        }
    }

    /// Brings the calling process in.
    pub(crate) fn enter(&self) -> io::Result<()> {
        write(&self.dir, "cgroup.procs", "0")
    }

    /// Ends every process at once.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let file = self.open("cgroup.kill", OFlags::WRONLY)?;
        rustix::io::write(file, b"1")?;
        Ok(())
    }

    /// Ends every process and waits until none is left, so that the cgroup can be removed.
    pub(crate) fn end(&self) -> io::Result<()> {
        let events = self.open("cgroup.events", OFlags::RDONLY)?;
        let timeout = Timespec::try_from(END_TIMEOUT).map_err(io::Error::other)?;
        self.kill()?;
        loop {
            let mut content = [0; 256];
            let length = rustix::io::pread(&events, &mut content, 0)?;
            if content[..length].starts_with(b"populated 0") {
                return Ok(());
            }
            // Told when that changes (cgroup-v2.rst of the kernel).
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Stops every process where it is, or lets them go on. The kernel is done with it soon after.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let file = self.open("cgroup.freeze", OFlags::WRONLY)?;
        rustix::io::write(file, if frozen { b"1" } else { b"0" })?;
        Ok(())
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        let file = self.open("cgroup.procs", OFlags::RDONLY)?;
        let mut content = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(file), &mut content)?;
        Ok(parse_processes(&content))
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(fs::openat(
            &self.dir,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }
}

/// A limit that is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("Failed to set {name}")]
pub(crate) struct CgroupError {
    name: String,
    source: io::Error,
}

fn write(dir: &OwnedFd, name: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = fs::openat(dir, name, flags, Mode::empty())?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Left behind if it is not empty: nothing else can be done about it.
        let _ = fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// One number a line; 0 stands for processes of other pid namespaces.
fn parse_processes(content: &[u8]) -> Vec<u32> {
    content
        .split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok())
        .filter(|pid| *pid != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_one_a_line() {
        assert_eq!(parse_processes(b"12\n0\n345\n"), [12, 345]);
        assert!(parse_processes(b"").is_empty());
        assert!(parse_processes(b"x\n-1\n99999999999\n").is_empty());
    }
}
