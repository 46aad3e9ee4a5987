//! One question to an agent, and its answer.

use std::{path::Path, time::Instant};

use agent_protocol::{Action, Event, Failure};
use rustix::event::{PollFd, PollFlags};

use super::{Control, ControlError};
use crate::poll;

/// A question that was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("Failed to wait for the guest")]
    Wait(#[source] std::io::Error),
    #[error("The guest does not answer")]
    Silent,
    #[error("{message}")]
    Refused { kind: Failure, message: String },
}

/// Has the agent behind a VMM's socket do something, and waits until it is done.
pub(crate) fn ask(vsock: &Path, action: Action, deadline: Option<Instant>) -> Result<(), AskError> {
    let mut control = Control::open(vsock, vec![action])?;
    loop {
        let mut fds = [PollFd::new(&control, PollFlags::IN)];
        if !poll::wait(&mut fds, deadline).map_err(AskError::Wait)? {
            return Err(AskError::Silent);
        }
        for event in control.receive()? {
            match event {
                Event::Done { request: 0 } => return Ok(()),
                Event::Failed {
                    request: 0,
                    kind,
                    message,
                } => return Err(AskError::Refused { kind, message }),
                _ => {}
            }
        }
    }
}
