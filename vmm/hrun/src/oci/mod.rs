//! hrun as an OCI runtime: what podman, containerd, docker and CRI-O call in the place of runc.
//!
//! ```text
//! engine -> hrun create ID --- makes ROOT/ID and starts ---> shim: control groups, network
//!            |   ^                                             |     namespace, the VM, in it the
//!            |   '------------- "entered", "created" ----------'     container without a program
//!            '-> hooks, pid file, and ends
//! engine -> hrun start ID ---- asks ------------------------> shim starts the program, carries
//!                                                             its streams, and ends as it does
//! engine -> hrun kill|exec|pause ID -------> the agent in the VM, or the VM's control socket
//! engine -> hrun delete ID ----------------- ends what is left and removes ROOT/ID
//! ```
//!
//! The shim is the process that engines take for the container: they wait for it, look into its
//! control groups and its network namespace. It holds the lock in ROOT/ID: a container whose lock
//! is free is stopped, whatever its record says.

mod bundle;
mod cgroup;
mod cli;
mod commands;
mod console;
mod containers;
mod failure;
mod features;
mod hooks;
mod network;
mod orders;
pub(crate) mod plan;
pub(crate) mod pod;
mod record;
mod report;
mod shim;
mod view;

pub(crate) use cli::{OciCli, is_meant};
pub(crate) use commands::execute;
pub(crate) use failure::status_of;
