//! Between a container in the background and those who watch it, over a socket in its runtime
//! directory, which only root can reach.
//!
//! ```text
//! watcher -> owner   one byte, INPUT or OUTPUT; after INPUT, keys until the end of input
//! owner -> watcher   an empty frame: from here on he hears everything; then
//!                    frames, as docker has them: kind, 3 zeros, length (big-endian u32), bytes
//! ```
//!
//! Signals and window sizes do not take this way: a watcher asks the agent himself.

mod audience;
mod frame;
mod keys;
mod watcher;

pub(crate) use audience::{Audience, Input};
pub(crate) use keys::Keys;
pub(crate) use watcher::{Outcome, WatchError, Watcher};

/// Name of the socket in the runtime directory.
pub(crate) const SOCKET: &str = "attach";

/// Says that the watcher sends input as well.
const INPUT: u8 = b'i';
/// Says that he does not.
const OUTPUT: u8 = b'o';
