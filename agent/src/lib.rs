//! The agent: PID 1 of hrun's guests. It sets containers up, runs their processes, carries their
//! standard streams and reports how they end.
//!
//! A library so that tests can run it on a host: the binary adds nothing but its `main`.
//!
//! Boundary: what the host may ask for is in `agent_protocol`. Unsafe code is in `sys` alone.
#![deny(unsafe_code)]

mod agent;
mod archiver;
mod assembly;
mod boot;
mod cgroup;
mod confine;
mod connection;
mod container;
mod copy;
mod file_system;
mod growth;
mod joined;
mod log;
mod overlay;
mod paths;
mod poller;
mod process;
mod stream;
mod sys;
mod user;

pub use agent::{Agent, AgentError, Config};
pub use boot::run;
pub use container::{MountShare, mount_virtiofs};
pub use growth::{Grow, GuestSize, grow_guest};
