//! The control connection: requests to the agent, its events.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use agent_protocol::{
    Action, DecodeError, Decoder, EncodeError, Event, Hello, Open, Request, VERSION, encode,
};

use super::connection::{ConnectError, connect, split_acknowledgement};

/// How long the agent may leave us standing with a request. It reads them all at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Failure of the control connection. It cannot be used after one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// It could not be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A request is too long.
    #[error("Failed to encode a request to the agent")]
    Encode(#[from] EncodeError),
    /// It broke.
    #[error("Failed to talk to the agent")]
    Io(#[source] io::Error),
    /// The agent sent what is no message.
    #[error("The agent sent a message that is not understood")]
    Decode(#[from] DecodeError),
    /// The agent, or the VM, is gone.
    #[error("The connection to the agent was closed")]
    Closed,
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    state: State,
    decoder: Decoder,
    next_request: u32,
    hello: Option<Hello>,
}

/// How far the greetings have come.
#[derive(Debug)]
enum State {
    /// The VMM's `OK` is not complete.
    Connecting(Vec<u8>),
    /// The agent's `Hello` has not come.
    Greeting,
    /// Events come.
    Open,
}

impl Control {
    /// Connects to the agent behind the VMM's socket and sends `actions`, all in one write and
    /// without waiting for anything. They are numbered from zero.
    pub(crate) fn open(vsock: &Path, actions: Vec<Action>) -> Result<Self, ControlError> {
        let mut requests = Vec::new();
        let mut next_request = 0;
        for action in actions {
            let request = Request {
                id: next_request,
                action,
            };
            requests.extend(encode(&request)?);
            next_request += 1;
        }
        let open = Open::Control { version: VERSION };
        let stream = connect(vsock, &open, &requests)?;
        stream
            .set_write_timeout(Some(WRITE_TIMEOUT))
            .map_err(ControlError::Io)?;
        Ok(Self {
            stream,
            state: State::Connecting(Vec::new()),
            decoder: Decoder::new(),
            next_request,
            hello: None,
        })
    }

    /// What the agent says about itself and its guest, once it has.
    pub(crate) fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// Sends a request and gives its number.
    pub(crate) fn send(&mut self, action: Action) -> Result<u32, ControlError> {
        let id = self.next_request;
        self.next_request = id.wrapping_add(1);
        let frame = encode(&Request { id, action })?;
        self.stream
            .write_all(&frame)
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => ControlError::Closed,
                _ => ControlError::Io(error),
            })?;
        Ok(id)
    }

    /// Waits for bytes and gives the events that they complete, of which there may be none.
    pub(crate) fn receive(&mut self) -> Result<Vec<Event>, ControlError> {
        let mut chunk = [0; 16 << 10];
        let length = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(ControlError::Closed),
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => return Ok(Vec::new()),
                io::ErrorKind::ConnectionReset => return Err(ControlError::Closed),
                _ => return Err(ControlError::Io(error)),
            },
        };
        let mut bytes = &chunk[..length];
        let rest;
        if let State::Connecting(received) = &mut self.state {
            received.extend_from_slice(bytes);
            match split_acknowledgement(received)? {
                None => return Ok(Vec::new()),
                Some(behind) => rest = behind.to_vec(),
            }
            bytes = &rest;
            self.state = State::Greeting;
        }
        self.decoder.feed(bytes);
        self.decode()
    }

    fn decode(&mut self) -> Result<Vec<Event>, ControlError> {
        if matches!(self.state, State::Greeting) {
            self.hello = self.decoder.next_hello()?;
            if self.hello.is_none() {
                return Ok(Vec::new());
            }
            self.state = State::Open;
        }
        let mut events = Vec::new();
        while let Some(event) = self.decoder.next()? {
            events.push(event);
        }
        Ok(events)
    }
}

/// Readable when something has come.
impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use agent_protocol::{ExitStatus, ProcessId};

    use super::*;
    use crate::agent::fake::FakeAgent;

    fn events(control: &mut Control, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(control.receive().unwrap());
        }
        events
    }

    #[test]
    fn requests_go_out_in_one_write_and_events_come_back() {
        let agent = FakeAgent::listen();
        let vsock = agent.path();
        let far = thread::spawn(move || {
            let mut peer = agent.accept();
            assert_eq!(peer.open, Open::Control { version: VERSION });
            let first: Request = peer.message();
            let second: Request = peer.message();
            assert_eq!((first.id, second.id), (0, 1));
            peer.greet(VERSION);
            peer.send(&Event::Done { request: 0 });
            let third: Request = peer.message();
            assert_eq!((third.id, third.action), (2, Action::Shutdown));
            peer.send(&Event::Exited {
                process: ProcessId(0),
                status: ExitStatus::Exited(7),
            });
        });
        let signal = |signal| Action::Signal {
            process: ProcessId(0),
            signal,
            all: false,
        };
        let mut control = Control::open(&vsock, vec![signal(1), signal(2)]).unwrap();
        assert_eq!(events(&mut control, 1), [Event::Done { request: 0 }]);
        assert_eq!(control.send(Action::Shutdown).unwrap(), 2);
        assert!(matches!(
            events(&mut control, 1)[..],
            [Event::Exited { .. }]
        ));
        assert!(matches!(control.receive(), Err(ControlError::Closed)));
        far.join().unwrap();
    }

    #[test]
    fn an_agent_of_another_protocol_is_refused() {
        let agent = FakeAgent::listen();
        let vsock = agent.path();
        let far = thread::spawn(move || agent.accept().greet(VERSION + 1));
        let mut control = Control::open(&vsock, vec![]).unwrap();
        let error = loop {
            match control.receive() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, ControlError::Decode(DecodeError::Version(7))),
            "{error}"
        );
        far.join().unwrap();
    }

    #[test]
    fn noise_is_an_error_and_no_panic() {
        let agent = FakeAgent::listen();
        let vsock = agent.path();
        let far = thread::spawn(move || {
            let mut peer = agent.accept();
            peer.greet(VERSION);
            peer.bytes(&[0xff; 64]);
        });
        let mut control = Control::open(&vsock, vec![]).unwrap();
        let error = loop {
            match control.receive() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ControlError::Decode(_)), "{error}");
        far.join().unwrap();
    }
}
