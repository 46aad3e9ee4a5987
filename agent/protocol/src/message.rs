//! The messages themselves. Their wire form is pinned by a golden test: a change there is a new
//! [`VERSION`].

use serde::{Deserialize, Serialize};

use crate::{Container, Process, Transfer, WindowSize};

/// Version of the protocol. Host and agent refuse to work with another one.
pub const VERSION: u32 = 9;

/// Host port (CID 2) to which the agent connects once, when it is ready for work.
pub const READY_PORT: u32 = 1024;

/// Guest port on which the agent accepts control and stream connections.
pub const AGENT_PORT: u32 = 1025;

/// What the agent says about itself, on the ready connection and at the start of control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`VERSION`]. Always the first field, whatever the version.
    pub version: u32,
    /// Version of the agent's package, for messages to people.
    pub agent: String,
    /// Release of the guest kernel, as `uname -r` prints it.
    pub kernel: String,
    /// `MemTotal` of the guest, in bytes.
    pub memory_total: u64,
    /// CPUs online in the guest.
    pub cpus: u32,
    /// Guest monotonic clock when the agent's `main` began, in microseconds since boot.
    pub started_us: u64,
    /// Guest monotonic clock when this was sent, in microseconds since boot.
    pub ready_us: u64,
}

/// First frame of each connection that the host opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// Requests and events follow. The first variant in every version.
    Control {
        /// The host's [`VERSION`]. Its first field in every version.
        version: u32,
    },
    /// The bytes of one standard stream follow.
    ///
    /// [`Stream::Stdin`] flows to the guest, [`Stream::Stdout`] and [`Stream::Stderr`] to the
    /// host, [`Stream::Terminal`] both ways. The connection may be made before or after the
    /// [`Action::Start`] or [`Action::Transfer`] that names the process; a process starts when all its
    /// streams are there.
    Stream {
        /// The process, as numbered by the host.
        process: ProcessId,
        /// Which of its streams.
        stream: Stream,
    },
}

/// A process in the guest, numbered by the host: never reused during the life of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

/// A container in the guest, numbered by the host. No two that exist at a time have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(pub u32);

/// A standard stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stream {
    /// Standard input, to the guest.
    Stdin,
    /// Standard output, to the host.
    Stdout,
    /// Standard error, to the host.
    Stderr,
    /// All three on one pseudo-terminal, both ways.
    Terminal,
}

/// What the host asks of the agent, in a frame of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the answer.
    pub id: u32,
    /// What to do.
    pub action: Action,
}

/// What can be asked of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Make this VM different from every other: clock and randomness. Comes before any workload, and
    /// a clone of a VM that was made different is the same as every other again. Answered by
    /// [`Event::Personalized`].
    Personalize(Personality),
    /// Set a container up: root file system, mounts, devices, host name.
    Create(Box<Container>),
    /// Start a process in a container.
    Start(Box<Process>),
    /// Send a signal to a process that was started.
    Signal {
        /// The process to signal.
        process: ProcessId,
        /// Signal number, as Linux on x86-64 has it.
        signal: i32,
        /// Signal every process of its container instead.
        all: bool,
    },
    /// Set the window size of a process's terminal.
    Resize {
        /// The process whose terminal it is.
        process: ProcessId,
        /// The new size.
        size: WindowSize,
    },
    /// End every process, flush and unmount the file systems and power the VM off.
    Shutdown,
    /// Be ready for a container whose root file system is this share: keep the share mounted,
    /// whatever becomes of containers, and have all prepared that does not depend on the
    /// container. For a VM that is to be saved as a template for one image.
    Prepare {
        /// The share's virtio-fs tag.
        root: String,
    },
    /// Take CPUs and memory into use that the VM this one was cloned from did not have. Comes at
    /// most once, before any container. Answered by [`Event::Grown`].
    Grow(Growth),
    /// Stop every process of a container where it is, or let them go on.
    Freeze {
        /// The container.
        container: ContainerId,
        /// Whether they are to stop.
        frozen: bool,
    },
    /// End a container with all that runs in it. One that is not there has ended.
    Remove {
        /// The container.
        container: ContainerId,
    },
    /// Let go of what the host no longer shows: a file or directory of a share, and all below it.
    Forget {
        /// The share's virtio-fs tag.
        tag: String,
        /// Its path in the share.
        path: String,
    },
    /// Have other limits for a container, from now on.
    Limit {
        /// The container.
        container: ContainerId,
        /// Files of its cgroup, and what is to be written there.
        files: Vec<(String, String)>,
    },
    /// Move files out of a container that runs, or into it.
    Transfer(Box<Transfer>),
}

/// How large a VM is to be, and where it has got what makes it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// CPUs that are to be online.
    pub cpus: u32,
    /// Memory, if there is more of it.
    pub memory: Option<MemoryGrowth>,
}

/// Memory that a VM has in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryGrowth {
    /// What `MemTotal` is to be, in bytes.
    pub total: u64,
    /// Guest physical address at which it begins, with a memory map of its own that is written
    /// already: a multiple of 128 MiB.
    pub start: u64,
}

/// What differs from one clone of a template to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personality {
    /// The host's wall clock, in nanoseconds since the Unix epoch, at the moment in which...
    pub realtime_ns: u64,
    /// ...the guest's monotonic clock showed this, in nanoseconds: however long the message takes,
    /// the guest can tell what time it is.
    pub monotonic_ns: u64,
    /// Entropy of the host for the guest kernel's random number generator.
    pub entropy: [u8; 32],
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The request was carried out.
    Done {
        /// Its identifier.
        request: u32,
    },
    /// The request failed; nothing of it is left behind.
    Failed {
        /// Its identifier.
        request: u32,
        /// What kind of failure.
        kind: Failure,
        /// What was attempted, on what, and why it failed: for people.
        message: String,
    },
    /// A process ended and every byte it wrote was handed to its streams, which are closed.
    ///
    /// A stream that other processes still hold open five seconds after the end of the process is
    /// closed then.
    Exited {
        /// The process.
        process: ProcessId,
        /// How it ended.
        status: ExitStatus,
    },
    /// [`Action::Personalize`] was carried out, and this is what the guest is now.
    Personalized {
        /// Its identifier.
        request: u32,
        /// Its context identifier, as its kernel knows it.
        cid: u32,
        /// Its wall clock, in nanoseconds since the Unix epoch.
        realtime_ns: u64,
    },
    /// [`Action::Grow`] was carried out, and this is what the guest shows now.
    Grown {
        /// Its identifier.
        request: u32,
        /// CPUs online.
        cpus: u32,
        /// `MemTotal`, in bytes.
        memory_total: u64,
    },
}

/// Kinds of failure that a host treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The program does not exist (docker's status 127).
    NotFound,
    /// The program exists but cannot be executed (docker's status 126).
    NotExecutable,
    /// The process is not there (any more).
    NoSuchProcess,
    /// The request contradicts itself or what exists.
    Invalid,
    /// A system call failed.
    System,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called `exit` with this status.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

impl ExitStatus {
    /// The status as a shell gives it: the process's own, or 128 plus the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Exited(code) => code,
            ExitStatus::Signaled(signal) => 128u8.saturating_add(signal),
        }
    }
}
