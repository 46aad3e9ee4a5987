//! The watcher's side: the standard streams of a container in the background as if they were ours.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use agent_protocol::Action;
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    stdio,
};

use super::{
    INPUT, Keys, OUTPUT,
    frame::{Decoder, Kind, NoFrame, WELCOME},
};
use crate::{
    agent::{self, AskError},
    poll,
    relay::{read_patiently, write_all},
    signals::{self, Signals},
    terminal::{self, RawTerminal},
    translate,
};

/// How long the agent may take to pass a signal on. A busy machine that interprets the guest's
/// kernel needs seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const CHUNK: usize = 64 << 10;

/// How somebody watches.
#[derive(Debug)]
pub(crate) struct Watcher<'a> {
    /// The socket behind which the agent is.
    pub(crate) vsock: &'a Path,
    /// Whether the process runs already, or is about to be started.
    pub(crate) runs: bool,
    /// Whether the process has a terminal.
    pub(crate) tty: bool,
    /// Whether our standard input goes to the process.
    pub(crate) input: bool,
    /// Whether signals sent to us are for the process.
    pub(crate) proxy_signals: bool,
    /// What lets go of a terminal.
    pub(crate) keys: Keys,
}

/// How the watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended with this status.
    Exited(u8),
    /// We let go of it: it goes on.
    Detached,
    /// Its owner let go of us without a word.
    Lost,
}

/// Failure to watch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("Failed to talk to the owner of the container")]
    Owner(#[source] io::Error),
    #[error(transparent)]
    NoFrame(#[from] NoFrame),
    #[error("Failed to put the terminal into raw mode")]
    Terminal(#[source] io::Error),
    #[error("Failed to write to {stream}")]
    Write { stream: &'static str, source: Errno },
    /// The user asked not to pass signals on, or nobody is there to take it.
    #[error("Interrupted by signal {0}: the container goes on")]
    Interrupted(i32),
}

impl Watcher<'_> {
    /// Says what we want, and waits until nothing is missed any more; false if there is nothing left
    /// to watch.
    fn greet(&self, owner: &mut UnixStream) -> Result<bool, WatchError> {
        let mut greet = || {
            let hello = if self.input { INPUT } else { OUTPUT };
            owner.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            owner.write_all(&[hello])?;
            let mut welcome = WELCOME;
            owner.read_exact(&mut welcome)?;
            owner.set_read_timeout(None)?;
            io::Result::Ok(welcome)
        };
        let ended = [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
        ];
        match greet() {
            Ok(WELCOME) => Ok(true),
            Ok(_) => Err(NoFrame.into()),
            Err(error) if ended.contains(&error.kind()) => Ok(false),
            Err(error) => Err(WatchError::Owner(error)),
        }
    }

    /// Stays until the process ends or somebody lets go.
    pub(crate) fn watch(
        self,
        mut owner: UnixStream,
        signals: &mut Signals,
    ) -> Result<Outcome, WatchError> {
        if !self.greet(&mut owner)? {
            return Ok(Outcome::Lost);
        }
        let is_terminal = self.tty && self.input;
        let _raw = is_terminal
            .then(RawTerminal::enter)
            .transpose()
            .map_err(WatchError::Terminal)?;
        let mut has_size = !(self.tty && terminal::stdin_is_terminal());
        if self.runs && !has_size {
            // If nobody takes it, the process has ended.
            let _ = self.resize();
            has_size = true;
        }
        let detached = Arc::new(AtomicBool::new(false));
        if self.input {
            let keys = is_terminal.then(|| self.keys.clone());
            let to = owner.try_clone().map_err(WatchError::Owner)?;
            let flag = Arc::clone(&detached);
            // It may still wait for a key when all is over: nobody waits for it.
            thread::Builder::new()
                .name("standard input".into())
                .spawn(move || pass_input(&to, keys, &flag))
                .map_err(WatchError::Owner)?;
        }
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut fds = [
                PollFd::new(&*signals, PollFlags::IN),
                PollFd::new(&owner, PollFlags::IN),
            ];
            poll::wait(&mut fds, None).map_err(WatchError::Owner)?;
            let came = !fds[1].revents().is_empty();
            while let Some(signal) = signals.next() {
                self.pass_signal(signal)?;
            }
            if !came {
                continue;
            }
            let length = match owner.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                read => read.map_err(WatchError::Owner)?,
            };
            if length == 0 {
                return Ok(if detached.load(Ordering::SeqCst) {
                    Outcome::Detached
                } else {
                    Outcome::Lost
                });
            }
            decoder.push(&chunk[..length]);
            while let Some((kind, content)) = decoder.next()? {
                if let Some(outcome) = show(kind, &content)? {
                    return Ok(outcome);
                }
                if !has_size {
                    // What speaks runs by now.
                    let _ = self.resize();
                    has_size = true;
                }
            }
        }
    }

    fn pass_signal(&self, signal: i32) -> Result<(), WatchError> {
        if signals::is_resize(signal) {
            if self.tty {
                // If nobody takes it, the process is yet to be started or has ended.
                let _ = self.resize();
            }
            return Ok(());
        }
        let is_ending = signals::is_ending(signal);
        let passed = self.proxy_signals
            && self
                .ask(Action::Signal {
                    process: translate::PROCESS,
                    signal,
                    all: false,
                })
                .is_ok();
        if !passed && is_ending {
            return Err(WatchError::Interrupted(signal));
        }
        Ok(())
    }

    fn resize(&self) -> Result<(), AskError> {
        self.ask(Action::Resize {
            process: translate::PROCESS,
            size: terminal::window_size(),
        })
    }

    fn ask(&self, action: Action) -> Result<(), AskError> {
        let deadline = Some(Instant::now() + ANSWER_TIMEOUT);
        agent::ask(self.vsock, action, deadline)
    }
}

/// Does what a frame says.
fn show(kind: Kind, content: &[u8]) -> Result<Option<Outcome>, WatchError> {
    let (stream, to) = match kind {
        Kind::Exit => return Ok(content.first().map(|code| Outcome::Exited(*code))),
        Kind::Stdout => ("standard output", stdio::stdout()),
        Kind::Stderr => ("standard error", stdio::stderr()),
    };
    match write_all(to, content) {
        Ok(()) => Ok(None),
        // Who stopped reading has seen enough; the container goes on.
        Err(Errno::PIPE) => Ok(Some(Outcome::Detached)),
        Err(source) => Err(WatchError::Write { stream, source }),
    }
}

/// Carries our standard input to the owner, until its end or until the keys that let go.
fn pass_input(mut to: &UnixStream, mut keys: Option<Keys>, detached: &AtomicBool) {
    let mut chunk = vec![0; CHUNK];
    loop {
        // A failure is a terminal that was hung up: no more input.
        let length = read_patiently(stdio::stdin(), &mut chunk).unwrap_or(0);
        let typed = &chunk[..length];
        let (typed, let_go) = match &mut keys {
            Some(keys) => keys.filter(typed),
            None => (typed.to_vec(), false),
        };
        let sent = to.write_all(&typed);
        if let_go {
            detached.store(true, Ordering::SeqCst);
            // This ends the other thread's reading; the owner notices by himself.
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        if length == 0 || sent.is_err() {
            // It fails if the owner has gone: then the other thread knows.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}
