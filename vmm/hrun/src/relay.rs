//! Carries standard streams between hrun and the guest: one thread for each direction, nothing
//! buffered but what is on the way. Who does not read stops who writes, all the way through.

use std::{
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    stdio,
};

use crate::{
    agent::{ConnectError, acknowledgement},
    attach::Audience,
    log::{Log, LogStream},
    poll,
    timeline::Timeline,
};

/// Bytes on the way in one thread.
const CHUNK: usize = 64 << 10;

/// Names of the streams.
const OUTPUT: &str = "standard output";
const ERROR: &str = "standard error";

/// The connections of a process's streams.
#[derive(Debug)]
pub(crate) enum Streams {
    /// All on one terminal.
    Terminal {
        stream: UnixStream,
        /// Whether our standard input goes there.
        input: bool,
    },
    /// One for each.
    Pipes {
        stdin: Option<UnixStream>,
        stdout: UnixStream,
        stderr: UnixStream,
    },
}

/// Where a process's output goes.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// To our own standard streams.
    Stdio,
    /// Into a log, and to those who watch.
    Kept(Arc<Log>, Arc<Audience>),
    /// Nowhere.
    Discard,
}

/// Where one stream goes.
enum Sink<'a> {
    Fd(BorrowedFd<'a>),
    Kept {
        log: LogStream,
        audience: Arc<Audience>,
        is_error: bool,
    },
    Discard,
}

impl Sink<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Fd(fd) => write_all(*fd, bytes),
            Self::Kept {
                log,
                audience,
                is_error,
            } => {
                log.write(bytes);
                audience.say(*is_error, bytes);
                Ok(())
            }
            Self::Discard => Ok(()),
        }
    }
}

/// Streams on their way.
#[derive(Debug)]
pub(crate) struct Relay {
    /// A standard input into which nobody writes, but which has not come to its end.
    _open_input: Option<UnixStream>,
    /// Hung up once every output has come to its end.
    done: OwnedFd,
    failure: Failure,
}

type Failure = Arc<Mutex<Option<RelayError>>>;

/// Output that did not get where it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// A stream could not be connected.
    #[error("Failed to connect the container's {stream}")]
    Connect {
        stream: &'static str,
        source: ConnectError,
    },
    /// The guest's side broke.
    #[error("Failed to read the container's {stream}")]
    Read {
        stream: &'static str,
        source: io::Error,
    },
    /// Our side broke, for another reason than that nobody reads.
    #[error("Failed to write to {stream}")]
    Write {
        stream: &'static str,
        source: io::Error,
    },
}

impl Relay {
    /// Starts the threads.
    pub(crate) fn start(
        streams: Streams,
        to: &Output,
        timeline: &Arc<Timeline>,
    ) -> io::Result<Self> {
        let (done, running) = pipe_with(PipeFlags::CLOEXEC)?;
        let failure = Failure::default();
        let mut open_input = None;
        let output = |stream: &'static str, from: UnixStream| {
            let (own, name) = match stream {
                ERROR => (stdio::stderr(), "stderr"),
                _ => (stdio::stdout(), "stdout"),
            };
            let sink = match to {
                Output::Stdio => Sink::Fd(own),
                Output::Kept(log, audience) => Sink::Kept {
                    log: LogStream::new(Arc::clone(log), name),
                    audience: Arc::clone(audience),
                    is_error: stream == ERROR,
                },
                Output::Discard => Sink::Discard,
            };
            let running = running.try_clone()?;
            let failure = Arc::clone(&failure);
            let timeline = Arc::clone(timeline);
            thread::Builder::new().name(stream.into()).spawn(move || {
                if let Err(error) = pump_out(stream, from, sink, &timeline) {
                    failure
                        .lock()
                        .expect("nothing panics with the lock held")
                        .get_or_insert(error);
                }
                drop(running);
            })
        };
        match streams {
            Streams::Terminal { stream, input } => {
                if input {
                    spawn_input(stream.try_clone()?, false)?;
                } else if let Output::Kept(_, audience) = to {
                    audience.connect_input(stream.try_clone()?, true)?;
                }
                output(OUTPUT, stream)?;
            }
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                match (stdin, to) {
                    (Some(stdin), Output::Stdio) => spawn_input(stdin, true)?,
                    (Some(stdin), Output::Kept(_, audience)) => {
                        // Ours stays open when the audience is done with its own.
                        open_input = Some(stdin.try_clone()?);
                        audience.connect_input(stdin, false)?;
                    }
                    (stdin, _) => open_input = stdin,
                }
                output(OUTPUT, stdout)?;
                output(ERROR, stderr)?;
            }
        }
        Ok(Self {
            _open_input: open_input,
            done,
            failure,
        })
    }

    /// The first output that failed.
    pub(crate) fn failure(&self) -> Option<RelayError> {
        self.failure
            .lock()
            .expect("nothing panics with the lock held")
            .take()
    }
}

/// Hung up once every output has come to its end.
impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Starts the thread of standard input. It may still wait for a key when all is over, so nobody
/// waits for it.
fn spawn_input(to: UnixStream, own_connection: bool) -> io::Result<()> {
    thread::Builder::new()
        .name("standard input".into())
        .spawn(move || pump_in(stdio::stdin(), to, own_connection))?;
    Ok(())
}

/// Carries standard input to the guest until either side is done with it. Only the guest's side
/// can fail, and that means that the process no longer reads: its good right.
fn pump_in(from: BorrowedFd<'_>, mut to: UnixStream, own_connection: bool) {
    // On a connection that carries only input nobody else reads the VMM's line; nothing is done
    // about a refusal, because the outputs meet it too.
    if own_connection && acknowledgement(&mut to).is_err() {
        return;
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        // A failure is a terminal that was hung up, a directory...: no more input.
        let length = read_patiently(from, &mut chunk).unwrap_or(0);
        if length == 0 || write_all(to.as_fd(), &chunk[..length]).is_err() {
            // It fails if the other side has gone: then it knows.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}

/// Carries an output from the guest until its end, or until nobody reads it here: then the guest
/// is told, and its process gets SIGPIPE as in any pipeline.
fn pump_out(
    stream: &'static str,
    mut from: UnixStream,
    mut to: Sink<'_>,
    timeline: &Timeline,
) -> Result<(), RelayError> {
    let mut pending =
        acknowledgement(&mut from).map_err(|source| RelayError::Connect { stream, source })?;
    let mut chunk = vec![0; CHUNK];
    let mut first = true;
    loop {
        if pending.is_empty() {
            match from.read(&mut chunk) {
                // A reset comes after all that was sent: the other side closed without having
                // read our last keys.
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(RelayError::Read { stream, source }),
                Ok(length) => pending.extend_from_slice(&chunk[..length]),
            }
        }
        if std::mem::take(&mut first) {
            timeline.mark(&format!("first byte of {stream}"));
        }
        if let Err(error) = to.write_all(&pending) {
            // The process learns it, whatever the reason.
            let _ = from.shutdown(Shutdown::Both);
            return match error {
                Errno::PIPE => Ok(()),
                error => Err(RelayError::Write {
                    stream,
                    source: error.into(),
                }),
            };
        }
        pending.clear();
    }
}

/// Reads some bytes. Somebody we share the descriptor with may have made it non-blocking.
pub(crate) fn read_patiently(from: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(from, &mut *buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(from, PollFlags::IN)?,
            read => return read,
        }
    }
}

/// Writes all bytes, likewise.
pub(crate) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(to, PollFlags::OUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), Errno> {
    poll::wait(&mut [PollFd::from_borrowed_fd(fd, events)], None)
        .map(drop)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        time::{Duration, Instant},
    };

    use super::*;

    /// Runs an output thread between two socket pairs: the guest's end and the reader's.
    fn output() -> (
        UnixStream,
        UnixStream,
        thread::JoinHandle<Result<(), RelayError>>,
    ) {
        let (guest, from) = UnixStream::pair().unwrap();
        let (to, reader) = UnixStream::pair().unwrap();
        let thread =
            thread::spawn(move || pump_out(OUTPUT, from, Sink::Fd(to.as_fd()), &Timeline::new()));
        (guest, reader, thread)
    }

    #[test]
    fn output_arrives_to_its_last_byte() {
        let (mut guest, mut reader, thread) = output();
        let data: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        let sent = data.clone();
        let writer = thread::spawn(move || {
            guest.write_all(b"OK 9\n").unwrap();
            guest.write_all(&sent).unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        assert!(received == data);
        writer.join().unwrap();
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_waits_stops_the_writer() {
        let (mut guest, reader, _thread) = output();
        guest.write_all(b"OK 9\n").unwrap();
        guest
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let mut sent = 0usize;
        let block = [0; 64 << 10];
        while let Ok(length) = guest.write(&block) {
            sent += length;
            assert!(sent < 16 << 20, "somebody buffers without bounds");
        }
        drop(reader);
    }

    #[test]
    fn a_reader_that_is_gone_closes_the_guests_side() {
        let (mut guest, reader, thread) = output();
        drop(reader);
        guest.write_all(b"OK 9\nx").unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(guest.read(&mut [0; 8]).unwrap(), 0);
        let error = guest.write_all(b"y").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_disk_is_reported() {
        let (mut guest, from) = UnixStream::pair().unwrap();
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        guest.write_all(b"OK 9\nx").unwrap();
        let error = pump_out(OUTPUT, from, Sink::Fd(full.as_fd()), &Timeline::new()).unwrap_err();
        assert!(matches!(error, RelayError::Write { .. }), "{error}");
    }

    #[test]
    fn a_refused_stream_is_reported() {
        let (guest, _reader, thread) = output();
        drop(guest);
        let error = thread.join().unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Connect { .. }), "{error}");
    }

    #[test]
    fn the_end_of_input_is_passed_on() {
        let (mut guest, to) = UnixStream::pair().unwrap();
        let (from, mut typist) = UnixStream::pair().unwrap();
        guest.write_all(b"OK 9\n").unwrap();
        let thread = thread::spawn(move || pump_in(from.as_fd(), to, true));
        typist.write_all(b"hello").unwrap();
        drop(typist);
        let mut received = String::new();
        guest.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hello");
        thread.join().unwrap();
    }

    #[test]
    fn a_non_blocking_reader_gets_everything() {
        let (to, mut reader) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let data = vec![7u8; 4 << 20];
        let writer = thread::spawn(move || write_all(to.as_fd(), &data));
        // Let the writer run into the full socket.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 4 << 20);
        writer.join().unwrap().unwrap();
    }
}
