//! The messages between hrun on the host and its agent in the guest, and their framing.
//!
//! This crate does no I/O: [`encode`] makes bytes, [`Decoder`] takes bytes. Both sides are
//! hostile to each other as far as this crate knows: every length is bounded and no input panics.
//!
//! # Connections
//!
//! All travel over virtio-vsock.
//!
//! | connection | opened by | first frame | then |
//! |---|---|---|---|
//! | ready | agent, to host port [`READY_PORT`] | [`Hello`] | the agent closes it |
//! | control | host, to guest port [`AGENT_PORT`] | [`Open::Control`] | agent: [`Hello`]; host: [`Request`]s; agent: [`Event`]s |
//! | stream | host, to guest port [`AGENT_PORT`] | [`Open::Stream`] | raw bytes, end of file by shutdown |
//!
//! The agent listens on [`AGENT_PORT`] before it says that it is ready, and it is the host that
//! connects: a guest restored from a template has nothing to reconnect and nothing to poll.
//!
//! Requests carry an identifier and may be sent without waiting for answers, so a whole container
//! start is one write. They are carried out in order; each is answered by [`Event::Done`],
//! [`Event::Personalized`], [`Event::Grown`] or [`Event::Failed`] with its identifier. A request
//! that builds on a failed one fails as well. An [`Action::Start`] or [`Action::Transfer`] whose
//! streams have not all been connected yet holds back the requests behind it on the same connection.
//!
//! Several control connections may be open at once. [`Event::Exited`] goes to the one that started
//! the process; if that is closed, to the newest one, and if there is none, to the next one right
//! behind its [`Hello`]. Nothing ends because a control connection closes, except that its requests
//! which were not carried out yet are dropped.
//!
//! A peer of another [`VERSION`] is recognised by [`Decoder::next_hello`] and
//! [`Decoder::next_open`]: the agent answers a foreign [`Open::Control`] with its [`Hello`] and
//! closes the connection.
#![forbid(unsafe_code)]

mod container;
mod frame;
mod message;
mod process;

pub use container::*;
pub use frame::{DecodeError, Decoder, EncodeError, MAX_FRAME, encode};
pub use message::*;
pub use process::*;
