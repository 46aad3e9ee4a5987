//! The host's connections: who may connect, what becomes of a greeting, and where events go.
//!
//! Boundary: requests are taken off a connection in order here and carried out in `requests` and
//! `processes`.

use std::os::fd::{AsFd, OwnedFd};

use agent_protocol::{Action, Event, Open, ProcessId, Stream};

use super::requests::RequestError;
use super::{Agent, explain};
use crate::connection::{Connection, ConnectionError, Read, Starting, What};
use crate::log;
use crate::sys;

/// Most streams that wait for their process.
const MAX_WAITING_STREAMS: usize = 256;

/// Most connections that greet or control.
const MAX_CONNECTIONS: usize = 256;

/// Most exits kept for a host that is not connected.
const MAX_UNDELIVERED: usize = 1024;

/// Longest message of a failure, in bytes.
const MAX_MESSAGE: usize = 4096;

/// A stream whose process is not started yet.
#[derive(Debug)]
pub(super) struct WaitingStream {
    pub(super) socket: OwnedFd,
    pub(super) early: Vec<u8>,
}

impl Agent {
    pub(super) fn accept(&mut self) {
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

    pub(super) fn connection_event(&mut self, id: u32) {
        if let Err(error) = self.serve_connection(id) {
            log::warn(format_args!("{}", explain(&error)));
            self.close_connection(id);
        }
    }

    pub(super) fn serve_connection(&mut self, id: u32) -> Result<(), ConnectionError> {
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

    pub(super) fn serve_greeting(&mut self, id: u32) -> Result<(), ConnectionError> {
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

    pub(super) fn serve_requests(&mut self, id: u32) -> Result<(), ConnectionError> {
        while self.shutdown.is_none()
            && let Some(connection) = self.connections.get_mut(&id)
            && let Some(request) = connection.request()?
        {
            let result = match request.action {
                Action::Personalize(personality) => {
                    let personalized = self.personalize(request.id, &personality);
                    self.tell(id, request.id, personalized);
                    continue;
                }
                Action::Grow(growth) => {
                    let grown = self.grow(request.id, growth);
                    self.tell(id, request.id, grown);
                    continue;
                }
                Action::Prepare { root } => self.prepare(&root),
                Action::Freeze { container, frozen } => self.freeze(container, frozen),
                Action::Limit { container, files } => self.limit(container, &files),
                Action::Remove { container } => self.remove(container),
                Action::Forget { tag, path } => self.forget(&tag, &path),
                Action::Create(spec) => self.create(&spec),
                Action::Start(process) => {
                    connection.starting = Some(Starting {
                        request: request.id,
                        what: What::Process(process),
                    });
                    self.try_start(id);
                    continue;
                }
                Action::Transfer(transfer) => {
                    connection.starting = Some(Starting {
                        request: request.id,
                        what: What::Transfer(transfer),
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

    pub(super) fn answer(
        &mut self,
        connection: u32,
        request: u32,
        result: Result<(), RequestError>,
    ) {
        self.tell(
            connection,
            request,
            result.map(|()| Event::Done { request }),
        );
    }

    /// Tells what came of a request.
    fn tell(&mut self, connection: u32, request: u32, result: Result<Event, RequestError>) {
        let event = result.unwrap_or_else(|error| {
            let mut message = explain(&error);
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            Event::Failed {
                request,
                kind: error.failure(),
                message,
            }
        });
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.tell(&event);
        }
    }

    pub(super) fn close_connection(&mut self, id: u32) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if let Some(starting) = connection.starting {
            let process = starting.what.id();
            self.streams.retain(|(waiting, _), _| *waiting != process);
        }
    }

    pub(super) fn deliver(&mut self, owner: u32, event: Event) {
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
    pub(super) fn flush(&mut self) {
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

    pub(super) fn add_stream(
        &mut self,
        process: ProcessId,
        stream: Stream,
        waiting: WaitingStream,
    ) {
        let known =
            self.processes.contains_key(&process) || self.streams.contains_key(&(process, stream));
        if known || self.streams.len() >= MAX_WAITING_STREAMS {
            log::warn(format_args!("Refused {stream:?} of process {}", process.0));
            return;
        }
        self.streams.insert((process, stream), waiting);
        let waits = |connection: &Connection| {
            let starting = connection.starting.as_ref();
            starting.is_some_and(|starting| starting.what.id() == process)
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
}
