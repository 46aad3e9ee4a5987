//! Runs one virtual machine on KVM. Knows nothing of containers.
//!
//! The binary `hrun-vmm` is one process per VM. Others use this library for [`config`], the
//! document that describes a VM, [`api`], the client of its control socket, and [`exit`], what
//! the exit status of the process means.

pub mod api;
pub mod config;
pub mod devices;
pub mod exit;
