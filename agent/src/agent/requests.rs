//! Requests that are carried out at once: everything but starting a process.
//!
//! Boundary: turns requests into calls of the modules that know how, and failures into answers.

use std::os::fd::{AsFd, BorrowedFd};

use agent_protocol::{
    Capabilities, ContainerId, Event, Failure, Growth, Personality, ProcessId, Source, WindowSize,
};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::Agent;
use super::processes::Running;
use crate::cgroup::Cgroup;
use crate::cgroup::CgroupError;
use crate::container::{Container, ContainerError, Init, Kept, Place, Sandbox, Wanted, failed};
use crate::joined::{self, Joins};
use crate::process::{self, StartError};
use crate::stream::Channel;
use crate::sys;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
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
    #[error("This VM was not told what makes it different from every other")]
    NotPersonal,
    #[error("A VM in which something runs does not grow")]
    InUse,
    #[error("Failed to prepare for a container on share {root}")]
    Prepare {
        root: String,
        source: ContainerError,
    },
    #[error("Failed to set up container {id}")]
    Create { id: u32, source: ContainerError },
    #[error(transparent)]
    Limit(#[from] CgroupError),
    #[error("Container {0} runs its hooks yet")]
    RunsHooks(u32),
    #[error("Failed to run the hook {path:?}")]
    Hook { path: String, source: StartError },
    #[error("The hook {path:?} ended with status {status}: {output}")]
    HookFailed {
        path: String,
        status: u8,
        output: String,
    },
    #[error("The hook {path:?} took longer than it may")]
    HookTimeout { path: String },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("Failed to {action}")]
    System {
        action: &'static str,
        source: std::io::Error,
    },
}

impl RequestError {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::NoProcess(_) => Failure::NoSuchProcess,
            Self::ProcessExists(_)
            | Self::NoTerminal(_)
            | Self::NoContainer(_)
            | Self::ContainerExists(_)
            | Self::NoSignal(_)
            | Self::NotPersonal
            | Self::RunsHooks(_)
            | Self::InUse
            | Self::Create {
                source: ContainerError::HostName(_),
                ..
            } => Failure::Invalid,
            Self::Start(error) => error.failure(),
            Self::Prepare { .. }
            | Self::Create { .. }
            | Self::Hook { .. }
            | Self::HookFailed { .. }
            | Self::HookTimeout { .. }
            | Self::Limit(_)
            | Self::System { .. } => Failure::System,
        }
    }
}

pub(super) fn system<E: Into<std::io::Error>>(
    action: &'static str,
) -> impl FnOnce(E) -> RequestError {
    move |source| RequestError::System {
        action,
        source: source.into(),
    }
}

impl Agent {
    pub(super) fn personalize(
        &mut self,
        request: u32,
        personality: &Personality,
    ) -> Result<Event, RequestError> {
        const SECOND: u64 = 1_000_000_000;
        sys::reseed(self.config.urandom.as_fd(), &personality.entropy)
            .map_err(system("seed the random number generator"))?;
        // Last, as it is the moment that counts.
        let since = super::monotonic_ns().saturating_sub(personality.monotonic_ns);
        let ns = personality.realtime_ns.saturating_add(since);
        let time = Timespec {
            tv_sec: (ns / SECOND).cast_signed(),
            tv_nsec: (ns % SECOND).cast_signed(),
        };
        clock_settime(ClockId::Realtime, time).map_err(system("set the clock"))?;
        let cid = self.cid()?;
        self.personal = Some(cid);
        let now = clock_gettime(ClockId::Realtime);
        Ok(Event::Personalized {
            request,
            cid,
            realtime_ns: now.tv_sec.cast_unsigned() * SECOND + now.tv_nsec.cast_unsigned(),
        })
    }

    /// Whether this VM was made different from every other. What a template was told is not true
    /// of its clones, which have other context identifiers.
    pub(super) fn is_personal(&self) -> Result<bool, RequestError> {
        Ok(self.config.vsock.is_none() || self.personal == Some(self.cid()?))
    }

    fn cid(&self) -> Result<u32, RequestError> {
        match &self.config.vsock {
            Some(vsock) => {
                sys::local_cid(vsock.as_fd()).map_err(system("ask for the context identifier"))
            }
            None => Ok(sys::HOST_CID),
        }
    }

    /// Takes CPUs and memory into use that the saved VM did not have.
    pub(super) fn grow(&mut self, request: u32, growth: Growth) -> Result<Event, RequestError> {
        if !self.containers.is_empty() {
            return Err(RequestError::InUse);
        }
        let size = (self.config.grow)(&growth).map_err(system("make the VM bigger"))?;
        let hello = &mut self.config.hello;
        (hello.cpus, hello.memory_total) = (size.cpus, size.memory_total);
        Ok(Event::Grown {
            request,
            cpus: size.cpus,
            memory_total: size.memory_total,
        })
    }

    pub(super) fn make_sandbox(
        &mut self,
        root: Option<String>,
        bounding: u64,
        joins: Joins,
    ) -> Result<Sandbox, ContainerError> {
        self.sandboxes_made += 1;
        let name = format!("container{}", self.sandboxes_made);
        let cgroup =
            Cgroup::new(&self.cgroup, name).map_err(failed("make", "the container's cgroup"))?;
        let wanted = Wanted {
            cgroup,
            root,
            bounding,
            stack: self.stack.take(),
            joins,
            agent: self.own.as_fd(),
        };
        Sandbox::prepare(self.place(), wanted)
    }

    fn place(&self) -> Place<'_> {
        Place {
            staging: &self.config.staging,
            mount_share: self.config.mount_share,
        }
    }

    /// Keeps a share mounted, and has a sandbox ready that has it as its root.
    pub(super) fn prepare(&mut self, root: &str) -> Result<(), RequestError> {
        let failed = |source| RequestError::Prepare {
            root: root.into(),
            source,
        };
        if self.kept.as_ref().is_none_or(|kept| kept.tag != root) {
            self.kept = Some(Kept::new(self.place(), root).map_err(failed)?);
        }
        // One that was made for another root is of no use.
        self.sandbox = None;
        let sandbox = self.make_sandbox(
            Some(root.into()),
            Capabilities::DEFAULT.bounding,
            Joins::default(),
        );
        self.sandbox = Some(sandbox.map_err(failed)?);
        Ok(())
    }

    pub(super) fn create(&mut self, spec: &agent_protocol::Container) -> Result<(), RequestError> {
        let id = spec.id;
        if self.containers.contains_key(&id) {
            return Err(RequestError::ContainerExists(id.0));
        }
        let failed = |source| RequestError::Create { id: id.0, source };
        let mut joins = Joins::default();
        for joined in &spec.joined {
            let first = self.first_process(joined.container)?;
            let first = first.try_clone_to_owned();
            joins.add(
                joined.namespace,
                first.map_err(system("share a descriptor"))?,
            );
        }
        let mut joined = Vec::new();
        for mount in &spec.mounts {
            if let Source::Joined { container, path } = &mount.source {
                let first = self.first_process(*container)?;
                joined.push(joined::mount_of(first, path).map_err(failed)?);
            }
        }
        let sandbox = match self.sandbox.take() {
            Some(sandbox) if sandbox.fits(spec) => sandbox,
            _ => self
                .make_sandbox(None, spec.capabilities, joins)
                .map_err(failed)?,
        };
        let container = Container::create(sandbox, spec, self.place(), joined).map_err(failed)?;
        self.containers.insert(id, container);
        Ok(())
    }

    /// The first process of a container that has not ended.
    fn first_process(&self, id: ContainerId) -> Result<BorrowedFd<'_>, RequestError> {
        let container = self.containers.get(&id);
        let first = container.and_then(|container| match &container.init {
            Init::Waiting(twin) => twin.pidfd(),
            Init::Running(first) => {
                let first = self.running(*first).ok()?;
                Some(first.pidfd.as_fd())
            }
            Init::Gone => None,
        });
        first.ok_or(RequestError::NoContainer(id.0))
    }

    pub(super) fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), RequestError> {
        let container = self.containers.get(&id);
        let container = container.ok_or(RequestError::NoContainer(id.0))?;
        let done = container.cgroup.freeze(frozen);
        done.map_err(system("freeze the container"))
    }

    pub(super) fn limit(
        &self,
        id: ContainerId,
        files: &[(String, String)],
    ) -> Result<(), RequestError> {
        let container = self.containers.get(&id);
        let container = container.ok_or(RequestError::NoContainer(id.0))?;
        Ok(container.cgroup.configure(files)?)
    }

    /// Ends a container. Its processes are reaped as if they had ended by themselves.
    pub(super) fn remove(&mut self, id: ContainerId) -> Result<(), RequestError> {
        let Some(container) = self.containers.get_mut(&id) else {
            return Ok(());
        };
        let killed = container.cgroup.kill();
        killed.map_err(system("end the container"))?;
        // Nobody waits for one that runs no program yet.
        if matches!(container.init, Init::Waiting(_)) {
            container.init = Init::Gone;
        }
        self.bury(id);
        Ok(())
    }

    /// Forgets what the host no longer shows at a place in a share.
    pub(super) fn forget(&mut self, tag: &str, path: &str) -> Result<(), RequestError> {
        let kept = match self.kept.take() {
            Some(kept) if kept.tag == tag => kept,
            _ => Kept::new(self.place(), tag).map_err(|source| RequestError::Prepare {
                root: tag.into(),
                source,
            })?,
        };
        let looked = kept.look_again(path);
        self.kept = Some(kept);
        looked.map_err(system("look at a share again"))
    }

    pub(super) fn running(&self, process: ProcessId) -> Result<&Running, RequestError> {
        self.processes
            .get(&process)
            .filter(|running| running.ended.is_none())
            .ok_or(RequestError::NoProcess(process.0))
    }

    pub(super) fn signal(
        &self,
        process: ProcessId,
        signal: i32,
        all: bool,
    ) -> Result<(), RequestError> {
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

    pub(super) fn resize(&self, process: ProcessId, size: WindowSize) -> Result<(), RequestError> {
        let running = self.running(process)?;
        let terminal = running.channels.iter().find_map(Channel::terminal);
        let terminal = terminal.ok_or(RequestError::NoTerminal(process.0))?;
        process::set_size(terminal, size).map_err(system("resize a terminal"))
    }
}
