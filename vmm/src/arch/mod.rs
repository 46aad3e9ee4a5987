//! What is x86-64 about a VM: where things lie in guest memory and how a vCPU begins.

pub mod boot_params;
pub mod cpuid;
pub mod layout;
pub mod long_mode;
pub mod mptable;
pub mod vcpu_state;
