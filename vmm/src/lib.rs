//! Runs one virtual machine on KVM. Knows nothing of containers.
//!
//! The binary `hrun-vmm` is one process per VM. Others use this library for [`config`], the
//! document that describes a VM, [`api`], the client of its control socket, and [`exit`], what
//! the exit status of the process means.

pub mod api;
pub mod arch;
pub mod builder;
pub mod channel;
pub mod config;
pub mod control;
pub mod devices;
pub mod end;
pub mod exit;
pub mod fds;
pub mod host_kind;
pub mod logger;
pub mod ports;
pub mod profile;
pub mod restore;
pub mod sandbox;
pub mod shares;
pub mod snapshot;
pub mod timeline;
pub mod vcpu;
pub mod virtio_mmio;
