//! The agent: its containers and processes, and the loop that serves the host.
//!
//! One thread, one epoll instance. Nothing the host sends ends it but
//! `Action::Shutdown`.
//!
//! Boundary: what the host asks for arrives here and is carried out by `container`, `process` and
//! `stream`; where the agent runs is known to its [`Config`].

mod connections;
mod hooks;
mod processes;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use agent_protocol::{Capabilities, ContainerId, Event, Hello, ProcessId, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::connection::Connection;
use crate::container::{Container, Kept, MountShare, Sandbox};
use crate::growth::Grow;
use crate::joined::Joins;
use crate::log;
use crate::poller::{EventFlags, Poller, Token};
use crate::sys::{self, Stack};

use connections::WaitingStream;
use hooks::Hooking;
use processes::Running;

/// How long processes may take to die at a shutdown.
const DYING: Duration = Duration::from_secs(2);

/// How long a host may take to read that the shutdown is done.
const FAREWELL: Duration = Duration::from_millis(200);

/// Bytes read from a control connection at once: a whole container start.
const READ: usize = 16 << 10;

/// Where an agent runs.
#[derive(Debug)]
pub struct Config {
    /// Accepts connections of the host.
    pub listener: OwnedFd,
    /// A directory in which containers are put together, each in a mount namespace of its own.
    pub staging: PathBuf,
    /// A directory of a cgroup2 file system, for the cgroups of containers.
    pub cgroup: OwnedFd,
    /// `/dev/urandom`
    pub urandom: OwnedFd,
    /// `/dev/vsock`, which knows what sets a VM apart from others. An agent without one, outside a
    /// VM, serves as it is.
    pub vsock: Option<OwnedFd>,
    /// Mounts the shares that containers name.
    pub mount_share: MountShare,
    /// Takes further CPUs and memory into use.
    pub grow: Grow,
    /// What to say on control connections.
    pub hello: Hello,
}

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The event loop's descriptors cannot be used.
    #[error("Failed to {action}")]
    Loop {
        /// What failed.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// No container can be made here.
    #[error("Failed to prepare a container")]
    Sandbox(#[source] Box<dyn Error + Send + Sync>),
}

fn looping<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> AgentError {
    move |source| AgentError::Loop {
        action,
        source: source.into(),
    }
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    poller: Poller,
    buffer: Vec<u8>,
    /// Parent of the containers' cgroups.
    cgroup: Rc<OwnedFd>,
    /// The agent itself, for the way back from another pid namespace.
    own: OwnedFd,
    /// The context identifier of the VM that was made different from every other.
    personal: Option<u32>,
    connections: BTreeMap<u32, Connection>,
    connections_made: u32,
    streams: BTreeMap<(ProcessId, Stream), WaitingStream>,
    /// The share that is kept mounted, to be the root of the next container.
    kept: Option<Kept>,
    /// Prepared for the next container.
    sandbox: Option<Sandbox>,
    sandboxes_made: u32,
    stack: Option<Stack>,
    containers: BTreeMap<ContainerId, Container>,
    processes: BTreeMap<ProcessId, Running>,
    /// Hooks that run, by the container of which they are.
    hooks: BTreeMap<ContainerId, Hooking>,
    /// Exits that nobody was there to be told.
    undelivered: VecDeque<Event>,
    /// Connection and identifier of a request to shut down.
    shutdown: Option<(u32, u32)>,
}

impl Agent {
    /// An agent that is ready to serve, with a sandbox for its first container.
    ///
    /// # Errors
    ///
    /// The kernel refuses something that every container needs.
    pub fn new(mut config: Config) -> Result<Self, AgentError> {
        crate::sys::restore_terminal_signals();
        let poller = Poller::new().map_err(looping("make an epoll instance"))?;
        rustix::io::ioctl_fionbio(&config.listener, true)
            .map_err(looping("prepare the listening socket"))?;
        poller
            .update(
                &config.listener,
                Token::Listener,
                EventFlags::empty(),
                EventFlags::IN,
            )
            .map_err(looping("watch the listening socket"))?;
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(looping("open the agent's process"))?;
        let cgroup = config
            .cgroup
            .try_clone()
            .map_err(looping("open the cgroup"))?;
        config.hello.ready_us = monotonic_us();
        let mut agent = Self {
            config,
            poller,
            buffer: vec![0; READ],
            cgroup: Rc::new(cgroup),
            own,
            personal: None,
            connections: BTreeMap::new(),
            connections_made: 0,
            streams: BTreeMap::new(),
            kept: None,
            sandbox: None,
            sandboxes_made: 0,
            stack: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            hooks: BTreeMap::new(),
            undelivered: VecDeque::new(),
            shutdown: None,
        };
        let sandbox = agent
            .make_sandbox(None, Capabilities::DEFAULT.bounding, Joins::default())
            .map_err(|error| AgentError::Sandbox(Box::new(error)))?;
        agent.sandbox = Some(sandbox);
        Ok(agent)
    }

    /// What the agent says about itself, as of now.
    pub fn hello(&self) -> Hello {
        Hello {
            ready_us: monotonic_us(),
            ..self.config.hello.clone()
        }
    }

    /// Serves the host until it asks for a shutdown and that is done.
    ///
    /// # Errors
    ///
    /// The event loop itself fails.
    pub fn serve(&mut self) -> Result<(), AgentError> {
        while self.shutdown.is_none() {
            let tokens = self
                .poller
                .wait(self.until_next_deadline())
                .map_err(looping("wait for events"))?;
            for token in tokens {
                match token {
                    Token::Listener => self.accept(),
                    Token::Connection(id) => self.connection_event(id),
                    Token::Exit(id) => self.reap(id),
                    Token::Hook(id) => self.reap_hook(id),
                    Token::Stream(id, stream, end) => self.stream_event(id, stream, end),
                }
            }
            self.cut_streams();
            self.end_late_hooks();
            self.flush();
        }
        self.shut_down();
        Ok(())
    }

    fn until_next_deadline(&self) -> Option<Duration> {
        match (self.until_next_cut(), self.until_next_late_hook()) {
            (Some(cut), Some(hook)) => Some(cut.min(hook)),
            (cut, hook) => cut.or(hook),
        }
    }

    /// Ends every process, writes everything to the host's disks and says so.
    fn shut_down(&mut self) {
        self.sandbox = None;
        for container in self.containers.values() {
            if let Err(error) = container.cgroup.kill() {
                log::warn(format_args!("Failed to end a container: {error}"));
            }
        }
        let deadline = Instant::now() + DYING;
        for running in self
            .processes
            .values()
            .filter(|running| running.ended.is_none())
        {
            let _ = sys::pidfd_signal(running.pidfd.as_fd(), libc::SIGKILL);
        }
        for running in self
            .processes
            .values()
            .filter(|running| running.ended.is_none())
        {
            if readable(running.pidfd.as_fd(), deadline) {
                let _ = waitid(WaitId::PidFd(running.pidfd.as_fd()), WaitIdOptions::EXITED);
            }
        }
        for hooking in std::mem::take(&mut self.hooks).into_values() {
            hooking.end(deadline);
        }
        self.processes.clear();
        self.containers.clear();
        rustix::fs::sync();
        if let Some((connection, request)) = self.shutdown {
            self.answer(connection, request, Ok(()));
            self.flush();
            // The answer must be out before the power is off.
            if let Some(connection) = self.connections.get(&connection) {
                let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Write);
                readable(connection.socket(), Instant::now() + FAREWELL);
            }
        }
        self.connections.clear();
    }
}

/// Waits until a descriptor is readable; false if it is not by `deadline`.
fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).unwrap_or_default();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

/// An error and its causes, in one line.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Microseconds since boot.
pub(crate) fn monotonic_us() -> u64 {
    monotonic_ns() / 1000
}

/// Nanoseconds since boot.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
