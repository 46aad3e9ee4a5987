//! Exit statuses of hrun, as docker has them.

use std::io::{self, Write};

use agent_protocol::Failure;

use crate::{
    attach::WatchError,
    background,
    commands::{bench, run::ImageOrCommand},
    oci,
    sandbox::BootError,
    session::SessionError,
};

/// hrun itself failed, and nothing ran.
pub(crate) const HRUN_FAILED: u8 = 125;
/// The program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The program does not exist.
const NOT_FOUND: u8 = 127;
/// A signal ended it: this plus its number.
const SIGNALED: u8 = 128;
/// A command other than `run` failed.
const COMMAND_FAILED: u8 = 1;
/// A command other than `run` was not understood.
const USAGE: u8 = 2;

/// The status for a failure.
pub(crate) fn status_of(error: &anyhow::Error, for_run: bool) -> u8 {
    for cause in error.chain() {
        if let Some(BootError::Interrupted(signal)) = cause.downcast_ref() {
            return signaled(*signal);
        }
        if let Some(status) = background::status_of(cause) {
            return status;
        }
        if let Some(status) = oci::status_of(cause) {
            return status;
        }
        if let Some(bench::Interrupted(signal)) = cause.downcast_ref() {
            return signaled(*signal);
        }
        if let Some(WatchError::Interrupted(signal)) = cause.downcast_ref() {
            return signaled(*signal);
        }
        match cause.downcast_ref() {
            Some(SessionError::Interrupted(signal) | SessionError::Hung(signal)) => {
                return signaled(*signal);
            }
            Some(SessionError::Agent { kind, .. }) => match kind {
                Failure::NotFound => return NOT_FOUND,
                Failure::NotExecutable => return NOT_EXECUTABLE,
                Failure::NoSuchProcess | Failure::Invalid | Failure::System => {}
            },
            _ => {}
        }
    }
    if for_run || error.is::<ImageOrCommand>() {
        HRUN_FAILED
    } else {
        COMMAND_FAILED
    }
}

/// The status for arguments that are not understood.
pub(crate) fn status_of_usage(for_run: bool) -> u8 {
    if for_run { HRUN_FAILED } else { USAGE }
}

fn signaled(signal: i32) -> u8 {
    u8::try_from(signal).map_or(HRUN_FAILED, |signal| SIGNALED.saturating_add(signal))
}

/// Writes to standard error, which may be gone: the status still says what is to be said.
pub(crate) fn print_error(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn agent(kind: Failure) -> anyhow::Error {
        let error = SessionError::Agent {
            kind,
            message: "no".into(),
        };
        anyhow::Error::new(error)
    }

    #[test]
    fn statuses_are_dockers() {
        assert_eq!(status_of(&agent(Failure::NotFound), true), 127);
        assert_eq!(status_of(&agent(Failure::NotExecutable), true), 126);
        assert_eq!(status_of(&agent(Failure::System), true), 125);
        let interrupted = anyhow::Error::new(BootError::Interrupted(15));
        assert_eq!(status_of(&interrupted, true), 143);
        assert_eq!(status_of(&anyhow::anyhow!("x"), true), 125);
        assert_eq!(status_of(&anyhow::anyhow!("x"), false), 1);
    }

    #[test]
    fn the_cause_is_found_behind_its_context() {
        let error = Err::<(), _>(agent(Failure::NotFound))
            .context("Failed to run")
            .unwrap_err();
        assert_eq!(status_of(&error, true), 127);
    }
}
