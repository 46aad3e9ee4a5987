//! Hooks: programs that run in a container before its first process does, one after the other.
//!
//! The agent serves everybody else meanwhile; the connection that asked for the process waits, as
//! it does for streams.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent_protocol::{ContainerId, Process};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::processes::exit_status;
use super::requests::{RequestError, system};
use super::{Agent, explain};
use crate::container::Init;
use crate::log;
use crate::poller::{EventFlags, Token};
use crate::process::{self, Ends, Launch};
use crate::sys;

/// Bytes of a failed hook's output that are told.
const OUTPUT: u64 = 1024;

/// A hook that runs.
#[derive(Debug)]
pub(super) struct Hooking {
    /// The connection that waits for the process.
    connection: u32,
    /// The hook among the process's.
    index: usize,
    path: String,
    pidfd: OwnedFd,
    output: OwnedFd,
    deadline: Option<Instant>,
    late: bool,
}

impl Agent {
    /// Starts a hook of a process; false if it has no such hook.
    pub(super) fn start_hook(
        &mut self,
        connection: u32,
        spec: &Process,
        index: usize,
    ) -> Result<bool, RequestError> {
        let (Some(hook), Some(container)) =
            (spec.hooks.get(index), self.containers.get(&spec.container))
        else {
            return Ok(false);
        };
        let Init::Waiting(twin) = &container.init else {
            return Ok(false);
        };
        let failed = |source| RequestError::Hook {
            path: hook.path.clone(),
            source,
        };
        let file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map_err(system("make a file"));
        let mut input = std::fs::File::from(file("hook input")?);
        std::io::Write::write_all(&mut input, &hook.input)
            .and_then(|()| input.seek(SeekFrom::Start(0)))
            .map_err(system("write a hook's input"))?;
        let output = file("hook output")?;
        let shared = output.try_clone().map_err(system("share a file"))?;
        let root = container.root.as_fd();
        let launch = Launch::hook(hook, root).map_err(failed)?;
        let ends = Ends::files(input.into(), shared).map_err(failed)?;
        let (pidfd, stack) = match twin.pidfd() {
            Some(init) => process::start_further(
                init,
                self.own.as_fd(),
                container,
                &launch,
                &ends,
                self.stack.take(),
            )
            .map_err(failed)?,
            None => return Ok(false),
        };
        self.stack = Some(stack);
        let token = Token::Hook(spec.container);
        self.poller
            .update(&pidfd, token, EventFlags::empty(), EventFlags::IN)
            .map_err(system("watch a hook"))?;
        let timeout = hook
            .timeout
            .map(|seconds| Duration::from_secs(seconds.into()));
        self.hooks.insert(
            spec.container,
            Hooking {
                connection,
                index,
                path: hook.path.clone(),
                pidfd,
                output,
                deadline: timeout.map(|timeout| Instant::now() + timeout),
                late: false,
            },
        );
        Ok(true)
    }

    /// A hook has ended: the next one runs, or the process.
    pub(super) fn reap_hook(&mut self, id: ContainerId) {
        let Some(hooking) = self.hooks.remove(&id) else {
            return;
        };
        let watched = EventFlags::IN;
        let nothing = EventFlags::empty();
        if let Err(error) = self
            .poller
            .update(&hooking.pidfd, Token::Hook(id), watched, nothing)
        {
            log::warn(format_args!("Failed to forget a hook: {error}"));
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(hooking.pidfd.as_fd()), options) {
            Ok(status) => status.map(|status| exit_status(&status).code()),
            Err(error) => {
                log::warn(format_args!("Failed to reap a hook: {error}"));
                None
            }
        };
        let connection = hooking.connection;
        let starting = self
            .connections
            .get_mut(&connection)
            .and_then(|connection| connection.starting.take());
        let Some(starting) = starting else {
            return;
        };
        match hooking.failure(status) {
            None => self.begin(connection, starting, hooking.index + 1),
            Some(error) => {
                self.end_container(id);
                self.refuse(connection, &starting, error);
            }
        }
        if let Err(error) = self.serve_requests(connection) {
            log::warn(format_args!("{}", explain(&error)));
            self.close_connection(connection);
        }
    }

    /// Ends a container whose first process never ran.
    fn end_container(&mut self, id: ContainerId) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.init = Init::Gone;
        }
        self.bury(id);
    }

    /// When the next hook has run for too long.
    pub(super) fn until_next_late_hook(&self) -> Option<Duration> {
        let waiting = self.hooks.values().filter(|hooking| !hooking.late);
        let next = waiting.filter_map(|hooking| hooking.deadline).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Ends hooks that have run for too long.
    pub(super) fn end_late_hooks(&mut self) {
        if self.hooks.is_empty() {
            return;
        }
        let now = Instant::now();
        for hooking in self.hooks.values_mut() {
            if !hooking.late && hooking.deadline.is_some_and(|deadline| deadline <= now) {
                hooking.late = true;
                let _ = sys::pidfd_signal(hooking.pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }
}

impl Hooking {
    pub(super) fn connection(&self) -> u32 {
        self.connection
    }

    /// Ends it and waits for that.
    pub(super) fn end(&self, deadline: Instant) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        if super::readable(self.pidfd.as_fd(), deadline) {
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// Why the process must not start.
    fn failure(&self, status: Option<u8>) -> Option<RequestError> {
        if status == Some(0) && !self.late {
            return None;
        }
        let path = self.path.clone();
        if self.late {
            return Some(RequestError::HookTimeout { path });
        }
        Some(RequestError::HookFailed {
            path,
            status: status.unwrap_or(u8::MAX),
            output: self.said(),
        })
    }

    /// What it wrote, as far as it is worth telling.
    fn said(&self) -> String {
        let mut said = Vec::new();
        let read = self.output.try_clone().map(std::fs::File::from);
        let read = read.and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            file.take(OUTPUT).read_to_end(&mut said)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&said).trim().to_owned(),
            Err(error) => format!("its output cannot be read: {error}"),
        }
    }
}
