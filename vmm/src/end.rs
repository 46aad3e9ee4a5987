//! How threads of the VMM say that the VM has come to its end: the first reason wins.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use rustix::event::{EventfdFlags, eventfd};

use crate::exit::ExitReason;

/// The end of a VM, shared by all threads that may bring it about.
pub struct End {
    why: OnceLock<(ExitReason, String)>,
    event: OwnedFd,
}

impl End {
    /// A VM that has not ended.
    ///
    /// # Errors
    ///
    /// No event descriptor could be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            why: OnceLock::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Ends the VM; `message` says what happened, for people.
    pub fn set(&self, reason: ExitReason, message: impl Into<String>) {
        if self.why.set((reason, message.into())).is_ok() {
            // A single write of 1 cannot overflow the counter.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Why the VM ended, if it has.
    #[must_use]
    pub fn reason(&self) -> Option<&(ExitReason, String)> {
        self.why.get()
    }

    /// Readable once the VM has ended.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// An error and its sources in one line.
#[must_use]
pub fn chain(err: &dyn Error) -> String {
    let mut message = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        message.push_str(": ");
        message.push_str(&err.to_string());
        source = err.source();
    }
    message
}
