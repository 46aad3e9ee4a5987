//! A child that has the agent's memory as it was, and from then on its own.
//!
//! For work that is the agent's code but none of its business: it may take long, allocate and fail,
//! and the agent serves on. A program is executed by a [`super::Twin`] instead, which is cheaper.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

/// What a child exits with whose job panicked.
const PANICKED: u8 = 101;

/// Makes a child that does `job` and exits with the status that this gives.
pub(crate) fn fork(job: impl FnOnce() -> u8) -> io::Result<OwnedFd> {
    // SAFETY: the agent has one thread, so the child finds nothing half done. Where there are more,
    // in tests, the C library sees to it that its allocator can be used. The child leaves by _exit
    // and never returns to the frames of its parent.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = catch_unwind(AssertUnwindSafe(job)).unwrap_or(PANICKED);
        // SAFETY: ends the process.
        unsafe { libc::_exit(status.into()) };
    }
    let child = match Pid::from_raw(child) {
        Some(child) if child.as_raw_nonzero().get() > 0 => child,
        _ => return Err(io::Error::last_os_error()),
    };
    pidfd_open(child, PidfdFlags::empty()).map_err(|error| {
        // Nobody else knows of it.
        let _ = kill_process(child, Signal::KILL);
        let _ = waitpid(Some(child), WaitOptions::empty());
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[test]
    fn a_child_does_its_job_in_a_memory_of_its_own() {
        let mut value = vec![1];
        let child = fork(|| {
            value.push(2);
            u8::try_from(value.len()).unwrap()
        })
        .unwrap();
        let status = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(status.unwrap().exit_status(), Some(2));
        assert_eq!(value, [1]);
    }
}
