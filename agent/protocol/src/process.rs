//! What a process is asked to be. The wire form is pinned with that of the messages.

use serde::{Deserialize, Serialize};

use crate::{ContainerId, ProcessId};

/// A process to start in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The host's number for it.
    pub id: ProcessId,
    /// The container it runs in.
    pub container: ContainerId,
    /// Program and arguments, at least one. Without a slash the program is looked up in `PATH`.
    pub args: Vec<String>,
    /// Environment, as `NAME=value`. `HOME` is set from the user's passwd entry if it is missing.
    pub env: Vec<String>,
    /// Working directory: absolute, in the container; made if it is missing.
    pub cwd: String,
    /// Make `cwd` if it is missing, as docker does for an image's `WorkingDir`.
    pub create_cwd: bool,
    /// The user, as in an image's configuration: `""`, `user`, `uid`, `user:group`, `uid:gid`...
    /// Names are looked up in the container's `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// Further groups: names or numbers, besides those that `/etc/group` gives to the user.
    pub additional_groups: Vec<String>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Programs that it executes give it no more rights than it has.
    pub no_new_privileges: bool,
    /// Filters for its system calls, the first to be installed first: of what they say the kernel
    /// takes the strictest (seccomp(2)).
    pub seccomp: Vec<SeccompFilter>,
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2), as bits.
    pub seccomp_flags: u32,
    /// Its file mode creation mask.
    pub umask: Option<u32>,
    /// Whom the kernel ends first when memory runs out: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// What else of the kernel's treatment is not the usual.
    pub treatment: Treatment,
    /// Programs that are to run in the container before it, one after the other; if one fails, the
    /// process is not started. Only the first process of a container has any.
    pub hooks: Vec<Hook>,
    /// A pseudo-terminal, or pipes.
    pub stdio: Stdio,
}

/// A process in a container that runs, which is the agent itself: it moves files. The image has no
/// part in it: links and mounts are the container's. It is root's, may do what files need, and exits
/// with 0, or with 1 and what went wrong as the last line on its standard error, where before it is
/// told what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The host's number for it.
    pub id: ProcessId,
    /// The container it runs in.
    pub container: ContainerId,
    /// What it does.
    pub archiving: Archiving,
}

impl Transfer {
    /// How it is connected.
    #[must_use]
    pub const fn stdio(&self) -> Stdio {
        Stdio::Pipes {
            stdin: matches!(self.archiving, Archiving::Unpack { .. }),
        }
    }
}

/// Files out of a container or into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Archiving {
    /// Write a tar archive of a file or of a directory with all below it to standard output.
    Pack {
        /// What, from the container's root; a directory's contents if it ends in `/.`.
        path: Vec<u8>,
        /// Follow a link that it is itself.
        follow: bool,
    },
    /// Put what a tar archive on standard input holds into its place.
    Unpack {
        /// Where, from the container's root.
        path: Vec<u8>,
        /// If it is the archive of one file or directory, its name there, empty for contents: it
        /// goes into the directory at `path` or gets that name. Any other archive goes into the
        /// directory at `path`.
        name: Option<Vec<u8>>,
        /// Files belong to whom the archive says, and not to root.
        keep_owner: bool,
    },
}

/// How the kernel treats a process, where that is not the usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treatment {
    /// Policy and priority (sched_setattr(2)).
    pub scheduler: Option<Scheduler>,
    /// Class and level of its input and output, as ioprio_set(2) wants them.
    pub io_priority: Option<u32>,
    /// Numbers of the CPUs that it may run on; empty for all.
    pub cpus: Vec<u32>,
    /// Its execution domain (personality(2)).
    pub personality: Option<u32>,
    /// How far its clocks are from the guest's.
    pub time_offsets: Option<TimeOffsets>,
}

/// What sched_setattr(2) takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`
    pub policy: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    /// For ordinary policies: -20 to 19.
    pub nice: i32,
    /// For real-time policies: 1 to 99.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub period: u64,
}

/// Offsets of clocks, each in seconds and nanoseconds (time_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffsets {
    /// Of the monotonic clock.
    pub monotonic: (i64, u32),
    /// Of the clock that counts the time since boot.
    pub boottime: (i64, u32),
}

/// A program that runs in a container before its first process does, as root and with every
/// capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path in the container.
    pub path: String,
    /// Its arguments, the name of the program first; without any there is its path.
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Seconds after which it has failed.
    pub timeout: Option<u32>,
    /// What it reads.
    pub input: Vec<u8>,
}

/// Sets of capabilities, as bits (capability.h of the kernel, capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What programs can get at most.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What can be put in force.
    pub permitted: u64,
    /// What programs with inheritable capabilities get.
    pub inheritable: u64,
    /// What every program gets, whoever the user is.
    pub ambient: u64,
}

impl Capabilities {
    /// Docker's fourteen: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
    /// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    pub const DEFAULT: Self = Self::of(0xa804_25fb);

    /// These for root's programs, and nothing for those of others.
    #[must_use]
    pub const fn of(set: u64) -> Self {
        Self {
            bounding: set,
            effective: set,
            permitted: set,
            inheritable: 0,
            ambient: 0,
        }
    }
}

/// A program of the kernel's classic BPF (linux/filter.h): an instruction each, as code, jt, jf and
/// k from the highest bits to the lowest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter(pub Vec<u64>);

/// How a process is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// A pseudo-terminal of this size: [`crate::Stream::Terminal`].
    Terminal(WindowSize),
    /// Pipes: [`crate::Stream::Stdout`] and [`crate::Stream::Stderr`], and [`crate::Stream::Stdin`] if asked for
    /// (otherwise `/dev/null`).
    Pipes {
        /// The host connects [`crate::Stream::Stdin`].
        stdin: bool,
    },
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A resource limit, as in `setrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` of Linux on x86-64.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is no limit.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is no limit.
    pub hard: u64,
}
