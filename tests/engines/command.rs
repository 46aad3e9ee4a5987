//! Commands that end in time.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::Write as _,
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};

/// After so many seconds a command is ended.
const SECONDS: &str = "150";

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    line: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program, with `input` on its standard input.
pub(crate) fn run<I>(program: &str, args: I, env: &[(&str, OsString)], input: &str) -> Result<Done>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", SECONDS, program]).args(args);
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
    pub(crate) fn exits(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "not status {code}: {}", self.describe());
        Ok(self)
    }

    pub(crate) fn prints(self, text: &str) -> Result<Self> {
        ensure!(self.stdout == text, "not {text:?}: {}", self.describe());
        Ok(self)
    }

    /// Has these words somewhere in its standard output.
    pub(crate) fn says(self, words: &[&str]) -> Result<Self> {
        let missing = words.iter().find(|word| !self.stdout.contains(**word));
        ensure!(missing.is_none(), "no {missing:?}: {}", self.describe());
        Ok(self)
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "{}: status {}, stdout {:?}, stderr {:?}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}
