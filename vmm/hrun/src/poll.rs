//! Waiting for several descriptors at once, until a moment in time.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, Timespec, poll},
    io::Errno,
};

/// Waits until one of `fds` is ready, whose events are then set, or until `deadline`: then the
/// answer is false. A signal handler that runs meanwhile does not end the wait: its descriptor
/// does.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(timespec);
        match poll(fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Longer than 2^63 seconds is as good as that.
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use rustix::event::PollFlags;

    use super::*;

    #[test]
    fn a_ready_descriptor_ends_the_wait_and_a_quiet_one_lasts_until_the_deadline() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert!(!wait(&mut [PollFd::new(&a, PollFlags::IN)], soon()).unwrap());
        b.write_all(b"x").unwrap();
        assert!(wait(&mut [PollFd::new(&a, PollFlags::IN)], soon()).unwrap());
        assert!(wait(&mut [PollFd::new(&a, PollFlags::IN)], None).unwrap());
    }
}
