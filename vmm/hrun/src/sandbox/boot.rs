//! The wait from the start of a VMM to the moment when its agent says that it is ready.

use std::{
    fs,
    io::{self, Read},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use agent_protocol::{DecodeError, Decoder, Hello, READY_PORT};
use rustix::event::{PollFd, PollFlags};

use super::process::{Ended, VmProcess};
use crate::{poll, signals::Signals};

/// Longest `Hello` that is taken. It holds two short strings and some numbers.
const MAX_HELLO: usize = 4096;

/// Failure of a VM to come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// Nobody could hear it.
    #[error("Failed to listen on {path} for the VM to become ready")]
    Listen { path: PathBuf, source: io::Error },
    /// Waiting failed.
    #[error("Failed to wait for the VM to become ready")]
    Wait(#[source] io::Error),
    /// The VM ended.
    #[error("The VM ended before it was ready: {0}")]
    Ended(Ended),
    /// The VM did nothing for too long.
    #[error("The VM was not ready within {} s", .0.as_secs())]
    Timeout(Duration),
    /// A signal told us to end.
    #[error("Interrupted by signal {0} before the container started")]
    Interrupted(i32),
    /// What it said is nothing we understand, perhaps of another version.
    #[error("The agent's greeting is refused")]
    Decode(#[source] DecodeError),
    /// It said too little or too much.
    #[error("The agent in the VM broke off its greeting")]
    Incomplete,
}

/// Where the agent of a VM will say that it is ready; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadySocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ReadySocket {
    /// That of the VM behind `vsock`.
    pub(crate) fn listen(vsock: &Path) -> Result<Self, BootError> {
        let mut path = vsock.as_os_str().to_owned();
        path.push(format!("_{READY_PORT}"));
        let path = PathBuf::from(path);
        match UnixListener::bind(&path) {
            Ok(listener) => {
                let socket = Self { listener, path };
                socket.prepare().map_err(|source| BootError::Listen {
                    path: socket.path.clone(),
                    source,
                })?;
                Ok(socket)
            }
            Err(source) => Err(BootError::Listen { path, source }),
        }
    }

    fn prepare(&self) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        self.listener.set_nonblocking(true)
    }
}

impl Drop for ReadySocket {
    fn drop(&mut self) {
        // It may have gone with its directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits for the agent's greeting, for the VM's end or for a signal, whichever comes first.
pub(crate) fn wait_ready(
    socket: &ReadySocket,
    process: &mut VmProcess,
    mut signals: Option<&mut Signals>,
    deadline: Instant,
    timeout: Duration,
) -> Result<Hello, BootError> {
    let mut greeting: Option<Greeting> = None;
    loop {
        if let Some(signal) = signals.as_mut().and_then(|signals| signals.ending()) {
            return Err(BootError::Interrupted(signal));
        }
        let source = match &greeting {
            None => PollFd::new(&socket.listener, PollFlags::IN),
            Some(greeting) => PollFd::new(&greeting.stream, PollFlags::IN),
        };
        let mut fds = vec![PollFd::new(process, PollFlags::IN), source];
        fds.extend(
            signals
                .iter()
                .map(|signals| PollFd::new(&**signals, PollFlags::IN)),
        );
        if !poll::wait(&mut fds, Some(deadline)).map_err(BootError::Wait)? {
            return Err(BootError::Timeout(timeout));
        }
        let [ended, spoke] = [0, 1].map(|index: usize| !fds[index].revents().is_empty());
        if spoke {
            match &mut greeting {
                None => greeting = Greeting::accept(&socket.listener).map_err(BootError::Wait)?,
                Some(greeting) => {
                    if let Some(hello) = greeting.receive()? {
                        return Ok(hello);
                    }
                }
            }
        } else if ended
            && let Some(ended) = process.wait(Some(deadline)).map_err(BootError::Wait)?
        {
            return Err(BootError::Ended(ended));
        }
    }
}

/// The ready connection.
struct Greeting {
    stream: UnixStream,
    decoder: Decoder,
}

impl Greeting {
    fn accept(listener: &UnixListener) -> io::Result<Option<Self>> {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(Self {
                    stream,
                    decoder: Decoder::new(),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes in what has arrived; gives the greeting once it is complete.
    fn receive(&mut self) -> Result<Option<Hello>, BootError> {
        let mut chunk = [0; MAX_HELLO];
        let length = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(BootError::Incomplete),
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(BootError::Wait(error)),
        };
        self.decoder.feed(&chunk[..length]);
        let hello = self.decoder.next_hello().map_err(BootError::Decode)?;
        if hello.is_none() && self.decoder.buffered() >= MAX_HELLO {
            return Err(BootError::Incomplete);
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use agent_protocol::{VERSION, encode};

    use super::*;

    fn hello(version: u32) -> Vec<u8> {
        encode(&Hello {
            version,
            agent: "0.1.0".into(),
            kernel: "6.12".into(),
            memory_total: 1,
            cpus: 1,
            started_us: 1,
            ready_us: 2,
        })
        .unwrap()
    }

    fn greeting() -> (Greeting, UnixStream) {
        let (stream, agent) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let decoder = Decoder::new();
        (Greeting { stream, decoder }, agent)
    }

    #[test]
    fn a_greeting_is_taken_when_it_is_complete() {
        let (mut greeting, mut agent) = greeting();
        let frame = hello(VERSION);
        let (begin, end) = frame.split_at(frame.len() - 1);
        agent.write_all(begin).unwrap();
        assert_eq!(greeting.receive().unwrap(), None);
        assert_eq!(greeting.receive().unwrap(), None);
        agent.write_all(end).unwrap();
        assert_eq!(greeting.receive().unwrap().unwrap().kernel, "6.12");
    }

    #[test]
    fn an_agent_of_another_protocol_is_refused_by_its_version() {
        let (mut greeting, mut agent) = greeting();
        agent.write_all(&hello(VERSION + 1)).unwrap();
        assert!(matches!(
            greeting.receive(),
            Err(BootError::Decode(DecodeError::Version(version))) if version == VERSION + 1
        ));
    }

    #[test]
    fn a_greeting_that_breaks_off_or_does_not_end_is_an_error() {
        let (mut greeting, mut agent) = self::greeting();
        agent.write_all(&(1u32 << 20).to_le_bytes()).unwrap();
        assert_eq!(greeting.receive().unwrap(), None);
        agent.write_all(&[0; MAX_HELLO]).unwrap();
        let error = loop {
            match greeting.receive() {
                Ok(hello) => assert_eq!(hello, None),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, BootError::Incomplete), "{error}");

        let (mut greeting, agent) = self::greeting();
        drop(agent);
        assert!(matches!(greeting.receive(), Err(BootError::Incomplete)));
    }
}
