//! How the process of a VM ends: its exit status and what it means.

use serde::{Deserialize, Serialize};

/// Why a VM is no more. The discriminant is the exit status of `hrun-vmm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ExitReason {
    /// The guest powered off, or `stop` came over the control socket.
    Shutdown = 0,
    /// The VMM failed on the host: the message is on standard error.
    Failed = 1,
    /// The configuration was refused; nothing was created.
    BadConfig = 2,
    /// A snapshot was refused: it is damaged or does not fit this host. Nothing was created.
    BadSnapshot = 3,
    /// The guest asked for a reset.
    Reset = 10,
    /// The guest kernel panicked.
    Panic = 11,
    /// A vCPU triple-faulted.
    TripleFault = 12,
    /// KVM could not go on with a vCPU, for instance at an instruction that it cannot emulate.
    InternalError = 13,
    /// The process that owned the VM is gone: the other end of `--lifeline-fd` was closed.
    Orphaned = 14,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Shutdown,
        Self::Failed,
        Self::BadConfig,
        Self::BadSnapshot,
        Self::Reset,
        Self::Panic,
        Self::TripleFault,
        Self::InternalError,
        Self::Orphaned,
    ];

    /// The exit status of `hrun-vmm`.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reason behind an exit status of `hrun-vmm`.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| i32::from(reason.code()) == code)
    }

    /// What happened, for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Shutdown => "the guest powered off",
            Self::Failed => "the VMM failed",
            Self::BadConfig => "the VM configuration was refused",
            Self::BadSnapshot => "the snapshot was refused",
            Self::Reset => "the guest asked for a reset",
            Self::Panic => "the guest kernel panicked",
            Self::TripleFault => "the guest triple-faulted",
            Self::InternalError => "KVM could not run the guest any further",
            Self::Orphaned => "the owner of the VM is gone",
        }
    }
}
