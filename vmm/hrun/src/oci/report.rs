//! What a process that is left behind tells the one that an engine waits for: how far it has come,
//! and what went wrong. A line of JSON each, over a pipe.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::{background, exit, process::ProcessIdentity};

/// Longest report, in bytes.
const MAX_REPORT: u64 = 64 << 10;

/// The descriptor that takes reports, and the one that is handed over.
const REPORT: i32 = 3;
const HANDED: i32 = 4;

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// Its control groups and its network namespace are the container's.
    Entered,
    /// What it was started for is done.
    Done,
    Failed {
        text: String,
        status: u8,
    },
}

/// Failure to leave a process behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("Failed to prepare the container's process")]
    Prepare(#[source] io::Error),
    #[error("Failed to hand descriptors to the container's process")]
    Descriptors(#[from] FdMappingCollision),
    #[error("Failed to start the container's process")]
    Spawn(#[source] io::Error),
    #[error("Failed to hear from the container's process")]
    Read(#[source] io::Error),
    #[error("The container's process ended without a word")]
    Silent,
    #[error("{text}")]
    Failed { text: String, status: u8 },
}

/// A process that will be left behind. Until it says that it is done, dropping this ends it.
#[derive(Debug)]
pub(crate) struct Left {
    child: Option<Child>,
    reports: BufReader<io::Take<File>>,
}

/// Starts this program once more, with our standard streams and with one descriptor more.
pub(crate) fn spawn(
    args: impl IntoIterator<Item = OsString>,
    handed: OwnedFd,
) -> Result<Left, ReportError> {
    let prepare = |error: rustix::io::Errno| ReportError::Prepare(error.into());
    // Engines leave descriptors open for programs of theirs that need them.
    vmm::fds::close_at_exec(3).map_err(ReportError::Prepare)?;
    let (reports, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(prepare)?;
    let path = env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mappings = [(theirs, REPORT), (handed, HANDED)];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    let mut command = Command::new(path);
    command
        .arg0("hrun")
        .args(args)
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| background::is_of_hrun(name)))
        .stdin(Stdio::inherit())
        .fd_mappings(mappings.into())?;
    let child = command.spawn().map_err(ReportError::Spawn)?;
    Ok(Left {
        child: Some(child),
        reports: BufReader::new(File::from(reports).take(MAX_REPORT)),
    })
}

impl Left {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What others know it by.
    pub(crate) fn identity(&self) -> Option<ProcessIdentity> {
        ProcessIdentity::of_number(self.pid().try_into().ok()?)
    }

    /// Stays until its end, and gives its status.
    pub(crate) fn wait(mut self) -> io::Result<u8> {
        let Some(mut child) = self.child.take() else {
            return Ok(exit::HRUN_FAILED);
        };
        let status = child.wait()?;
        let code = status.code().or(status.signal().map(|signal| signal + 128));
        Ok(code
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(exit::HRUN_FAILED))
    }

    /// Its next report.
    pub(crate) fn next(&mut self) -> Result<Report, ReportError> {
        let mut line = String::new();
        self.reports
            .read_line(&mut line)
            .map_err(ReportError::Read)?;
        match serde_json::from_str(&line) {
            Ok(Report::Failed { text, status }) => Err(ReportError::Failed { text, status }),
            Ok(report) => Ok(report),
            Err(_) => Err(ReportError::Silent),
        }
    }

    /// Lets it live on without us.
    pub(crate) fn leave(mut self) {
        self.child = None;
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // On the way out of a failure, which is what will be reported.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where a process that is left behind reports to.
#[derive(Debug)]
pub(crate) struct Reporter(File);

/// Takes the descriptors that [`spawn`] gave this process.
pub(crate) fn inherited() -> io::Result<(Reporter, File)> {
    let [reporter, handed] = [REPORT, HANDED].map(vmm::fds::inherited);
    Ok((Reporter(reporter?.into()), handed?.into()))
}

impl Reporter {
    /// Fails if nobody is there any more to be told.
    pub(crate) fn tell(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

/// An environment variable or an argument with a value.
pub(crate) fn option(name: &str, value: &OsStr) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}
