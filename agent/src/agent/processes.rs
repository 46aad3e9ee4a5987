//! The processes of all containers: when they start, whose bytes move, and when they have ended.
//!
//! Boundary: how a program is executed is in `process`, how bytes move in `stream`.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent_protocol::{ContainerId, Event, ExitStatus, Process, ProcessId, Stream, Transfer};
use rustix::io::Errno;
use rustix::process::{Uid, WaitId, WaitIdOptions, waitid};

use super::Agent;
use super::connections::WaitingStream;
use super::hooks::Hooking;
use super::requests::{RequestError, system};
use crate::archiver;
use crate::connection::{Starting, What};
use crate::container::Init;
use crate::log;
use crate::poller::{End, EventFlags, Token};
use crate::process::{self, Ends, Launch, StartError};
use crate::stream::Channel;
use crate::sys;

/// How long other processes may hold the streams of one that has ended.
const LINGER: Duration = Duration::from_secs(5);

/// A process that was started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) container: ContainerId,
    /// The connection that started it.
    owner: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) channels: Vec<Channel>,
    pub(super) ended: Option<Ended>,
}

/// A process that has ended, while its streams have not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    status: ExitStatus,
    /// When its streams are cut.
    cut: Instant,
}

impl Agent {
    /// Starts the process that a connection waits for, if its streams are there.
    pub(super) fn try_start(&mut self, connection: u32) {
        let Some(starting) = self
            .connections
            .get_mut(&connection)
            .and_then(|connection| connection.starting.take())
        else {
            return;
        };
        let (id, container) = (starting.what.id(), starting.what.container());
        if let Err(error) = self.may_start(id, container) {
            return self.refuse(connection, &starting, error);
        }
        let there = |stream: &Stream| self.streams.contains_key(&(id, *stream));
        let whose = self.hooks.get(&container).map(Hooking::connection);
        match whose {
            None if starting.what.streams().iter().all(there) => {
                self.begin(connection, starting, 0);
            }
            Some(other) if other != connection => {
                let error = RequestError::RunsHooks(container.0);
                self.refuse(connection, &starting, error);
            }
            _ => self.put_back(connection, starting),
        }
    }

    /// Starts the hook of this number, or the process if there are no more.
    pub(super) fn begin(&mut self, connection: u32, starting: Starting, hook: usize) {
        let result = match &starting.what {
            What::Process(spec) => match self.start_hook(connection, spec, hook) {
                Ok(true) => return self.put_back(connection, starting),
                Ok(false) => self.start(connection, spec),
                Err(error) => Err(error),
            },
            What::Transfer(transfer) => self.transfer(connection, transfer),
        };
        match result {
            Ok(()) => self.answer(connection, starting.request, Ok(())),
            Err(error) => self.refuse(connection, &starting, error),
        }
    }

    /// Lets a connection wait on.
    fn put_back(&mut self, connection: u32, starting: Starting) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.starting = Some(starting);
        }
    }

    /// Answers that a process does not start.
    pub(super) fn refuse(&mut self, connection: u32, starting: &Starting, error: RequestError) {
        let process = starting.what.id();
        self.streams.retain(|(waiting, _), _| *waiting != process);
        self.answer(connection, starting.request, Err(error));
    }

    fn may_start(&self, id: ProcessId, container: ContainerId) -> Result<(), RequestError> {
        if self.processes.contains_key(&id) {
            return Err(RequestError::ProcessExists(id.0));
        }
        if !self.containers.contains_key(&container) {
            return Err(RequestError::NoContainer(container.0));
        }
        if !self.is_personal()? {
            return Err(RequestError::NotPersonal);
        }
        Ok(())
    }

    fn start(&mut self, owner: u32, spec: &Process) -> Result<(), RequestError> {
        let Some(container) = self.containers.get_mut(&spec.container) else {
            return Err(RequestError::NoContainer(spec.container.0));
        };
        // The first one cannot have what its sandbox was made without; others come from outside.
        let is_first = matches!(container.init, Init::Waiting(_));
        if is_first && spec.capabilities.bounding & !container.bounding != 0 {
            return Err(StartError::Capabilities.into());
        }
        let launch = Launch::new(spec, container.root.as_fd())?;
        let ends = Ends::new(spec.stdio, &container.devices, launch.uid())?;
        let started = match std::mem::replace(&mut container.init, Init::Gone) {
            Init::Waiting(twin) => {
                process::start_first(twin, &launch, &ends, &container.devices, container.bounding)
            }
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
        self.connect(owner, spec.id, spec.container, pidfd, ends)
    }

    /// Starts the agent's own archiver in a container that runs.
    fn transfer(&mut self, owner: u32, transfer: &Transfer) -> Result<(), RequestError> {
        let Some(container) = self.containers.get(&transfer.container) else {
            return Err(RequestError::NoContainer(transfer.container.0));
        };
        let first = match container.init {
            Init::Running(first) => self.processes.get(&first),
            Init::Waiting(_) => return Err(StartError::NotStarted.into()),
            Init::Gone => None,
        };
        let Some(init) = first.filter(|first| first.ended.is_none()) else {
            return Err(StartError::ContainerGone.into());
        };
        let ends = Ends::new(transfer.stdio(), &container.devices, Uid::ROOT)?;
        let init = init.pidfd.as_fd();
        let pidfd = archiver::start(
            init,
            self.own.as_fd(),
            container,
            &transfer.archiving,
            &ends,
        )?;
        self.connect(owner, transfer.id, transfer.container, pidfd, ends)
    }

    /// Connects a process that was started with its streams.
    fn connect(
        &mut self,
        owner: u32,
        id: ProcessId,
        container: ContainerId,
        pidfd: OwnedFd,
        ends: Ends,
    ) -> Result<(), RequestError> {
        let mut channels = Vec::with_capacity(3);
        for (stream, local) in ends.into_agent() {
            if let Some(waiting) = self.streams.remove(&(id, stream)) {
                let WaitingStream { socket, early } = waiting;
                channels.push(Channel::new(id, stream, local, socket, early));
            }
        }
        let mut running = Running {
            container,
            owner,
            pidfd,
            channels,
            ended: None,
        };
        let token = Token::Exit(id);
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
            self.process_is_gone(id, container);
            return Err(system("watch a process")(error));
        }
        self.processes.insert(id, running);
        Ok(())
    }

    pub(super) fn stream_event(&mut self, id: ProcessId, stream: Stream, end: End) {
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
    pub(super) fn reap(&mut self, id: ProcessId) {
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
        let container = self.containers.get(&running.container);
        if let Some(container) = container.filter(|container| {
            container.shares_processes
                && matches!(container.init, Init::Running(first) if first == id)
        }) && let Err(error) = container.cgroup.end()
        {
            // What a pid namespace of its own would have done.
            log::warn(format_args!("Failed to end a container: {error}"));
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
    pub(super) fn finish(&mut self, id: ProcessId) {
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

    pub(super) fn process_is_gone(&mut self, id: ProcessId, container: ContainerId) {
        if let Some(container) = self.containers.get_mut(&container)
            && matches!(container.init, Init::Running(first) if first == id)
        {
            container.init = Init::Gone;
        }
        self.bury(container);
    }

    /// Removes a container of which nothing lives any more.
    pub(super) fn bury(&mut self, id: ContainerId) {
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

    pub(super) fn until_next_cut(&self) -> Option<Duration> {
        let ended = self.processes.values().filter_map(|running| running.ended);
        let next = ended.map(|ended| ended.cut).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Closes streams that others have held open for too long.
    pub(super) fn cut_streams(&mut self) {
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
}

pub(super) fn exit_status(status: &rustix::process::WaitIdStatus) -> ExitStatus {
    let number = |status: Option<i32>| status.and_then(|status| u8::try_from(status & 0xff).ok());
    match number(status.exit_status()) {
        Some(code) => ExitStatus::Exited(code),
        None => ExitStatus::Signaled(number(status.terminating_signal()).unwrap_or(0)),
    }
}
