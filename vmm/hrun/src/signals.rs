//! Signals sent to hrun: caught, so that every way out cleans up, and passed on to the
//! container's process.

use std::{
    collections::VecDeque,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use signal_hook::{
    consts::signal::*,
    iterator::{backend::SignalDelivery, exfiltrator::SignalOnly},
};

/// Those that are caught and passed on. Left alone are the ones that cannot be caught, those that
/// a fault of hrun itself raises, SIGPIPE (writing gives an error instead), SIGCHLD, SIGURG, and
/// SIGTTIN and SIGTTOU, with which a shell stops a job of the background.
const CAUGHT: [i32; 16] = [
    SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCONT, SIGTSTP, SIGWINCH, SIGIO,
    SIGPROF, SIGVTALRM, SIGXCPU, SIGXFSZ, SIGPWR,
];
/// `SIGPWR` is missing in signal-hook (signal(7), x86-64).
const SIGPWR: i32 = 30;

/// Real-time signals that the C library leaves to programs.
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Those whose default is to end a process, and that people send for it.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Catches signals and keeps them until somebody asks.
#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    kept: VecDeque<i32>,
    deaf: bool,
}

impl Signals {
    /// From here on no signal that can be caught ends this process.
    pub(crate) fn catch() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let caught = CAUGHT
            .into_iter()
            .chain(REALTIME)
            // `nohup` ignores this one for us. The others that shells ignore for their background
            // jobs are caught all the same, as docker does: they were sent to somebody.
            .filter(|signal| *signal != SIGHUP || ignored & bit(SIGHUP) == 0);
        Self::catch_these(caught)
    }

    /// The same, and none of them is passed on: for a process that ends only when its work does.
    pub(crate) fn ignore() -> io::Result<Self> {
        let mut signals = Self::catch()?;
        signals.deaf = true;
        Ok(signals)
    }

    /// Catches nothing, for tests that must not get another test's signals.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::catch_these([]).unwrap()
    }

    fn catch_these(caught: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        Ok(Self {
            delivery: SignalDelivery::with_pipe(read, write, SignalOnly, caught)?,
            kept: VecDeque::new(),
            deaf: false,
        })
    }

    /// The next signal that came.
    pub(crate) fn next(&mut self) -> Option<i32> {
        self.collect();
        self.kept.pop_front()
    }

    /// A signal that came and asks hrun to end. The others are kept for [`Signals::next`].
    pub(crate) fn ending(&mut self) -> Option<i32> {
        self.collect();
        self.kept
            .iter()
            .copied()
            .find(|signal| ENDING.contains(signal))
    }

    fn collect(&mut self) {
        let came = self.delivery.pending();
        if self.deaf {
            came.for_each(drop);
        } else {
            self.kept.extend(came);
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

/// Whether a signal asks to end.
pub(crate) fn is_ending(signal: i32) -> bool {
    ENDING.contains(&signal)
}

/// Whether a signal says that the terminal has another size.
pub(crate) fn is_resize(signal: i32) -> bool {
    signal == SIGWINCH
}

/// The mask of ignored signals in `/proc/PID/status` (proc_pid_status(5)).
fn ignored(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::{
        event::{PollFd, PollFlags},
        process::{Signal, getpid, kill_process},
    };

    use super::*;
    use crate::poll;

    #[test]
    fn a_caught_signal_wakes_and_is_kept_until_it_is_taken() {
        let mut signals = Signals::catch().unwrap();
        assert_eq!(signals.next(), None);
        kill_process(getpid(), Signal::USR1).unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        let deadline = Some(Instant::now() + Duration::from_secs(10));
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let mut fds = [PollFd::new(&signals, PollFlags::IN)];
            assert!(poll::wait(&mut fds, deadline).unwrap());
            if signals.ending().is_some() {
                assert_eq!(signals.ending(), Some(SIGTERM), "asking takes nothing away");
            }
            seen.extend(std::iter::from_fn(|| signals.next()));
        }
        seen.sort_unstable();
        assert_eq!(seen, [SIGUSR1, SIGTERM]);
        assert_eq!(signals.ending(), None);
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), bit(SIGHUP) | bit(13));
        assert_eq!(ignored(""), 0);
    }
}
