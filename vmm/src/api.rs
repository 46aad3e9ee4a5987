//! The control socket of a VM: one JSON object a line, each answered by one JSON object a line.
//!
//! ```text
//! -> {"action":"status"}
//! <- {"ok":{"state":"running","pid":4711,...}}
//! -> {"action":"stop"}
//! <- {"ok":{"state":"stopped",...}}
//! ```

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Longest request or answer, in bytes.
pub const MAX_LINE: u64 = 64 << 10;

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Say how the VM is.
    Status,
    /// Stop the vCPUs where they are.
    Pause,
    /// Write a snapshot into the directory that the configuration named for it. The VM must be
    /// paused and stays so; its vsock connections are closed.
    Snapshot,
    /// Let the vCPUs go on; also the first start of a VM configured with `start_paused`.
    Resume,
    /// End the VM at once, as pulling the plug does. The process exits with
    /// [`Shutdown`](crate::exit::ExitReason::Shutdown).
    Stop,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done; this is how the VM is now.
    Ok(Status),
    /// It was not done, and why.
    Error(String),
}

/// How a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether its vCPUs run.
    pub state: VmState,
    /// Process of the VMM.
    pub pid: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM, in bytes.
    pub memory: u64,
    /// The kind of KVM it runs on.
    pub host_kind: HostKind,
    /// Exits of all vCPUs to the VMM so far.
    pub exits: u64,
    /// When each phase of the start was reached, in microseconds since the VMM process began.
    pub timeline: Vec<Phase>,
}

/// A moment in the start of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What was reached.
    pub name: String,
    /// Microseconds since the VMM process began.
    pub at_us: u64,
}

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// The vCPUs stand still.
    Paused,
    /// The vCPUs run.
    Running,
    /// The VM ends.
    Stopped,
}

/// The two kinds of KVM, told apart by running a few guest instructions ([`crate::host_kind`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostKind {
    /// VT-x or AMD-V: guest kernel code runs natively.
    Hardware,
    /// KVM without them: guest kernel code is interpreted.
    Software,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        })
    }
}

/// Failure of a request to a VM.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The control socket does not answer.
    #[error("Failed to connect to the VM's control socket {path}")]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke or timed out.
    #[error("Failed to talk to the VM over its control socket")]
    Io(#[source] io::Error),
    /// The answer is none.
    #[error("The VM's answer is no JSON of the expected form")]
    Malformed(#[source] serde_json::Error),
    /// The VM refused.
    #[error("The VM refused the request: {0}")]
    Refused(String),
}

/// A connection to a VM's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`; each answer may take as long as `timeout`.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| ClientError::Connect {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// The connection broke, or the VM refused; the message says what it said.
    pub fn request(&mut self, request: Request) -> Result<Status, ClientError> {
        let mut line = serde_json::to_string(&request).map_err(ClientError::Malformed)?;
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(ClientError::Io)?;
        let mut answer = String::new();
        let read = (&mut self.stream).take(MAX_LINE).read_line(&mut answer);
        if read.map_err(ClientError::Io)? == 0 {
            return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&answer).map_err(ClientError::Malformed)? {
            Response::Ok(status) => Ok(status),
            Response::Error(message) => Err(ClientError::Refused(message)),
        }
    }
}
