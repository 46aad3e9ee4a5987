//! Turns: of containers that start at once, only so many are on their way at a time.
//!
//! Starts that fight for the CPUs cost more than starts that wait for each other: a guest looks out
//! for the answers of its VMM, and its timer does not stand still while another guest has the CPU.
//!
//! A turn is a lock on one of a few files, so it ends with the process, however that ends. Who has
//! had one for long is stuck, or boots on a slow machine: that shall not keep the others, who leave it
//! out of account. Whoever cannot take turns at all starts without.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::event::{PollFd, PollFlags};

use crate::{poll, signals::Signals};

/// A turn that has lasted for so long counts no more.
const LONGEST: Duration = Duration::from_secs(10);

/// How often the first in the queue looks for a turn.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How often the others look whether they are the first.
const PAUSE: Duration = Duration::from_millis(20);

/// Told by a signal to end.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) i32);

/// The right to start a container now. Dropping it gives it to the next one.
#[derive(Debug)]
pub(crate) struct Turn {
    _slot: Option<File>,
}

/// Where turns are taken.
#[derive(Debug)]
pub(crate) struct Turns {
    dir: PathBuf,
    at_once: usize,
}

impl Turns {
    /// Those of all that share this state directory: one for each CPU.
    pub(crate) fn of(state: &Path) -> Self {
        Self {
            dir: state.join("turns"),
            at_once: thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Waits for a turn.
    pub(crate) fn take(&self, signals: &mut Signals) -> Result<Turn, Interrupted> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        let Ok(queue) = made.and_then(|()| self.open("queue")) else {
            return Ok(Turn { _slot: None });
        };
        wait(signals, PAUSE, || {
            let came = hold(&queue);
            came.is_none_or(|came| came || is_stale(&queue))
                .then_some(())
        })?;
        wait(signals, FIRST_PAUSE, || self.next())
    }

    /// The next turn, if there is one.
    fn next(&self) -> Option<Turn> {
        let mut others = 0;
        for number in 0.. {
            if others == self.at_once {
                return None;
            }
            let Ok(slot) = self.open(&number.to_string()) else {
                break;
            };
            match hold(&slot) {
                Some(true) => return Some(Turn { _slot: Some(slot) }),
                Some(false) => others += usize::from(!is_stale(&slot)),
                None => break,
            }
        }
        Some(Turn { _slot: None })
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join(format!("{name}.lock")))
    }
}

/// Locks a file and notes when; false if somebody else has it, nothing if that is not possible.
fn hold(file: &File) -> Option<bool> {
    match file.try_lock() {
        Ok(()) => file.set_modified(SystemTime::now()).ok().map(|()| true),
        Err(TryLockError::WouldBlock) => Some(false),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Whether it has been held for long.
fn is_stale(file: &File) -> bool {
    let since = file.metadata().and_then(|metadata| metadata.modified());
    since.is_ok_and(|since| since.elapsed().is_ok_and(|held| held > LONGEST))
}

fn wait<T>(
    signals: &mut Signals,
    pause: Duration,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, Interrupted> {
    loop {
        if let Some(done) = attempt() {
            return Ok(done);
        }
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        // Who cannot wait looks again at once.
        let _ = poll::wait(&mut fds, Some(Instant::now() + pause));
        if let Some(signal) = signals.ending() {
            return Err(Interrupted(signal));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn turns(dir: &Path) -> Turns {
        Turns {
            dir: dir.join("turns"),
            at_once: 2,
        }
    }

    #[test]
    fn so_many_at_once_and_the_next_one_when_one_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let take = || turns(dir.path()).take(&mut Signals::none()).unwrap();
        let first = take();
        let _second = take();
        assert!(turns(dir.path()).next().is_none());
        thread::scope(|scope| {
            let (done, waits) = mpsc::channel();
            let path = dir.path();
            scope.spawn(move || done.send(turns(path).take(&mut Signals::none()).unwrap()));
            let soon = waits.recv_timeout(Duration::from_millis(50));
            assert!(soon.is_err());
            drop(first);
            waits.recv().unwrap();
        });
    }

    #[test]
    fn who_is_stuck_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let take = || turns(dir.path()).take(&mut Signals::none()).unwrap();
        let _stuck = [take(), take()];
        for number in 0..2 {
            let slot = turns(dir.path()).open(&number.to_string()).unwrap();
            slot.set_modified(SystemTime::now() - 2 * LONGEST).unwrap();
        }
        let _others = [take(), take()];
        assert!(turns(dir.path()).next().is_none());
    }

    #[test]
    fn where_no_turns_can_be_taken_everybody_starts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("turns"), "").unwrap();
        let _turns = [(); 3].map(|()| turns(dir.path()).take(&mut Signals::none()).unwrap());
    }
}
