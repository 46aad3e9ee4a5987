//! Files of a container that runs, through the agent in its VM.

use std::{
    io::{self, Read},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use agent_protocol::{Archiving, Event, ExitStatus, Open, ProcessId, Stream};
use anyhow::{Context, anyhow, bail};
use cp::{CopyError, Source};
use rustix::event::{PollFd, PollFlags};

use super::{Side, Sink, Spring, Wanted, both, note};
use crate::{
    agent::{Control, ControlError, acknowledgement, connect},
    container::Record,
    poll, translate,
};

/// What a guest may say about a copy, in bytes: the rest is lost.
const MAX_TEXT: u64 = 64 << 10;

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Guest {
    name: String,
    vsock: PathBuf,
}

impl Guest {
    pub(crate) fn new(record: &Record) -> Self {
        Self {
            name: record.name.clone(),
            vsock: record.vsock_socket(),
        }
    }

    fn start(&self, archiving: Archiving) -> anyhow::Result<Session> {
        let process = translate::random_process().context("Failed to make a process number")?;
        let stream = |stream| connect(&self.vsock, &Open::Stream { process, stream }, &[]);
        let reads = matches!(archiving, Archiving::Unpack { .. });
        let stdin = reads.then(|| stream(Stream::Stdin)).transpose()?;
        let stdout = stream(Stream::Stdout)?;
        let stderr = stream(Stream::Stderr)?;
        let errors = thread::Builder::new()
            .name("standard error".into())
            .spawn(move || read_text(stderr))
            .context("Failed to start a thread")?;
        let action = translate::transfer_action(process, archiving);
        let control = Control::open(&self.vsock, vec![action])?;
        Ok(Session {
            process,
            control,
            stdin,
            stdout,
            errors,
        })
    }

    /// Waits for the end of the agent's side.
    fn end(&self, mut session: Session) -> anyhow::Result<()> {
        // Who still writes to us is to end.
        let _ = session.stdout.shutdown(Shutdown::Both);
        let status = session.status().map_err(|error| {
            if let Some(ControlError::Closed) = error.downcast_ref() {
                return anyhow!("Container {} has ended", self.name);
            }
            error
        })?;
        let text = session.errors.join().unwrap_or_default();
        let mut lines: Vec<&str> = text.lines().collect();
        let failure = match status {
            ExitStatus::Exited(0) => None,
            ExitStatus::Exited(_) => Some(lines.pop().unwrap_or("Failed to copy").to_owned()),
            ExitStatus::Signaled(signal) => Some(format!("Signal {signal} ended the copying")),
        };
        lines.into_iter().for_each(note);
        match failure {
            Some(failure) => bail!("{failure} in container {}", self.name),
            None => Ok(()),
        }
    }
}

impl Side for Guest {
    fn pack(&self, path: &[u8], sink: &Sink, wanted: Wanted) -> anyhow::Result<()> {
        let follow = wanted.follow;
        let mut session = self.start(Archiving::Pack {
            path: path.to_vec(),
            follow,
        })?;
        let here = match acknowledgement(&mut session.stdout) {
            Ok(begun) => {
                let archive = begun.as_slice().chain(&session.stdout);
                sink.take(&Source { path, follow }, wanted, archive)
            }
            Err(_) => Err(CopyError::Empty),
        };
        both(here, self.end(session))
    }

    fn unpack(&self, path: &[u8], spring: &Spring, wanted: Wanted) -> anyhow::Result<()> {
        let mut session = self.start(Archiving::Unpack {
            path: path.to_vec(),
            name: spring.name(),
            keep_owner: wanted.keep_owner,
        })?;
        let here = match session.stdin.take() {
            Some(stdin) if acknowledgement(&mut &stdin).is_ok() => {
                let given = spring.give(wanted, &stdin);
                // If it is gone already, it knows.
                let _ = stdin.shutdown(Shutdown::Write);
                // A socket that is closed before the guest has read everything would lose the rest.
                session.stdin = Some(stdin);
                given
            }
            _ => Err(CopyError::Empty),
        };
        both(here, self.end(session))
    }
}

/// The agent's archiver at work.
struct Session {
    process: ProcessId,
    control: Control,
    stdin: Option<UnixStream>,
    stdout: UnixStream,
    errors: JoinHandle<String>,
}

impl Session {
    fn status(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
            poll::wait(&mut fds, None).context("Failed to wait for the guest")?;
            for event in self.control.receive()? {
                match event {
                    Event::Failed { message, .. } => bail!(message),
                    Event::Exited { process, status } if process == self.process => {
                        return Ok(status);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Reads what is said to its end.
fn read_text(mut from: UnixStream) -> String {
    let mut text = acknowledgement(&mut from).unwrap_or_default();
    // Whatever goes wrong: what came has been said.
    let _ = from.by_ref().take(MAX_TEXT).read_to_end(&mut text);
    let _ = io::copy(&mut from, &mut io::sink());
    String::from_utf8_lossy(&text).into_owned()
}
