//! Clients of engines, and other programs of the machine: they end in time.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::Write as _,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// After that a command is ended.
const LIMIT: Duration = Duration::from_secs(150);

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    line: String,
    /// Its exit status; -1 if a signal ended it.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote there.
    pub stderr: String,
}

/// Runs a program, with `input` on its standard input.
///
/// # Errors
///
/// It could not be started, or nothing is known of its end.
pub fn run<I>(program: &str, args: I, env: &[(&str, OsString)], input: &str) -> Result<Done>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    run_within(LIMIT, program, args, env, input)
}

/// The same with another limit, in whole seconds. It holds for what the program starts, too, if that
/// stays in its process group.
///
/// # Errors
///
/// As of [`run`].
pub fn run_within<I>(
    limit: Duration,
    program: &str,
    args: I,
    env: &[(&str, OsString)],
    input: &str,
) -> Result<Done>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new("timeout");
    let seconds = limit.as_secs().to_string();
    command
        .args(["--signal=KILL", &seconds, program])
        .args(args);
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let mut line = program.to_owned();
    for arg in command.get_args().skip(3) {
        let _ = write!(line, " {:?}", arg.to_string_lossy());
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Failed to start {line}"))?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    let input = input.to_owned();
    // Who does not read it has no use for it.
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output()?;
    let _ = writer.join();
    Ok(Done {
        line,
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    })
}

impl Done {
    /// Has this exit status.
    ///
    /// # Errors
    ///
    /// It has another one.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "not status {code}: {}", self.describe());
        Ok(self)
    }

    /// Has exactly this standard output.
    ///
    /// # Errors
    ///
    /// It has another one.
    pub fn prints(self, text: &str) -> Result<Self> {
        ensure!(self.stdout == text, "not {text:?}: {}", self.describe());
        Ok(self)
    }

    /// Has these words somewhere in its standard output.
    ///
    /// # Errors
    ///
    /// One is missing.
    pub fn says(self, words: &[&str]) -> Result<Self> {
        let missing = words.iter().find(|word| !self.stdout.contains(**word));
        ensure!(missing.is_none(), "no {missing:?}: {}", self.describe());
        Ok(self)
    }

    /// All that is known of it, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{}: status {}, stdout {:?}, stderr {:?}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}
