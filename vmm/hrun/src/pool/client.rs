//! Asks the pool's daemon: for a VM, in the way of every start, or on behalf of an operator.
//!
//! Nothing here waits for long: a daemon that does not answer is as good as none.

use std::{
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        sockopt::socket_peercred,
    },
    process::{Pid, Uid, geteuid},
};

use super::{
    class::PoolClass,
    handover,
    protocol::{Answer, MAX_ANSWER, Refusal, Request, Status, VM_FDS, line},
};
use crate::{
    dirs::Dirs,
    poll,
    sandbox::{Handles, VmProcess},
};

/// How long a claim may take. It takes a fraction of a millisecond; a restore takes ten.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an operator waits: for VMs to end, side by side, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A VM from the pool: loaded, ours alone, ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed {
    handles: Handles,
}

/// No VM from the pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimRefused {
    /// The pool has none for us.
    #[error("{0}")]
    None(Refusal),
    /// There is no pool, or none that works.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Failure to have the daemon do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("No pool daemon answers on {0}")]
    NoDaemon(PathBuf),
    /// It has too much to do.
    #[error("The pool daemon is too busy")]
    Busy,
    /// Somebody else's.
    #[error("The pool daemon belongs to user {}, who is not trusted", .0.as_raw())]
    Stranger(Uid),
    /// It does nothing.
    #[error("The pool daemon has not answered within {} s", .0.as_secs())]
    Timeout(Duration),
    /// It ended, or did not want to talk to us.
    #[error("The pool daemon hung up")]
    HungUp,
    /// Talking failed.
    #[error("Failed to talk to the pool daemon")]
    Io(#[from] io::Error),
    /// It is of another version, perhaps.
    #[error("The pool daemon's answer is not understood")]
    Answer,
    /// It says why itself.
    #[error("The pool daemon refuses: {0}")]
    Failed(String),
}

impl Claimed {
    /// The VM's process, to be told what to be.
    pub(crate) fn into_process(self) -> VmProcess {
        VmProcess::adopt(self.handles)
    }
}

/// Claims a VM of `class` made from the template with this key.
pub(crate) fn claim(dirs: &Dirs, class: PoolClass, key: &str) -> Result<Claimed, ClaimRefused> {
    let mut connection = Connection::open(&dirs.pool, CLAIM_TIMEOUT)?;
    let key = key.to_owned();
    match connection.ask(&Request::Claim { class, key })? {
        Answer::Vm { pid } => Ok(connection.take_vm(pid)?),
        Answer::None { reason } => Err(ClaimRefused::None(reason)),
        other => Err(unexpected(other).into()),
    }
}

/// Asks how the pool is.
pub(crate) fn status(dirs: &Dirs) -> Result<Status, ClientError> {
    match Connection::open(&dirs.pool, TIMEOUT)?.ask(&Request::Status)? {
        Answer::Status(status) => Ok(status),
        other => Err(unexpected(other)),
    }
}

/// Has the pool keep so many VMs of a class.
pub(crate) fn resize(dirs: &Dirs, class: PoolClass, size: usize) -> Result<(), ClientError> {
    carry_out(dirs, &Request::Resize { class, size })
}

/// Has the pool end all VMs that wait.
pub(crate) fn drain(dirs: &Dirs) -> Result<(), ClientError> {
    carry_out(dirs, &Request::Drain)
}

fn carry_out(dirs: &Dirs, request: &Request) -> Result<(), ClientError> {
    match Connection::open(&dirs.pool, TIMEOUT)?.ask(request)? {
        Answer::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> ClientError {
    match answer {
        Answer::Failed { message } => ClientError::Failed(message),
        _ => ClientError::Answer,
    }
}

/// A conversation with the daemon.
struct Connection {
    stream: UnixStream,
    deadline: Instant,
    timeout: Duration,
    fds: Vec<OwnedFd>,
}

impl Connection {
    fn open(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let io = |error: Errno| ClientError::Io(error.into());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io)?;
        let address = SocketAddrUnix::new(path).map_err(io)?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                return Err(ClientError::NoDaemon(path.into()));
            }
            // Its queue is full: waiting there costs more than doing without.
            Err(Errno::AGAIN) => return Err(ClientError::Busy),
            Err(error) => return Err(io(error)),
        }
        // A stranger's VMM would get to see all that the container gets to see.
        let owner = socket_peercred(&socket).map_err(io)?.uid;
        if owner != geteuid() && !owner.is_root() {
            return Err(ClientError::Stranger(owner));
        }
        Ok(Self {
            stream: socket.into(),
            deadline: Instant::now() + timeout,
            timeout,
            fds: Vec::new(),
        })
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        // The queue of a new connection holds far more than a request.
        self.stream
            .write_all(&line(request))
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => ClientError::HungUp,
                _ => error.into(),
            })?;
        let mut text = Vec::new();
        while !text.ends_with(b"\n") {
            self.receive(&mut text)?;
        }
        serde_json::from_slice(&text).map_err(|_| ClientError::Answer)
    }

    /// Waits for some more of the answer.
    fn receive(&mut self, text: &mut Vec<u8>) -> Result<(), ClientError> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(self.deadline))? {
            return Err(ClientError::Timeout(self.timeout));
        }
        let mut chunk = [0; 4096];
        match handover::receive(&self.stream, &mut chunk, &mut self.fds) {
            Ok(0) | Err(Errno::CONNRESET) => return Err(ClientError::HungUp),
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(ClientError::Io(error.into())),
        }
        if text.len() > MAX_ANSWER {
            return Err(ClientError::Answer);
        }
        Ok(())
    }

    /// The VM whose descriptors have come.
    fn take_vm(self, pid: i32) -> Result<Claimed, ClientError> {
        let fds: [OwnedFd; VM_FDS] = self.fds.try_into().map_err(|_| ClientError::Answer)?;
        let [pidfd, channel, lifeline] = fds;
        let pid = (pid > 0)
            .then(|| Pid::from_raw(pid))
            .flatten()
            .ok_or(ClientError::Answer)?;
        let handles = Handles {
            pid,
            pidfd,
            channel: channel.into(),
            lifeline,
        };
        Ok(Claimed { handles })
    }
}

#[cfg(test)]
mod tests;
