//! The life of a running VM, seen from its main thread: control socket, lifeline and end.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    process,
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    api::{MAX_LINE, Request, Response, Status, VmState},
    builder::Built,
    config::VmConfig,
    end::{End, chain},
    exit::ExitReason,
    profile,
    timeline::Timeline,
};

/// Most clients at once; more wait in the socket's backlog.
const MAX_CLIENTS: usize = 8;

/// Listens on the control socket, readable by its owner alone.
///
/// # Errors
///
/// The path exists or cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A VM while it runs.
pub struct Running<'a> {
    /// What was built.
    pub built: Built,
    /// What it was built from.
    pub config: &'a VmConfig,
    /// How it ends.
    pub end: Arc<End>,
    /// When it reached what.
    pub timeline: &'a Timeline,
    /// Whether the vCPUs stand still.
    pub paused: bool,
}

struct ControlClient {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Running<'_> {
    /// Serves the control socket until the VM ends; returns why it did.
    ///
    /// # Errors
    ///
    /// Waiting for events fails, which leaves the VM without control: it must end.
    pub fn run(
        &mut self,
        listener: &UnixListener,
        mut lifeline: Option<OwnedFd>,
    ) -> io::Result<(ExitReason, String)> {
        let mut clients: Vec<ControlClient> = Vec::new();
        loop {
            if let Some(why) = self.end.reason() {
                return Ok(why.clone());
            }
            let accepting = clients.len() < MAX_CLIENTS;
            let mut fds = vec![PollFd::from_borrowed_fd(self.end.event(), PollFlags::IN)];
            fds.extend(lifeline.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(
                clients
                    .iter()
                    .map(|client| PollFd::new(&client.stream, PollFlags::IN)),
            );
            if accepting {
                fds.push(PollFd::new(listener, PollFlags::IN));
            }
            let tick = self.built.vcpus.profile().map(|_| Timespec {
                tv_sec: 0,
                tv_nsec: profile::INTERVAL.subsec_nanos().into(),
            });
            match poll(&mut fds, tick.as_ref()) {
                Ok(0) => {
                    self.built.vcpus.kick();
                    continue;
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut ready = ready.into_iter().skip(1);
            if lifeline.is_some() && ready.next() == Some(true) && owner_is_gone(&mut lifeline) {
                self.end
                    .set(ExitReason::Orphaned, ExitReason::Orphaned.describe());
                continue;
            }
            clients.retain_mut(|client| ready.next() != Some(true) || self.serve(client));
            if accepting && ready.next() == Some(true) {
                clients.extend(accept(listener));
            }
        }
    }

    /// Reads what a client sent and answers each complete line; false once it is done with.
    fn serve(&mut self, client: &mut ControlClient) -> bool {
        let mut chunk = [0; 4096];
        match client.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => client.received.extend_from_slice(&chunk[..length]),
            Err(err) => {
                return matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            }
        }
        while let Some(end) = client.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.received.drain(..=end).collect();
            let response = match serde_json::from_slice(&line) {
                Ok(request) => match self.handle(request) {
                    Ok(status) => Response::Ok(status),
                    Err(message) => Response::Error(message),
                },
                Err(err) => Response::Error(format!("no request: {err}")),
            };
            let Ok(mut answer) = serde_json::to_vec(&response) else {
                return false;
            };
            answer.push(b'\n');
            // Answers are small: a client that does not even take those is dropped.
            if client.stream.write_all(&answer).is_err() {
                return false;
            }
        }
        client.received.len() as u64 <= MAX_LINE
    }

    fn handle(&mut self, request: Request) -> Result<Status, String> {
        match request {
            Request::Status => {}
            Request::Snapshot if !self.paused => {
                return Err("a VM must be paused while a snapshot is taken".into());
            }
            Request::Snapshot => {
                let writer = self.built.snapshot.take().ok_or(
                    "the configuration named no place for a snapshot, or it is written already",
                )?;
                self.built.snapshot(writer).map_err(|err| chain(&err))?;
            }
            Request::Pause => {
                self.built.vcpus.pause();
                self.paused = true;
            }
            Request::Resume => self.resume(),
            Request::Stop => {
                self.built.vcpus.pause();
                self.end
                    .set(ExitReason::Shutdown, "stopped over the control socket");
            }
        }
        Ok(self.status())
    }

    /// Lets the vCPUs run.
    pub fn resume(&mut self) {
        self.paused = false;
        self.timeline.reached("vCPUs running");
        self.built.vcpus.resume();
    }

    fn status(&self) -> Status {
        let state = match (self.end.reason(), self.paused) {
            (Some(_), _) => VmState::Stopped,
            (None, true) => VmState::Paused,
            (None, false) => VmState::Running,
        };
        Status {
            state,
            pid: process::id(),
            vcpus: self.config.vcpus,
            memory: self.config.memory,
            host_kind: self.built.host_kind,
            exits: self.built.vcpus.exits(),
            timeline: self.timeline.phases(),
        }
    }
}

/// Nothing is ever sent over the lifeline: readable means closed, or noise to be dropped.
fn owner_is_gone(lifeline: &mut Option<OwnedFd>) -> bool {
    let Some(fd) = lifeline else { return false };
    match rustix::io::read(fd.as_fd(), &mut [0; 64]) {
        Ok(0) => true,
        Ok(_) | Err(Errno::INTR | Errno::AGAIN) => false,
        Err(_) => true,
    }
}

fn accept(listener: &UnixListener) -> Option<ControlClient> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(ControlClient {
        stream,
        received: Vec::new(),
    })
}
