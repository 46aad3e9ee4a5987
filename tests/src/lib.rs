//! Harness of the end-to-end tests: it runs the built binaries as a user would, on directories of
//! its own, and proves after each test that nothing is left.
//!
//! A test is a function that gets a [`Case`]: a private `HRUN_STATE` and a private copy of an
//! image store. Whatever it starts through the case ends with it. [`Suite`] runs the tests.
#![forbid(unsafe_code)]

mod built;
mod case;
pub mod client;
mod command;
pub mod containerd;
pub mod daemon;
mod leaks;
pub mod memory;
mod mount;
pub mod platforms;
pub mod processes;
mod proxy;
mod registry;
pub mod samples;
mod suite;
mod terminal;
pub mod validation;
mod way;

pub use built::Built;
pub use case::{Case, Store};
pub use command::{Invocation, Outcome, Running, eventually};
pub use mount::Mounted;
pub use proxy::{Fault, Proxy, Request};
pub use registry::{Login, Registry};
pub use suite::{Suite, Test};
pub use terminal::Terminal;
