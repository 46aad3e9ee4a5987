//! The agent with real containers on this host: a directory takes the place of virtio-fs, a Unix
//! socket that of vsock.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod guest;
mod hooks;
mod joined;
mod lifecycle;
mod mounts;
mod overlay;
mod processes;
mod rights;
mod setup;
mod streams;
mod transfer;
mod treatment;
