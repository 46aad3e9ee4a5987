//! The agent in the guest, as seen from the host: connections to it, requests and events.

mod ask;
mod connection;
mod control;
#[cfg(test)]
pub(crate) mod fake;

pub(crate) use ask::{AskError, ask};
pub(crate) use connection::{ConnectError, acknowledgement, connect};
pub(crate) use control::{Control, ControlError};
