//! Commands that are started and watched: when the first byte came, when the process ended.
//!
//! One thread waits for all of them by poll(2), so that sixteen at once cost the harness no more
//! than one does.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags},
    fd::{AsFd, OwnedFd},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::{poll, signals::Signals};

/// How long a process that was asked to end may take to do so.
const GRACE: Duration = Duration::from_secs(5);

/// How much of a failing command's last words is kept, in bytes.
const MAX_WORDS: usize = 2000;

/// Something that ends a measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// It is not there, or cannot be executed.
    #[error("Failed to start {program}")]
    Spawn { program: String, source: io::Error },
    /// The system does not tell.
    #[error("Failed to wait for a container")]
    Wait(#[source] io::Error),
    /// It hangs, or the machine is far too slow.
    #[error("{command} did not {event} within {} s", .limit.as_secs())]
    TimedOut {
        command: String,
        event: &'static str,
        limit: Duration,
    },
    /// It ended otherwise than it should.
    #[error("{command} ended with {status}: {words}")]
    Failed {
        command: String,
        status: ExitStatus,
        words: String,
    },
    /// The user wants it to end: everything is cleaned up, and that was it.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// That many bytes on standard output.
    Bytes(usize),
    /// The end of the process.
    Exit,
}

/// A command that was started. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Running {
    line: String,
    child: Child,
    pidfd: OwnedFd,
    started: Instant,
    stdout: Option<ChildStdout>,
    stderr: File,
    /// What it has printed so far.
    pub(crate) output: Vec<u8>,
    first_byte: Option<Duration>,
    exit: Option<(Duration, ExitStatus)>,
}

/// When things happened, counted from the start of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) first_byte: Option<Duration>,
    pub(crate) exit: Duration,
}

impl Running {
    /// Starts a command, in a process group of its own: Ctrl-C is for the harness, which then
    /// ends everything in its own order.
    pub(crate) fn start(command: &mut Command) -> Result<Self, LaunchError> {
        let line = line(command);
        let failed = |source| LaunchError::Spawn {
            program: line.clone(),
            source,
        };
        let stderr = tempfile::tempfile().map_err(failed)?;
        command
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().map_err(failed)?)
            .process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // The error is the one to report.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(error.into()));
            }
        };
        Ok(Self {
            line,
            child,
            pidfd,
            started,
            stdout,
            stderr,
            output: Vec::new(),
            first_byte: None,
            exit: None,
        })
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Its standard input, if that is a pipe.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The times of a command that has ended well.
    pub(crate) fn times(&mut self) -> Result<Times, LaunchError> {
        let (exit, status) = match self.exit {
            Some(exit) => exit,
            None => {
                let source = io::ErrorKind::WouldBlock.into();
                return Err(LaunchError::Wait(source));
            }
        };
        if !status.success() {
            return Err(self.failed(status));
        }
        Ok(Times {
            first_byte: self.first_byte,
            exit,
        })
    }

    fn reached(&self, until: Until) -> bool {
        match until {
            Until::Bytes(count) => self.output.len() >= count,
            Until::Exit => self.exit.is_some(),
        }
    }

    /// Takes what is there: output, the end of it, the end of the process.
    fn progress(&mut self, output: bool, ended: bool) -> Result<(), LaunchError> {
        if output && let Some(stdout) = &mut self.stdout {
            let mut buffer = [0; 4096];
            let read = stdout.read(&mut buffer).map_err(LaunchError::Wait)?;
            if read == 0 {
                self.stdout = None;
            } else {
                self.first_byte.get_or_insert(self.started.elapsed());
                self.output.extend_from_slice(&buffer[..read]);
            }
        }
        if ended && self.exit.is_none() {
            let took = self.started.elapsed();
            let status = self.child.wait().map_err(LaunchError::Wait)?;
            self.exit = Some((took, status));
        }
        Ok(())
    }

    fn failed(&mut self, status: ExitStatus) -> LaunchError {
        LaunchError::Failed {
            command: self.line.clone(),
            status,
            words: last_words(&mut self.stderr),
        }
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        if self.exit.is_none() {
            // It may just have ended by itself.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exit.is_some() {
            return;
        }
        self.terminate();
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(Instant::now() + GRACE)).unwrap_or(false) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Waits until all commands have come so far, a signal asks to end, or `limit` is over.
pub(crate) fn wait(
    all: &mut [Running],
    until: Until,
    limit: Duration,
    signals: &mut Signals,
) -> Result<(), LaunchError> {
    let deadline = Instant::now() + limit;
    while let Some(waiting) = all.iter().position(|running| !running.reached(until)) {
        interrupted(signals)?;
        if Instant::now() >= deadline {
            return Err(LaunchError::TimedOut {
                command: all[waiting].line.clone(),
                event: match until {
                    Until::Bytes(_) => "print what it should",
                    Until::Exit => "end",
                },
                limit,
            });
        }
        for (index, output, ended) in ready(all, signals, deadline)? {
            all[index].progress(output, ended)?;
        }
        // Who ended without a word will not say it any more.
        for running in &mut *all {
            if let (Some((_, status)), None) = (running.exit, &running.stdout)
                && !running.reached(until)
            {
                return Err(running.failed(status));
            }
        }
    }
    Ok(())
}

/// Waits for the end of all, whatever it is like, and says whether it came in time. Signals do
/// not matter here.
pub(crate) fn ended(all: &mut [Running], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    all.iter_mut().all(|running| {
        let mut fds = [PollFd::new(&running.pidfd, PollFlags::IN)];
        let ended = poll::wait(&mut fds, Some(deadline)).unwrap_or(false);
        running.progress(false, ended).is_ok() && ended
    })
}

/// Starts one command and waits for its good end.
#[cfg(test)]
fn run(
    command: &mut Command,
    limit: Duration,
    signals: &mut Signals,
) -> Result<Times, LaunchError> {
    let mut all = [Running::start(command)?];
    wait(&mut all, Until::Exit, limit, signals)?;
    all[0].times()
}

/// An error if a signal has come that asks to end.
pub(crate) fn interrupted(signals: &mut Signals) -> Result<(), LaunchError> {
    match signals.ending() {
        Some(signal) => Err(LaunchError::Interrupted(signal)),
        None => Ok(()),
    }
}

/// Waits for anything to happen; gives the commands with output and those that have ended.
fn ready(
    all: &[Running],
    signals: &Signals,
    deadline: Instant,
) -> Result<Vec<(usize, bool, bool)>, LaunchError> {
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    let mut whose = Vec::new();
    for (index, running) in all.iter().enumerate() {
        if let Some(stdout) = &running.stdout {
            fds.push(PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN));
            whose.push((index, true));
        }
        if running.exit.is_none() {
            fds.push(PollFd::new(&running.pidfd, PollFlags::IN));
            whose.push((index, false));
        }
    }
    poll::wait(&mut fds, Some(deadline)).map_err(LaunchError::Wait)?;
    Ok(whose
        .into_iter()
        .zip(&fds[1..])
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|((index, output), _)| (index, output, !output))
        .collect())
}

/// Program and arguments, as one would type them.
fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn last_words(stderr: &mut File) -> String {
    let mut words = String::new();
    let read = stderr
        .rewind()
        .and_then(|()| stderr.take(1 << 20).read_to_string(&mut words));
    if read.is_err() || words.trim().is_empty() {
        return "it said nothing".into();
    }
    let words = words.trim();
    let mut begin = words.len().saturating_sub(MAX_WORDS);
    while !words.is_char_boundary(begin) {
        begin += 1;
    }
    words[begin..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn the_first_byte_comes_before_the_end() {
        let times = run(
            &mut sh("echo x; sleep 0.05; echo y"),
            LIMIT,
            &mut Signals::none(),
        )
        .unwrap();
        assert!(times.exit - times.first_byte.unwrap() >= Duration::from_millis(40));
        let silent = run(&mut sh("exit 0"), LIMIT, &mut Signals::none()).unwrap();
        assert_eq!(silent.first_byte, None);
    }

    #[test]
    fn several_are_waited_for_at_once() {
        let mut all: Vec<Running> = ["echo 1; sleep 1000", "echo 2; sleep 1000"]
            .map(|script| Running::start(&mut sh(script)).unwrap())
            .into();
        wait(&mut all, Until::Bytes(2), LIMIT, &mut Signals::none()).unwrap();
        assert_eq!(all[0].output, b"1\n");
        assert_eq!(all[1].output, b"2\n");
        assert!(all[0].times().is_err());
    }

    #[test]
    fn a_failure_tells_what_was_said() {
        let error = run(
            &mut sh("echo oh no >&2; exit 3"),
            LIMIT,
            &mut Signals::none(),
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("oh no") && text.contains('3'), "{text}");
    }

    #[test]
    fn who_ends_without_a_word_is_not_waited_for() {
        let mut all = [Running::start(&mut sh("exit 0")).unwrap()];
        let error = wait(&mut all, Until::Bytes(1), LIMIT, &mut Signals::none()).unwrap_err();
        assert!(matches!(error, LaunchError::Failed { .. }), "{error}");
    }

    #[test]
    fn the_end_is_seen_whatever_it_is_like() {
        let mut all =
            ["exit 3", "sleep 1000"].map(|script| Running::start(&mut sh(script)).unwrap());
        assert!(ended(&mut all[..1], LIMIT));
        assert!(!ended(&mut all, Duration::from_millis(20)));
        all[1].terminate();
        assert!(ended(&mut all, LIMIT));
    }

    #[test]
    fn what_hangs_is_ended() {
        let limit = Duration::from_millis(50);
        let error = run(&mut sh("sleep 1000"), limit, &mut Signals::none()).unwrap_err();
        assert!(matches!(error, LaunchError::TimedOut { .. }), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(
            &mut Command::new("/nonexistent/x"),
            LIMIT,
            &mut Signals::none(),
        )
        .unwrap_err();
        assert!(error.to_string().contains('x'), "{error}");
    }
}
