//! Turns: of containers that start at once, only so many are on their way at a time.
//!
//! Starts that fight for the CPUs cost more than starts that wait for each other: a guest looks out
//! for the answers of its VMM, and its timer does not stand still while another guest has the CPU.
//!
//! A turn is a lock on one of a few files, so it ends with the process, however that ends. One that
//! lasts long is of a start that is stuck, or boots on a slow machine: it does not keep the others.
//! Where no turns can be taken, every container starts at once.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, TryLockError},
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

/// How long a place in front is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the first in the queue looks for a turn.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How often the others look whether they are the first.
const PAUSE: Duration = Duration::from_millis(10);

/// Told by a signal to end.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) i32);

/// The right to start a container now. Dropping it gives it to the next one.
#[derive(Debug)]
pub(crate) struct Turn {
    _slot: Option<File>,
}

/// Where turns are taken. There are these files, all of them empty:
///
/// ```text
/// queue.lock     held for a moment by who lines up
/// wait-N.lock    held by who waits behind wait-(N-1)
/// N.lock         held by who has a turn
/// ```
#[derive(Debug)]
pub(crate) struct Turns {
    dir: PathBuf,
    at_once: usize,
}

/// A place in the queue; gone when it is dropped.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    lock: File,
    /// The place in front of it, if anybody was there.
    front: Option<(PathBuf, File)>,
}

impl Turns {
    /// Those of all that share this state directory: one for each CPU.
    pub(crate) fn of(state: &Path) -> Self {
        Self {
            dir: state.join("turns"),
            at_once: thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Waits for a turn; who comes first is served first.
    pub(crate) fn take(&self, signals: &mut Signals) -> Result<Turn, Interrupted> {
        let Ok(place) = self.line_up() else {
            return Ok(Turn { _slot: None });
        };
        let deadline = Instant::now() + PATIENCE;
        wait(signals, PAUSE, || {
            (place.is_first() || Instant::now() > deadline).then_some(())
        })?;
        wait(signals, FIRST_PAUSE, || self.next())
    }

    fn line_up(&self) -> io::Result<Place> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let queue = self.open("queue")?;
        queue.lock()?;
        let mut last = None;
        for entry in fs::read_dir(&self.dir)? {
            last = last.max(place_number(&entry?.file_name()));
        }
        let name = |number: u64| format!("wait-{number}");
        let front = match last {
            Some(last) => Some((self.path(&name(last)), self.open(&name(last))?)),
            None => None,
        };
        let own = name(last.map_or(0, |last| last.wrapping_add(1)));
        let lock = self.open(&own)?;
        lock.try_lock()?;
        Ok(Place {
            path: self.path(&own),
            lock,
            front,
        })
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.lock"))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path(name))
    }
}

impl Place {
    /// Whether nobody is in front any more.
    fn is_first(&self) -> bool {
        let Some((path, front)) = &self.front else {
            return true;
        };
        let is_free = front.try_lock_shared().is_ok();
        if is_free {
            // Only a process that died has left it.
            let _ = fs::remove_file(path);
        }
        is_free
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The next one has the file open.
        let _ = fs::remove_file(&self.path);
        let _ = self.lock.unlock();
    }
}

fn place_number(name: &OsStr) -> Option<u64> {
    let number = name.to_str()?.strip_prefix("wait-")?;
    number.strip_suffix(".lock")?.parse().ok()
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
        // If waiting fails, it looks again at once.
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
    fn who_comes_first_is_served_first() {
        let dir = tempfile::tempdir().unwrap();
        let queue = turns(dir.path());
        let places: Vec<_> = (0..3).map(|_| queue.line_up().unwrap()).collect();
        let first = |places: &[Place]| places.iter().map(Place::is_first).collect::<Vec<_>>();
        assert_eq!(first(&places), [true, false, false]);
        let [one, two, three] = <[Place; 3]>::try_from(places).unwrap();
        drop(one);
        assert!(two.is_first() && !three.is_first());
        // As kill -9 leaves it.
        two.lock.unlock().unwrap();
        assert!(three.is_first());
        let left = fs::read_dir(queue.dir).unwrap().count();
        assert_eq!(left, 2, "the queue itself and the last place");
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
