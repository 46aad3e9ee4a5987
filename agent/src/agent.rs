//! The agent: its containers and processes, and the loop that serves the host.
//!
//! One thread, one epoll instance. Nothing the host sends ends it but [`Action::Shutdown`].
//!
//! Boundary: what the host asks for arrives here and is carried out by `container`, `process` and
//! `stream`; where the agent runs is known to its [`Config`].

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use agent_protocol::{
    Action, ContainerId, Event, ExitStatus, Failure, Hello, Open, Personality, Process, ProcessId,
    Stream, WindowSize,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::connection::{Connection, ConnectionError, Read, Starting};
use crate::container::{Container, ContainerError, Init, MountShare, Sandbox};
use crate::log;
use crate::poller::{End, EventFlags, Poller, Token};
use crate::process::{self, Ends, Launch, StartError};
use crate::stream::Channel;
use crate::sys::{self, Stack};

/// How long other processes may hold the streams of one that has ended.
const LINGER: Duration = Duration::from_secs(5);

/// How long processes may take to die at a shutdown.
const DYING: Duration = Duration::from_secs(2);

/// How long a host may take to read that the shutdown is done.
const FAREWELL: Duration = Duration::from_millis(200);

/// Most streams that wait for their process.
const MAX_WAITING_STREAMS: usize = 256;

/// Most connections that greet or control.
const MAX_CONNECTIONS: usize = 256;

/// Most exits kept for a host that is not connected.
const MAX_UNDELIVERED: usize = 1024;

/// Longest message of a failure, in bytes.
const MAX_MESSAGE: usize = 4096;

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
    /// Mounts the shares that containers name.
    pub mount_share: MountShare,
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

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("Process {0} is not there")]
    NoProcess(u32),
    #[error("Process {0} is there already")]
    ProcessExists(u32),
    #[error("Process {0} has no terminal")]
    NoTerminal(u32),
    #[error("Container {0} is not there")]
    NoContainer(u32),
    #[error("Container {0} is there already")]
    ContainerExists(u32),
    #[error("{0} is no signal")]
    NoSignal(i32),
    #[error("Failed to set up container {id}")]
    Create { id: u32, source: ContainerError },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("Failed to {action}")]
    System {
        action: &'static str,
        source: std::io::Error,
    },
}

impl RequestError {
    fn failure(&self) -> Failure {
        match self {
            Self::NoProcess(_) => Failure::NoSuchProcess,
            Self::ProcessExists(_)
            | Self::NoTerminal(_)
            | Self::NoContainer(_)
            | Self::ContainerExists(_)
            | Self::NoSignal(_)
            | Self::Create {
                source: ContainerError::HostName(_),
                ..
            } => Failure::Invalid,
            Self::Start(error) => error.failure(),
            Self::Create { .. } | Self::System { .. } => Failure::System,
        }
    }
}

fn system<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> RequestError {
    move |source| RequestError::System {
        action,
        source: source.into(),
    }
}

/// A process that was started.
#[derive(Debug)]
struct Running {
    container: ContainerId,
    /// The connection that started it.
    owner: u32,
    pidfd: OwnedFd,
    channels: Vec<Channel>,
    ended: Option<Ended>,
}

/// A process that has ended, while its streams have not.
#[derive(Debug, Clone, Copy)]
struct Ended {
    status: ExitStatus,
    /// When its streams are cut.
    cut: Instant,
}

/// A stream whose process is not started yet.
#[derive(Debug)]
struct WaitingStream {
    socket: OwnedFd,
    early: Vec<u8>,
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
    connections: BTreeMap<u32, Connection>,
    connections_made: u32,
    streams: BTreeMap<(ProcessId, Stream), WaitingStream>,
    /// Prepared for the next container.
    sandbox: Option<Sandbox>,
    sandboxes_made: u32,
    stack: Option<Stack>,
    containers: BTreeMap<ContainerId, Container>,
    processes: BTreeMap<ProcessId, Running>,
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
            connections: BTreeMap::new(),
            connections_made: 0,
            streams: BTreeMap::new(),
            sandbox: None,
            sandboxes_made: 0,
            stack: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            undelivered: VecDeque::new(),
            shutdown: None,
        };
        let sandbox = agent
            .make_sandbox()
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
                .wait(self.until_next_cut())
                .map_err(looping("wait for events"))?;
            for token in tokens {
                match token {
                    Token::Listener => self.accept(),
                    Token::Connection(id) => self.connection_event(id),
                    Token::Exit(id) => self.reap(id),
                    Token::Stream(id, stream, end) => self.stream_event(id, stream, end),
                }
            }
            self.cut_streams();
            self.flush();
        }
        self.shut_down();
        Ok(())
    }

    fn accept(&mut self) {
        let (socket, peer) = match sys::accept(self.config.listener.as_fd()) {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => return log::warn(format_args!("Failed to accept: {error}")),
        };
        // Processes of the guest have no business here.
        if peer.is_some_and(|cid| cid != sys::HOST_CID) || self.connections.len() >= MAX_CONNECTIONS
        {
            return;
        }
        self.connections_made += 1;
        let id = self.connections_made;
        self.connections.insert(id, Connection::new(id, socket));
        // The host usually writes together with connecting.
        self.connection_event(id);
    }

    fn connection_event(&mut self, id: u32) {
        if let Err(error) = self.serve_connection(id) {
            log::warn(format_args!("{}", explain(&error)));
            self.close_connection(id);
        }
    }

    fn serve_connection(&mut self, id: u32) -> Result<(), ConnectionError> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        match connection.read(&mut self.buffer)? {
            Read::End => {
                self.close_connection(id);
                Ok(())
            }
            Read::Nothing => Ok(()),
            Read::Bytes if connection.controls => self.serve_requests(id),
            Read::Bytes => self.serve_greeting(id),
        }
    }

    fn serve_greeting(&mut self, id: u32) -> Result<(), ConnectionError> {
        let hello = self.hello();
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        match connection.open() {
            Ok(None) => Ok(()),
            Ok(Some(Open::Control { .. })) => {
                connection.controls = true;
                connection.greet(&hello);
                while let Some(event) = self.undelivered.pop_front() {
                    connection.tell(&event);
                }
                self.serve_requests(id)
            }
            Ok(Some(Open::Stream { process, stream })) => {
                connection.unwatch(&self.poller)?;
                if let Some(connection) = self.connections.remove(&id) {
                    let (socket, early) = connection.into_stream();
                    self.add_stream(process, stream, WaitingStream { socket, early });
                }
                Ok(())
            }
            Err(error) => {
                // It may be a host of another version: let it see this one.
                connection.greet(&hello);
                let _ = connection.flush();
                Err(error)
            }
        }
    }

    fn serve_requests(&mut self, id: u32) -> Result<(), ConnectionError> {
        while self.shutdown.is_none()
            && let Some(connection) = self.connections.get_mut(&id)
            && let Some(request) = connection.request()?
        {
            let result = match request.action {
                Action::Personalize(personality) => self.personalize(&personality),
                Action::Create(spec) => self.create(&spec),
                Action::Start(process) => {
                    connection.starting = Some(Starting {
                        request: request.id,
                        process,
                    });
                    self.try_start(id);
                    continue;
                }
                Action::Signal {
                    process,
                    signal,
                    all,
                } => self.signal(process, signal, all),
                Action::Resize { process, size } => self.resize(process, size),
                Action::Shutdown => {
                    self.shutdown = Some((id, request.id));
                    break;
                }
            };
            self.answer(id, request.id, result);
        }
        Ok(())
    }

    fn answer(&mut self, connection: u32, request: u32, result: Result<(), RequestError>) {
        let event = match result {
            Ok(()) => Event::Done { request },
            Err(error) => {
                let mut message = explain(&error);
                message.truncate(message.floor_char_boundary(MAX_MESSAGE));
                Event::Failed {
                    request,
                    kind: error.failure(),
                    message,
                }
            }
        };
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.tell(&event);
        }
    }

    fn close_connection(&mut self, id: u32) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if let Some(starting) = connection.starting {
            let process = starting.process.id;
            self.streams.retain(|(waiting, _), _| *waiting != process);
        }
    }

    fn personalize(&mut self, personality: &Personality) -> Result<(), RequestError> {
        const SECOND: u64 = 1_000_000_000;
        let ns = personality.realtime_ns;
        let time = Timespec {
            tv_sec: (ns / SECOND).cast_signed(),
            tv_nsec: (ns % SECOND).cast_signed(),
        };
        sys::reseed(self.config.urandom.as_fd(), &personality.entropy)
            .map_err(system("seed the random number generator"))?;
        clock_settime(ClockId::Realtime, time).map_err(system("set the clock"))
    }

    fn make_sandbox(&mut self) -> Result<Sandbox, ContainerError> {
        self.sandboxes_made += 1;
        let name = format!("container{}", self.sandboxes_made);
        Sandbox::prepare(&self.config.staging, &self.cgroup, name, self.stack.take())
    }

    fn create(&mut self, spec: &agent_protocol::Container) -> Result<(), RequestError> {
        let id = spec.id;
        if self.containers.contains_key(&id) {
            return Err(RequestError::ContainerExists(id.0));
        }
        let failed = |source| RequestError::Create { id: id.0, source };
        let sandbox = match self.sandbox.take() {
            Some(sandbox) => sandbox,
            None => self.make_sandbox().map_err(failed)?,
        };
        let container =
            Container::create(sandbox, spec, &self.config.staging, self.config.mount_share)
                .map_err(failed)?;
        self.containers.insert(id, container);
        Ok(())
    }

    /// Starts the process that a connection waits for, if its streams are there.
    fn try_start(&mut self, connection: u32) {
        let Some(starting) = self
            .connections
            .get_mut(&connection)
            .and_then(|connection| connection.starting.take())
        else {
            return;
        };
        let spec = &*starting.process;
        let result = match self.may_start(spec) {
            Ok(()) => {
                let there = |stream: &Stream| self.streams.contains_key(&(spec.id, *stream));
                if !process::streams(spec.stdio).iter().all(there) {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.starting = Some(starting);
                    }
                    return;
                }
                self.start(connection, spec)
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            let process = starting.process.id;
            self.streams.retain(|(waiting, _), _| *waiting != process);
        }
        self.answer(connection, starting.request, result);
    }

    fn may_start(&self, spec: &Process) -> Result<(), RequestError> {
        if self.processes.contains_key(&spec.id) {
            return Err(RequestError::ProcessExists(spec.id.0));
        }
        if !self.containers.contains_key(&spec.container) {
            return Err(RequestError::NoContainer(spec.container.0));
        }
        Ok(())
    }

    fn start(&mut self, owner: u32, spec: &Process) -> Result<(), RequestError> {
        let Some(container) = self.containers.get_mut(&spec.container) else {
            return Err(RequestError::NoContainer(spec.container.0));
        };
        let launch = Launch::new(spec, container.root.as_fd())?;
        let ends = Ends::new(spec.stdio, &container.devices, launch.uid())?;
        let started = match std::mem::replace(&mut container.init, Init::Gone) {
            Init::Waiting(twin) => process::start_first(twin, &launch, &ends, &container.devices),
            Init::Running(first) => {
                container.init = Init::Running(first);
                match self.processes.get(&first) {
                    Some(init) if init.ended.is_none() => process::start_further(
                        init.pidfd.as_fd(),
                        self.own.as_fd(),
                        container,
                        &launch,
                        &ends,
                        self.stack.take(),
                    ),
                    _ => Err(StartError::ContainerGone),
                }
            }
            Init::Gone => Err(StartError::ContainerGone),
        };
        let (pidfd, stack) = match started {
            Ok(started) => started,
            Err(error) => {
                self.bury(spec.container);
                return Err(error.into());
            }
        };
        self.stack = Some(stack);
        if matches!(container.init, Init::Gone) {
            container.init = Init::Running(spec.id);
        }
        self.connect(owner, spec, pidfd, ends)
    }

    /// Connects a process that was started with its streams.
    fn connect(
        &mut self,
        owner: u32,
        spec: &Process,
        pidfd: OwnedFd,
        ends: Ends,
    ) -> Result<(), RequestError> {
        let mut channels = Vec::with_capacity(3);
        for (stream, local) in ends.into_agent() {
            if let Some(waiting) = self.streams.remove(&(spec.id, stream)) {
                let WaitingStream { socket, early } = waiting;
                channels.push(Channel::new(spec.id, stream, local, socket, early));
            }
        }
        let mut running = Running {
            container: spec.container,
            owner,
            pidfd,
            channels,
            ended: None,
        };
        let token = Token::Exit(spec.id);
        let nothing = EventFlags::empty();
        let watched = self
            .poller
            .update(&running.pidfd, token, nothing, EventFlags::IN)
            .and_then(|()| {
                let mut channels = running.channels.iter_mut();
                channels.try_for_each(|channel| channel.watch(&self.poller))
            });
        if let Err(error) = watched {
            // A process that cannot be watched must not run.
            let _ = sys::pidfd_signal(running.pidfd.as_fd(), libc::SIGKILL);
            let _ = waitid(WaitId::PidFd(running.pidfd.as_fd()), WaitIdOptions::EXITED);
            self.process_is_gone(spec.id, spec.container);
            return Err(system("watch a process")(error));
        }
        self.processes.insert(spec.id, running);
        Ok(())
    }

    fn add_stream(&mut self, process: ProcessId, stream: Stream, waiting: WaitingStream) {
        let known =
            self.processes.contains_key(&process) || self.streams.contains_key(&(process, stream));
        if known || self.streams.len() >= MAX_WAITING_STREAMS {
            log::warn(format_args!("Refused {stream:?} of process {}", process.0));
            return;
        }
        self.streams.insert((process, stream), waiting);
        let waits = |connection: &Connection| {
            let starting = connection.starting.as_ref();
            starting.is_some_and(|starting| starting.process.id == process)
        };
        let connection = self.connections.iter().find(|(_, other)| waits(other));
        if let Some(id) = connection.map(|(id, _)| *id) {
            self.try_start(id);
            if let Err(error) = self.serve_requests(id) {
                log::warn(format_args!("{}", explain(&error)));
                self.close_connection(id);
            }
        }
    }

    fn running(&self, process: ProcessId) -> Result<&Running, RequestError> {
        self.processes
            .get(&process)
            .filter(|running| running.ended.is_none())
            .ok_or(RequestError::NoProcess(process.0))
    }

    fn signal(&self, process: ProcessId, signal: i32, all: bool) -> Result<(), RequestError> {
        if !(0..=64).contains(&signal) {
            return Err(RequestError::NoSignal(signal));
        }
        let running = self.running(process)?;
        let failed = system("send a signal");
        if !all {
            return match sys::pidfd_signal(running.pidfd.as_fd(), signal) {
                // It has died, and the event that says so is on its way.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    Err(RequestError::NoProcess(process.0))
                }
                result => result.map_err(failed),
            };
        }
        let Some(container) = self.containers.get(&running.container) else {
            return Err(RequestError::NoContainer(running.container.0));
        };
        if signal == libc::SIGKILL {
            return container.cgroup.kill().map_err(failed);
        }
        for pid in container.cgroup.processes().map_err(failed)? {
            // Who is gone by now needs no signal.
            let _ = sys::kill(pid, signal);
        }
        Ok(())
    }

    fn resize(&self, process: ProcessId, size: WindowSize) -> Result<(), RequestError> {
        let running = self.running(process)?;
        let terminal = running.channels.iter().find_map(Channel::terminal);
        let terminal = terminal.ok_or(RequestError::NoTerminal(process.0))?;
        process::set_size(terminal, size).map_err(system("resize a terminal"))
    }

    fn stream_event(&mut self, id: ProcessId, stream: Stream, end: End) {
        let Some(running) = self.processes.get_mut(&id) else {
            return;
        };
        let mut channels = running.channels.iter_mut();
        if let Some(channel) = channels.find(|channel| channel.stream() == stream) {
            channel.advance(end);
            if let Err(error) = channel.watch(&self.poller) {
                log::warn(format_args!("Failed to watch {stream:?}: {error}"));
            }
        }
        self.finish(id);
    }

    /// A process has ended.
    fn reap(&mut self, id: ProcessId) {
        let Some(running) = self.processes.get_mut(&id) else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(running.pidfd.as_fd()), options) {
            Ok(Some(status)) => exit_status(&status),
            Ok(None) | Err(Errno::INTR) => return,
            Err(error) => {
                log::warn(format_args!("Failed to reap process {}: {error}", id.0));
                ExitStatus::Signaled(0)
            }
        };
        let none = EventFlags::empty();
        if let Err(error) =
            self.poller
                .update(&running.pidfd, Token::Exit(id), EventFlags::IN, none)
        {
            log::warn(format_args!("Failed to forget process {}: {error}", id.0));
        }
        running.ended = Some(Ended {
            status,
            cut: Instant::now() + LINGER,
        });
        for channel in &mut running.channels {
            channel.end_input();
            if let Err(error) = channel.watch(&self.poller) {
                log::warn(format_args!("Failed to watch a stream: {error}"));
            }
        }
        self.finish(id);
    }

    /// Tells the host about a process that has ended, once its streams have.
    fn finish(&mut self, id: ProcessId) {
        let Some(running) = self.processes.get(&id) else {
            return;
        };
        let Some(ended) = running.ended else {
            return;
        };
        if running.channels.iter().any(Channel::has_output) {
            return;
        }
        let (container, owner) = (running.container, running.owner);
        self.processes.remove(&id);
        self.deliver(
            owner,
            Event::Exited {
                process: id,
                status: ended.status,
            },
        );
        self.process_is_gone(id, container);
    }

    fn process_is_gone(&mut self, id: ProcessId, container: ContainerId) {
        if let Some(container) = self.containers.get_mut(&container)
            && matches!(container.init, Init::Running(first) if first == id)
        {
            container.init = Init::Gone;
        }
        self.bury(container);
    }

    /// Removes a container of which nothing lives any more.
    fn bury(&mut self, id: ContainerId) {
        let gone = self
            .containers
            .get(&id)
            .is_some_and(|container| matches!(container.init, Init::Gone));
        let empty = || {
            self.processes
                .values()
                .all(|running| running.container != id)
        };
        if gone && empty() {
            // Told first, cleared away afterwards.
            self.flush();
            self.containers.remove(&id);
        }
    }

    fn deliver(&mut self, owner: u32, event: Event) {
        let owner = match self.connections.get(&owner) {
            Some(connection) if connection.controls => Some(owner),
            _ => self
                .connections
                .iter()
                .rfind(|(_, connection)| connection.controls)
                .map(|(id, _)| *id),
        };
        match owner.and_then(|id| self.connections.get_mut(&id)) {
            Some(connection) => connection.tell(&event),
            None => {
                if self.undelivered.len() >= MAX_UNDELIVERED {
                    self.undelivered.pop_front();
                }
                self.undelivered.push_back(event);
            }
        }
    }

    /// Writes what was told and waits for more, once for all that a round of events brought.
    fn flush(&mut self) {
        let mut broken = Vec::new();
        for (id, connection) in &mut self.connections {
            let flushed = connection
                .flush()
                .and_then(|()| connection.watch(&self.poller));
            if let Err(error) = flushed {
                log::warn(format_args!("{}", explain(&error)));
                broken.push(*id);
            }
        }
        for id in broken {
            self.close_connection(id);
        }
    }

    fn until_next_cut(&self) -> Option<Duration> {
        let ended = self.processes.values().filter_map(|running| running.ended);
        let next = ended.map(|ended| ended.cut).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Closes streams that others have held open for too long.
    fn cut_streams(&mut self) {
        let ended = |running: &Running| running.ended.is_some();
        if !self.processes.values().any(ended) {
            return;
        }
        let now = Instant::now();
        let mut finished = Vec::new();
        for (id, running) in &mut self.processes {
            if let Some(ended) = &mut running.ended
                && ended.cut <= now
            {
                // Again later for a host that is behind with reading.
                ended.cut = now + LINGER;
                running.channels.iter_mut().for_each(Channel::cut_output);
                finished.push(*id);
            }
        }
        for id in finished {
            self.finish(id);
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
fn readable(fd: std::os::fd::BorrowedFd<'_>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).unwrap_or_default();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

fn exit_status(status: &rustix::process::WaitIdStatus) -> ExitStatus {
    let number = |status: Option<i32>| status.and_then(|status| u8::try_from(status & 0xff).ok());
    match number(status.exit_status()) {
        Some(code) => ExitStatus::Exited(code),
        None => ExitStatus::Signaled(number(status.terminating_signal()).unwrap_or(0)),
    }
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
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1000
}
