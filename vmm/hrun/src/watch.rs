//! What changes in a directory, as inotify tells it.

use std::{io, path::Path, time::Instant};

use rustix::{
    event::{PollFd, PollFlags},
    fd::OwnedFd,
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};

use crate::poll;

/// Files of a directory that are made, written or removed, from now on.
#[derive(Debug)]
pub(crate) struct Changes(OwnedFd);

impl Changes {
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE;
        inotify::add_watch(&changes, dir, flags)?;
        Ok(Self(changes))
    }

    /// Waits until something has changed, or until `deadline`. What it was is left to be looked at.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        poll::wait(&mut [PollFd::new(&self.0, PollFlags::IN)], deadline)?;
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn what_was_made_before_the_wait_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::of(dir.path()).unwrap();
        let begun = Instant::now();
        changes
            .wait(Some(begun + Duration::from_millis(20)))
            .unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(20));
        fs::write(dir.path().join("new"), "").unwrap();
        changes.wait(None).unwrap();
    }
}
