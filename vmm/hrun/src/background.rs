//! Into the background: a process of its own session that outlives who started it, and tells him
//! whether what it was started for has begun.
//!
//! ```text
//! caller: spawn ------------- reads one line of JSON, and goes on ----->
//!            \                ^
//!             `-> Background::enter ... started() or failed() ... stays
//! ```

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags, open},
    pipe::{PipeFlags, pipe_with},
    process::{chdir, setsid},
    stdio,
};
use serde::{Deserialize, Serialize};

use crate::{exit, hint, poll, table};

/// Longest report, in bytes.
const MAX_REPORT: u64 = 64 << 10;

/// Failure to go into the background.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackgroundError {
    #[error("Failed to prepare a process of the background")]
    Prepare(#[source] io::Error),
    #[error("Failed to start {path} in the background")]
    Spawn { path: PathBuf, source: io::Error },
    #[error("Failed to hear from the process in the background")]
    Read(#[source] io::Error),
    #[error("The process in the background ended without a word")]
    Silent,
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// What the process in the background could not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{text}")]
pub(crate) struct Failed {
    text: String,
    pub(crate) hint: Option<String>,
    pub(crate) status: u8,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Started,
    Failed(Failed),
}

/// A process in the background that has not said yet whether it has begun its work.
#[derive(Debug)]
pub(crate) struct Beginning {
    report: File,
}

impl Beginning {
    /// Whether it has said so, or ended.
    pub(crate) fn has_ended(&self) -> Result<bool, BackgroundError> {
        let mut fds = [PollFd::new(&self.report, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now())).map_err(BackgroundError::Read)
    }

    /// Waits until it has.
    pub(crate) fn wait(self) -> Result<(), BackgroundError> {
        let mut line = String::new();
        self.report
            .take(MAX_REPORT)
            .read_to_string(&mut line)
            .map_err(BackgroundError::Read)?;
        match serde_json::from_str(&line) {
            Ok(Report::Started) => Ok(()),
            Ok(Report::Failed(failed)) => Err(failed.into()),
            Err(_) => Err(BackgroundError::Silent),
        }
    }
}

/// Starts this program in the background and waits until it has begun its work.
pub(crate) fn spawn(
    args: impl IntoIterator<Item = OsString>,
    stdin: impl Into<Stdio>,
    keep: impl Fn(&OsStr) -> bool,
) -> Result<(), BackgroundError> {
    begin(args, stdin, keep)?.wait()
}

/// Starts this program in the background.
pub(crate) fn begin(
    args: impl IntoIterator<Item = OsString>,
    stdin: impl Into<Stdio>,
    keep: impl Fn(&OsStr) -> bool,
) -> Result<Beginning, BackgroundError> {
    let prepare = |error: rustix::io::Errno| BackgroundError::Prepare(error.into());
    let (report, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(prepare)?;
    // The name in its own right, if nobody replaced the file meanwhile.
    let path = env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = Command::new(&path);
    command
        .arg0("hrun")
        .args(args)
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| keep(name)))
        .stdin(stdin)
        .stdout(theirs);
    let spawned = command.spawn();
    // It holds our copy of their end.
    drop(command);
    spawned.map_err(|source| BackgroundError::Spawn { path, source })?;
    Ok(Beginning {
        report: report.into(),
    })
}

/// The environment without the user's own variables, which may hold his secrets.
pub(crate) fn is_of_hrun(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"HRUN_") || name == "RUST_BACKTRACE" || name == "PATH"
}

/// This process, in the background.
#[derive(Debug)]
pub(crate) struct Background {
    report: Option<File>,
    null: OwnedFd,
}

impl Background {
    /// Leaves the session of who started us, and the directory. Gives our standard input as well.
    pub(crate) fn enter() -> Result<(Self, OwnedFd), BackgroundError> {
        let enter = || {
            let stdin = stdio::stdin().try_clone_to_owned()?;
            let report = stdio::stdout().try_clone_to_owned()?;
            let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            stdio::dup2_stdin(&null)?;
            stdio::dup2_stdout(&null)?;
            setsid()?;
            chdir("/")?;
            let report = Some(File::from(report));
            io::Result::Ok((Self { report, null }, stdin))
        };
        enter().map_err(BackgroundError::Prepare)
    }

    /// What we are for has begun.
    pub(crate) fn started(&mut self) {
        self.tell(&Report::Started);
    }

    /// It failed. Who started us hears it, unless it had begun.
    pub(crate) fn failed(&mut self, error: &anyhow::Error, status: u8) {
        self.tell(&Report::Failed(Failed {
            text: table::printable(&format!("{error:#}")),
            hint: hint::for_error(error),
            status,
        }));
    }

    fn tell(&mut self, report: &Report) {
        let Some(mut to) = self.report.take() else {
            return;
        };
        // Nobody hears us any more who could be told.
        let _ = stdio::dup2_stderr(&self.null);
        if let Ok(json) = serde_json::to_vec(report) {
            let _ = to.write_all(&json);
        }
    }
}

/// The status of a failure in the background.
pub(crate) fn status_of(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    match error.downcast_ref() {
        Some(BackgroundError::Failed(failed)) => Some(failed.status),
        Some(BackgroundError::Silent) => Some(exit::HRUN_FAILED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way() {
        let failed = Failed {
            text: "no".into(),
            hint: None,
            status: 127,
        };
        let json = serde_json::to_string(&Report::Failed(failed.clone())).unwrap();
        match serde_json::from_str(&json).unwrap() {
            Report::Failed(got) => assert_eq!(got, failed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_users_own_variables_stay_behind() {
        assert!(is_of_hrun(OsStr::new("HRUN_STORE")) && is_of_hrun(OsStr::new("PATH")));
        assert!(!is_of_hrun(OsStr::new("AWS_SECRET")) && !is_of_hrun(OsStr::new("HRUN")));
    }
}
