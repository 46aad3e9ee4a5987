//! The conversation between a VMM and its owner: the configuration comes in, events go out.
//!
//! ```text
//! <- {"event":"loaded"}                            only with --preload
//! -> {"version":2,...}  end of file                the configuration
//! <- {"event":"running","phases":[...]}            its sockets are there
//! <- {"event":"ended","reason":"panic","message":"..."}
//! ```
//!
//! The channel is a Unix stream socket; anything else that can be read will do for the
//! configuration, and then there are no events.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use serde::{Deserialize, Serialize};

use crate::{api::Phase, exit::ExitReason};

/// Longest configuration document, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;

/// Longest event, in bytes.
pub const MAX_EVENT: u64 = 64 << 10;

/// What a VMM tells its owner, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The snapshot is loaded; the VMM waits for its configuration.
    Loaded,
    /// The VM is as it was configured to be, and its sockets are there.
    Running {
        /// When each phase was reached, in microseconds since the process began.
        phases: Vec<Phase>,
        /// The host's wall clock when the guest's clocks were set to where they stood in the
        /// snapshot, in nanoseconds since the Unix epoch: they have run since. None for a boot.
        clocks_set_ns: Option<u64>,
    },
    /// The VM is at its end, and the process will be in a moment.
    Ended {
        /// How.
        reason: ExitReason,
        /// What happened, for people.
        message: String,
    },
}

/// The VMM's end of the channel.
#[derive(Debug)]
pub struct Channel {
    file: File,
    is_socket: bool,
}

impl Channel {
    /// The channel behind this descriptor.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let is_socket = rustix::net::sockopt::socket_type(&fd).is_ok();
        Self {
            file: fd.into(),
            is_socket,
        }
    }

    /// Reads the configuration up to its end; it is empty if the owner has changed its mind.
    ///
    /// # Errors
    ///
    /// It cannot be read or is longer than [`MAX_CONFIG`].
    pub fn read_config(&mut self) -> io::Result<Vec<u8>> {
        let mut json = Vec::new();
        (&mut self.file).take(MAX_CONFIG).read_to_end(&mut json)?;
        if json.len() as u64 == MAX_CONFIG {
            return Err(io::Error::other(format!(
                "it has {MAX_CONFIG} bytes or more"
            )));
        }
        Ok(json)
    }

    /// Tells the owner. One that does not listen is not waited for: the exit status says the same.
    pub fn tell(&mut self, event: &Event) {
        if !self.is_socket {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&self.file, &line, flags);
        }
    }
}
