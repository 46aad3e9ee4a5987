//! What a container shares with others of its VM: namespaces, and what is mounted in them.
//!
//! Boundary: the others are known by their first processes; which those are is known to `agent`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent_protocol::Namespace;
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::confine;
use crate::container::{ContainerError, Result, failed, open_place};
use crate::paths;
use crate::sys::{Stack, Twin};

/// Namespaces of other containers, by their first processes.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
    pub(crate) pid: Option<OwnedFd>,
}

impl Joins {
    pub(crate) fn add(&mut self, namespace: Namespace, first: OwnedFd) {
        let place = match namespace {
            Namespace::Ipc => &mut self.ipc,
            Namespace::Uts => &mut self.uts,
            Namespace::Pid => &mut self.pid,
        };
        *place = Some(first);
    }

    /// The namespaces that a container is to have for itself (`CLONE_NEW*`).
    pub(crate) fn own(&self) -> i32 {
        let unless = |joined: &Option<OwnedFd>, flag| if joined.is_some() { 0 } else { flag };
        libc::CLONE_NEWNS
            | unless(&self.ipc, libc::CLONE_NEWIPC)
            | unless(&self.uts, libc::CLONE_NEWUTS)
            | unless(&self.pid, libc::CLONE_NEWPID)
    }

    /// Makes a process in the pid namespace that is joined, if one is. `agent` is the agent itself.
    pub(crate) fn spawn<T>(
        &self,
        agent: BorrowedFd<'_>,
        spawn: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.pid {
            Some(first) => born_beside(first.as_fd(), agent, spawn)?,
            None => spawn(),
        }
    }

    /// Enters the others, in the process that was made. Before anything is mounted: some file
    /// systems show the namespaces of who mounts them.
    pub(crate) fn enter(&self) -> rustix::io::Result<()> {
        for (first, kind) in [
            (&self.ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
            (
                &self.uts,
                ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            ),
        ] {
            if let Some(first) = first {
                move_into_thread_name_spaces(first.as_fd(), kind)?;
            }
        }
        Ok(())
    }
}

/// Has children born in the pid namespace of the process `first` while `spawn` runs; `agent`, who
/// calls, stays where it is.
///
/// # Errors
///
/// `ESRCH`: that process is gone.
pub(crate) fn born_beside<T>(
    first: BorrowedFd<'_>,
    agent: BorrowedFd<'_>,
    spawn: impl FnOnce() -> T,
) -> rustix::io::Result<T> {
    let enter = |process| move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID);
    enter(first)?;
    let spawned = spawn();
    enter(agent)?;
    Ok(spawned)
}

/// A mount, attached nowhere yet, of what another container has at `path`; `first` is its first
/// process. A mount can be copied by those only who are in its namespace, so somebody goes there.
pub(crate) fn mount_of(first: BorrowedFd<'_>, path: &str) -> Result<OwnedFd> {
    let stack = Stack::new().map_err(failed("make", "a stack"))?;
    let mut visitor = Twin::spawn(0, None, stack).map_err(failed("make", "a process"))?;
    visitor
        .run(|| {
            move_into_thread_name_spaces(first, ThreadNameSpaceType::MOUNT).map_err(|error| {
                match error {
                    Errno::SRCH => ContainerError::Died,
                    error => failed("enter", "the other container")(error),
                }
            })?;
            let root = open_place(Path::new("/"))?;
            let place = paths::open(root.as_fd(), path).map_err(failed("open", path))?;
            confine::clone_of(place.as_fd()).map_err(failed("share", path))
        })
        .ok_or(ContainerError::Died)?
}
