//! A process, named so that it can be found again later and nobody else instead.

use std::{fs, io, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsRawFd, BorrowedFd, OwnedFd},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// How long a killed process may take to be gone. Closing a VM takes 20 ms.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A process and when it started: process numbers are used again, this pair is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    /// Process number.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)): clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a process that is alive (or not yet waited for).
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_ticks })
    }

    /// Our own.
    pub(crate) fn own() -> io::Result<Self> {
        // Not by our number: that is another one in /proc if our PID namespace is not its own.
        let own = fs::read_link("/proc/self")?;
        let number = own.to_str().and_then(|pid| pid.parse().ok());
        number
            .and_then(Self::of_number)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// That of a process by its descriptor, likewise.
    pub(crate) fn of_fd(pidfd: BorrowedFd<'_>) -> io::Result<Self> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let number = info
            .lines()
            .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        number
            .and_then(Self::of_number)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The same for a number that somebody wrote down; none if there is no such process.
    pub(crate) fn of_number(pid: i32) -> Option<Self> {
        Self::of(Pid::from_raw(pid)?).ok()
    }

    /// Kills the process if it is still there and waits until it is not. Whoever has its number
    /// by now comes to no harm.
    pub(crate) fn kill(self) -> io::Result<()> {
        let Some(pidfd) = self.open()? else {
            return Ok(());
        };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(KILL_TIMEOUT).expect("ten seconds fit a timespec");
        match poll(&mut fds, Some(&timeout))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// A descriptor of the process, if it is still there (or not yet waited for).
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The descriptor holds one process fast; only now does comparing tell whether it is ours.
        match Self::of(pid) {
            Ok(found) if found == self => Ok(Some(pidfd)),
            _ => Ok(None),
        }
    }
}

/// Finds the start time behind the command name, which may itself hold spaces and brackets.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, process::Command};

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_an_odd_command_name() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("12 (a"), None);
    }

    #[test]
    fn a_process_is_killed_by_its_identity() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let identity = ProcessIdentity::of(pid).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(ProcessIdentity::of_fd(pidfd.as_fd()).unwrap(), identity);
        assert_ne!(ProcessIdentity::own().unwrap(), identity);
        identity.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success());
        identity.kill().unwrap();
    }

    #[test]
    fn another_process_with_the_number_is_spared() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut identity = ProcessIdentity::of(Pid::from_child(&child)).unwrap();
        identity.start_ticks += 1;
        identity.kill().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
