//! Running a command under test: with a time limit, with its output collected, owned to the end.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a command may take if the test does not say: a VM boots in seconds even where guest
/// kernel code is interpreted and another test has the other CPU.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How long streams may stay open when the command has ended.
const DRAIN: Duration = Duration::from_secs(10);

/// How often a condition without an event is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A command to be started.
#[derive(Debug)]
#[must_use]
pub struct Invocation {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Input,
    unread: bool,
    timeout: Duration,
}

#[derive(Debug)]
enum Input {
    Null,
    Closed,
    Bytes(Vec<u8>),
    Open,
}

impl Invocation {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            input: Input::Null,
            unread: false,
            timeout: TIMEOUT,
        }
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Standard input: these bytes, then end of file. Without it, it is `/dev/null`.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Standard input: a pipe that stays open, see [`Running::stdin`].
    pub fn stdin_open(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// No standard input at all: descriptor 0 is closed.
    pub fn stdin_closed(mut self) -> Self {
        self.input = Input::Closed;
        self
    }

    /// Leaves standard output unread, as a reader that was stopped does.
    pub fn stdout_unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// How long it may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Program, arguments and environment.
    pub(crate) fn command(&self) -> Command {
        let mut command = if matches!(self.input, Input::Closed) {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "exec \"$0\" \"$@\" <&-"])
                .arg(&self.program);
            shell
        } else {
            Command::new(&self.program)
        };
        command.args(&self.args);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HRUN_") {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }

    pub(crate) fn line(&self) -> String {
        let mut line = self
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for arg in &self.args {
            let _ = write!(line, " {:?}", arg.to_string_lossy());
        }
        line
    }

    pub(crate) fn time_limit(&self) -> Duration {
        self.timeout
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// The program cannot be executed.
    pub fn spawn(mut self) -> Result<Running> {
        let line = self.line();
        let mut command = self.command();
        command
            .stdin(match self.input {
                Input::Null | Input::Closed => Stdio::null(),
                Input::Bytes(_) | Input::Open => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("Failed to start {line}"))?;
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = std::mem::replace(&mut self.input, Input::Null)
            && let Some(mut pipe) = stdin.take()
        {
            // A command that reads no more makes this fail; its output tells what happened.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let (unread, stdout) = if self.unread {
            (Some(stdout), Capture::ended())
        } else {
            (None, Capture::of(stdout))
        };
        Ok(Running {
            child,
            line,
            started,
            timeout: self.timeout,
            stdin,
            unread,
            stdout,
            stderr: Capture::of(stderr),
        })
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    ///
    /// It cannot be executed or does not end in time.
    pub fn run(self) -> Result<Outcome> {
        self.spawn()?.wait()
    }
}

/// A command that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    started: Instant,
    timeout: Duration,
    /// Its standard input, if [`Invocation::stdin_open`] left it to the test.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, if [`Invocation::stdout_unread`] left it to the test.
    pub unread: Option<std::process::ChildStdout>,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()).context("a child has a process number")?;
        kill_process(pid, signal)
            .with_context(|| format!("Failed to send signal {signal:?} to {}", self.line))
    }

    /// Waits until standard output contains `text` and gives what was printed so far.
    ///
    /// # Errors
    ///
    /// The output ends or the time is up before that.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        let limit = self.timeout.saturating_sub(self.started.elapsed());
        let found = self.stdout.wait(limit, |captured| {
            contains(&captured.bytes, text.as_bytes()) || captured.ended
        });
        let printed = self.stdout.text();
        ensure!(
            found && printed.contains(text),
            "{} did not print {text:?}\nstdout: {printed}\nstderr: {}",
            self.line,
            self.stderr.text()
        );
        Ok(printed)
    }

    /// What it has printed to standard output so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.stdout.text()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .context("Failed to look after a child")?
            .is_some())
    }

    /// Waits for its end and the end of its output.
    ///
    /// # Errors
    ///
    /// The time is up: it is killed then.
    pub fn wait(mut self) -> Result<Outcome> {
        self.stdin = None;
        let limit = self.timeout;
        let status = loop {
            if let Some(status) = self
                .child
                .try_wait()
                .context("Failed to wait for a child")?
            {
                break status;
            }
            if self.started.elapsed() > limit {
                let _ = self.child.kill();
                bail!(
                    "{} did not end within {limit:?}\nstdout: {}\nstderr: {}",
                    self.line,
                    tail(&self.stdout.text()),
                    tail(&self.stderr.text())
                );
            }
            thread::sleep(POLL);
        };
        let took = self.started.elapsed();
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            ensure!(
                stream.wait(DRAIN, |captured| captured.ended),
                "{} has ended but somebody holds its {name} open",
                self.line
            );
        }
        Ok(Outcome {
            line: self.line.clone(),
            status,
            stdout: self.stdout.take(),
            stderr: self.stderr.text(),
            took,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    line: String,
    /// Its status, as the system gives it.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Demands this exit status.
    ///
    /// # Errors
    ///
    /// It ended otherwise; the message tells all there is.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(code),
            "expected exit status {code} of {}",
            self.describe()
        );
        Ok(self)
    }

    /// Demands that this signal ended it.
    ///
    /// # Errors
    ///
    /// It ended otherwise; the message tells all there is.
    pub fn dies_of(self, signal: Signal) -> Result<Self> {
        ensure!(
            self.status.signal() == Some(signal.as_raw()),
            "expected {signal:?} to end {}",
            self.describe()
        );
        Ok(self)
    }

    /// Demands success and exactly this output.
    ///
    /// # Errors
    ///
    /// It failed or printed something else; the message tells all there is.
    pub fn prints(self, expected: &str) -> Result<Self> {
        let outcome = self.exits(0)?;
        ensure!(
            outcome.stdout == expected.as_bytes(),
            "expected {expected:?} of {}",
            outcome.describe()
        );
        Ok(outcome)
    }

    /// Demands that `hrun run` itself failed, and said so as it should: status 125, and one line
    /// that contains each of `words`, perhaps with a hint below it.
    ///
    /// # Errors
    ///
    /// It did not, or in many words; the message tells all there is.
    pub fn fails_saying(self, words: &[&str]) -> Result<Self> {
        self.exits(125)?.says(words)
    }

    /// Demands that another command of hrun failed: the same, with status 1.
    ///
    /// # Errors
    ///
    /// It did not, or in many words; the message tells all there is.
    pub fn is_refused_saying(self, words: &[&str]) -> Result<Self> {
        self.exits(1)?.says(words)
    }

    fn says(self, words: &[&str]) -> Result<Self> {
        let outcome = self;
        ensure!(
            outcome.stdout.is_empty(),
            "expected no output of {}",
            outcome.describe()
        );
        let first = outcome.stderr.lines().next().unwrap_or_default();
        ensure!(
            first.starts_with("hrun: ") && outcome.stderr.lines().count() <= 4,
            "expected one sentence and a hint of {}",
            outcome.describe()
        );
        for word in words {
            ensure!(
                outcome.stderr.to_lowercase().contains(&word.to_lowercase()),
                "expected {word:?} in the message of {}",
                outcome.describe()
            );
        }
        Ok(outcome)
    }

    /// Everything about it, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{}\n{} after {:.1} s\nstdout: {}\nstderr: {}",
            self.line,
            self.status,
            self.took.as_secs_f64(),
            tail(&self.text()),
            tail(&self.stderr)
        )
    }
}

/// A stream that is read to its end by a thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ended: bool,
}

impl Capture {
    pub(crate) fn of(mut stream: impl Read + Send + 'static) -> Self {
        let capture = Self::default();
        let ours = capture.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                let mut captured = ours.lock();
                captured.bytes.extend_from_slice(&buffer[..read]);
                captured.ended = read == 0;
                ours.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        capture
    }

    /// Of a stream that somebody else reads.
    fn ended() -> Self {
        let capture = Self::default();
        capture.lock().ended = true;
        capture
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Captured> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `condition` holds, and says whether it came to hold in time.
    pub(crate) fn wait(&self, limit: Duration, condition: impl Fn(&Captured) -> bool) -> bool {
        let (captured, _) = self
            .0
            .1
            .wait_timeout_while(self.lock(), limit, |captured| !condition(captured))
            .unwrap_or_else(PoisonError::into_inner);
        condition(&captured)
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().bytes)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }
}

/// Whether `bytes` contain `part`.
pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// The last of a long text.
pub(crate) fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(4000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Waits until `condition` holds and gives what it gives.
///
/// # Errors
///
/// It does not within `limit`; the message says what was waited for.
pub fn eventually<T>(
    what: impl AsRef<OsStr>,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() > limit {
            bail!("waited {limit:?} in vain for {}", what.as_ref().display());
        }
        thread::sleep(POLL);
    }
}
