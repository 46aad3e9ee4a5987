//! The agent's own archiver: files out of a container and into it, as tar archives.
//!
//! It is a process of the container, in its namespaces and its cgroup, with the container's root as
//! its root: whatever a path or an archive leads to is the container's. Of its rights only those are
//! left that files need. Its memory is its own, so the agent serves on while it works and outlives
//! what it does.
//!
//! Boundary: makes the process. What it does is in the crate `cp`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{Archiving, Capabilities};
use cp::{CopyError, Destination, Owner, Rights, Source, What};
use rustix::fs::{self, Mode, OFlags};
use rustix::process;
use rustix::thread::{self, ThreadNameSpaceType};

use crate::agent::explain;
use crate::container::{self, Container};
use crate::joined::born_beside;
use crate::process::{Ends, StartError, preparing};
use crate::sys;

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, MKNOD: whatever the container's own
/// processes may do, whoever copies is its owner.
const CAPABILITIES: u64 = 0x0800_001f;

/// Exit status of one that failed, and said why.
const FAILED: u8 = 1;

/// Starts it in a container next to its first process, which is `init`; `agent` is the agent itself.
pub(crate) fn start(
    init: BorrowedFd<'_>,
    agent: BorrowedFd<'_>,
    container: &Container,
    archiving: &Archiving,
    ends: &Ends,
) -> Result<OwnedFd, StartError> {
    let stdio = ends.for_process(&container.devices);
    let job = || {
        let done = settle(init, container, stdio)
            .map_err(|error| format!("Failed to enter the container: {error}"))
            .and_then(|()| carry_out(archiving).map_err(|error| explain(&error)));
        match done {
            Ok(()) => 0,
            Err(text) => {
                say(&text);
                FAILED
            }
        }
    };
    born_beside(init, agent, || sys::fork(job))
        .map_err(|_| StartError::ContainerGone)?
        .map_err(preparing("make a process"))
}

/// Becomes a process of the container.
fn settle(
    init: BorrowedFd<'_>,
    container: &Container,
    stdio: [BorrowedFd<'_>; 3],
) -> io::Result<()> {
    for (to, from) in (0..).zip(stdio) {
        sys::replace_descriptor(from, to)?;
    }
    container.cgroup.enter()?;
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    thread::move_into_thread_name_spaces(init, namespaces)?;
    container::settle(CAPABILITIES)?;
    sys::close_from(3)?;
    process::umask(Mode::empty());
    thread::set_no_new_privs(true)?;
    sys::set_capabilities(&Capabilities::of(CAPABILITIES))
}

fn carry_out(archiving: &Archiving) -> Result<(), CopyError> {
    let failed = |error: rustix::io::Errno| CopyError::System {
        action: "open",
        path: "/".into(),
        source: error.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open("/", flags, Mode::empty()).map_err(failed)?;
    let mut notes = |note: String| say(&note);
    match archiving {
        Archiving::Pack { path, follow } => {
            let source = Source {
                path,
                follow: *follow,
            };
            let out = rustix::io::dup(rustix::stdio::stdout()).map_err(failed)?;
            cp::pack(root.as_fd(), &source, &mut File::from(out), &mut notes)
        }
        Archiving::Unpack {
            path,
            name,
            keep_owner,
        } => {
            let to = Destination {
                path,
                what: match name {
                    Some(name) => What::Copy { name },
                    None => What::Archive,
                },
                owner: if *keep_owner {
                    Owner::Kept
                } else {
                    Owner::Always { uid: 0, gid: 0 }
                },
                rights: Rights {
                    devices: true,
                    set_id: true,
                },
            };
            let input = rustix::io::dup(rustix::stdio::stdin()).map_err(failed)?;
            cp::unpack(root.as_fd(), &to, &mut File::from(input), &mut notes)
        }
    }
}

/// Writes a line to standard error. If nobody reads it, nobody wants to know.
fn say(text: &str) {
    let line = format!("{text}\n");
    let mut rest = line.as_bytes();
    while let Ok(length) = rustix::io::write(rustix::stdio::stderr(), rest) {
        match rest.get(length..) {
            Some(more) if !more.is_empty() && length > 0 => rest = more,
            _ => return,
        }
    }
}
