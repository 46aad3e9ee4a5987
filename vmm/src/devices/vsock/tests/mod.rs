//! Tests of the whole device: a driver on one side, Unix sockets on the other, the worker thread
//! between them.

#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes in tests are constants that fit"
)]

mod driver;
mod header;
mod hostile;
mod life;
mod muxer;
mod stream;
