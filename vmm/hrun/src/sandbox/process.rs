//! The process of a VMM: started with its configuration or before that is known, never outliving
//! its owner, who may be another than who started it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use rustix::{
    event::{PollFd, PollFlags},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use vmm::{
    channel::{Event, MAX_EVENT},
    config::VmConfig,
    exit::ExitReason,
};

use crate::poll;

/// The descriptor that is the VMM's lifeline. Its channel is standard input.
const LIFELINE: i32 = 3;

/// How much of the VMM's last words is kept, in bytes.
const MAX_WORDS: usize = 4096;

/// The environment of hrun is the user's, with his secrets in it: the VMM gets this of it.
const PASSED_ON: [&str; 2] = ["HRUN_LOG", "RUST_BACKTRACE"];

/// How long a VMM that is asked nothing may keep its owner waiting for what it has said already.
const WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// A running VMM. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub(crate) struct VmProcess {
    handles: Handles,
    received: Vec<u8>,
    /// Only who started it can wait for it.
    child: Option<Spawned>,
    gone: bool,
}

/// What makes a VMM somebody's, to be passed on. It ends when its last owner is gone.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Configuration and events (`vmm::channel`).
    pub(crate) channel: UnixStream,
    /// The VMM ends when this is closed, however we end.
    pub(crate) lifeline: OwnedFd,
}

#[derive(Debug)]
struct Spawned {
    child: Child,
    words: JoinHandle<Vec<u8>>,
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What its exit status means, if it came to its own end.
    pub(crate) exit: Option<ExitReason>,
    /// The same for people.
    pub(crate) reason: String,
    /// The last thing that it said.
    pub(crate) last_words: Option<String>,
}

/// Failure to start a VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// What it is to be given cannot be made.
    #[error("Failed to make the VMM's {what}")]
    Prepare {
        what: &'static str,
        source: io::Error,
    },
    /// It is to be given the same descriptor twice: cannot be.
    #[error("Failed to hand descriptors to the VMM")]
    Descriptors(#[from] FdMappingCollision),
    /// The program cannot be run.
    #[error("Failed to start {path}")]
    Spawn { path: PathBuf, source: io::Error },
    /// It does not take its configuration.
    #[error("Failed to configure the VMM")]
    Configure(#[source] io::Error),
}

/// Failure to hear an event of a VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    /// It ended instead.
    #[error("{0}")]
    Ended(Ended),
    /// It kept silent.
    #[error("the VMM said nothing for too long")]
    Timeout,
    /// What it said is no event.
    #[error("the VMM said something that is no event")]
    Malformed,
    /// Waiting failed.
    #[error("Failed to wait for the VMM")]
    Io(#[from] io::Error),
}

impl VmProcess {
    /// Starts the VMM at `program` with a VM of this description.
    pub(crate) fn spawn(program: &Path, config: &VmConfig) -> Result<Self, SpawnError> {
        let mut process = Self::start(program, None)?;
        process.configure(config).map_err(SpawnError::Configure)?;
        Ok(process)
    }

    /// Starts the VMM at `program` with the snapshot in the directory `template`, which it begins
    /// to load; what the VM is for comes with [`VmProcess::configure`].
    pub(crate) fn preload(program: &Path, template: &Path) -> Result<Self, SpawnError> {
        Self::start(program, Some(template))
    }

    fn start(program: &Path, template: Option<&Path>) -> Result<Self, SpawnError> {
        let prepare = |what| move |source| SpawnError::Prepare { what, source };
        let (channel, far_end) = UnixStream::pair().map_err(prepare("channel"))?;
        let (lifeline_end, lifeline) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| prepare("lifeline")(error.into()))?;
        let mut command = Command::new(program);
        command
            .args(["--config-fd", "0", "--lifeline-fd", &LIFELINE.to_string()])
            .env_clear()
            .envs(
                PASSED_ON
                    .into_iter()
                    .filter_map(|name| std::env::var_os(name).map(|value| (name, value))),
            )
            .current_dir("/")
            .stdin(OwnedFd::from(far_end))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C at the terminal is for the container, not for its VM.
            .process_group(0)
            .fd_mappings(vec![FdMapping {
                parent_fd: lifeline_end,
                child_fd: LIFELINE,
            }])?;
        if let Some(template) = template {
            command.arg("--preload").arg(template);
        }
        let spawn = |source| SpawnError::Spawn {
            path: program.into(),
            source,
        };
        let mut child = command.spawn().map_err(spawn)?;
        // It holds the VMM's ends of channel and lifeline.
        drop(command);
        let stderr = child.stderr.take().expect("standard error is piped");
        let started = || {
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
            let words = thread::Builder::new()
                .name("vmm-stderr".into())
                .spawn(move || listen(stderr))?;
            Ok((pidfd, words))
        };
        match started() {
            Ok((pidfd, words)) => Ok(Self {
                handles: Handles {
                    pid: Pid::from_child(&child),
                    pidfd,
                    channel,
                    lifeline,
                },
                received: Vec::new(),
                child: Some(Spawned { child, words }),
                gone: false,
            }),
            Err(source) => {
                // The error above is the one to report.
                let _ = child.kill();
                let _ = child.wait();
                Err(spawn(source))
            }
        }
    }

    /// Takes a VMM over that somebody else has started.
    pub(crate) fn adopt(handles: Handles) -> Self {
        Self {
            handles,
            received: Vec::new(),
            child: None,
            gone: false,
        }
    }

    /// Gives it away, and with it the duty to end it. Its starter remains the only one who can
    /// reap it.
    pub(crate) fn into_handles(mut self) -> io::Result<(Handles, Option<Child>)> {
        let handles = Handles {
            pid: self.handles.pid,
            pidfd: self.handles.pidfd.try_clone()?,
            channel: self.handles.channel.try_clone()?,
            lifeline: self.handles.lifeline.try_clone()?,
        };
        self.gone = true;
        Ok((handles, self.child.take().map(|spawned| spawned.child)))
    }

    /// Tells it what VM it is to be.
    pub(crate) fn configure(&mut self, config: &VmConfig) -> io::Result<()> {
        let mut channel = &self.handles.channel;
        channel.write_all(&serde_json::to_vec(config)?)?;
        channel.shutdown(Shutdown::Write)
    }

    /// Its next event.
    pub(crate) fn next_event(&mut self, deadline: Instant) -> Result<Event, EventError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(Event::Ended { reason, message }) => {
                        Err(EventError::Ended(Ended::told(reason, &message)))
                    }
                    Ok(event) => Ok(event),
                    Err(_) => Err(EventError::Malformed),
                };
            }
            let mut fds = [PollFd::new(&self.handles.channel, PollFlags::IN)];
            if !poll::wait(&mut fds, Some(deadline))? {
                return Err(EventError::Timeout);
            }
            let mut chunk = [0; 4096];
            match (&self.handles.channel).read(&mut chunk) {
                // It died without a word.
                Ok(0) => {
                    let ended = self.wait(Some(deadline))?.ok_or(EventError::Timeout)?;
                    return Err(EventError::Ended(ended));
                }
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            if self.received.len() as u64 > MAX_EVENT {
                return Err(EventError::Malformed);
            }
        }
    }

    /// Waits until the snapshot is loaded.
    pub(crate) fn wait_loaded(&mut self, deadline: Instant) -> Result<(), EventError> {
        match self.next_event(deadline)? {
            Event::Loaded => Ok(()),
            _ => Err(EventError::Malformed),
        }
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> Pid {
        self.handles.pid
    }

    /// Waits until it ends, or until `deadline`: then the answer is none.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Option<Ended>> {
        let mut fds = [PollFd::new(&self.handles.pidfd, PollFlags::IN)];
        if !poll::wait(&mut fds, deadline)? {
            return Ok(None);
        }
        self.gone = true;
        let told = self.last_event();
        let Some(Spawned { mut child, words }) = self.child.take() else {
            return Ok(Some(told.unwrap_or_else(Ended::silent)));
        };
        let status = child.wait()?;
        let words = words.join().unwrap_or_default();
        Ok(Some(told.unwrap_or_else(|| Ended::new(status, &words))))
    }

    /// What it said about its end before it came.
    fn last_event(&mut self) -> Option<Ended> {
        let channel = &self.handles.channel;
        channel.set_read_timeout(Some(WORDS_TIMEOUT)).ok()?;
        let rest = BufReader::new(channel.take(MAX_EVENT));
        let received = std::mem::take(&mut self.received);
        BufReader::new(received.as_slice().chain(rest))
            .split(b'\n')
            .map_while(Result::ok)
            .find_map(|line| match serde_json::from_slice(&line) {
                Ok(Event::Ended { reason, message }) => Some(Ended::told(reason, &message)),
                _ => None,
            })
    }

    /// Ends it by force, without waiting until it is gone.
    pub(crate) fn begin_kill(&mut self) -> io::Result<()> {
        match pidfd_send_signal(&self.handles.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it by force and waits until it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        self.begin_kill()?;
        self.wait(None).map(drop)
    }
}

/// Readable once the process has ended.
impl AsFd for VmProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handles.pidfd.as_fd()
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        // It cannot fail for a process that was not waited for, and there is nobody to tell.
        let _ = self.kill();
    }
}

impl Ended {
    /// As it said itself.
    fn told(reason: ExitReason, message: &str) -> Self {
        Self {
            exit: Some(reason),
            reason: reason.describe().to_owned(),
            last_words: Some(message.to_owned()),
        }
    }

    /// Without a word, as far as a foster parent can tell.
    fn silent() -> Self {
        Self {
            exit: None,
            reason: "the VMM was killed".to_owned(),
            last_words: None,
        }
    }

    fn new(status: ExitStatus, words: &[u8]) -> Self {
        let exit = status.code().and_then(ExitReason::from_code);
        let reason = match (exit, status.signal()) {
            (Some(reason), _) => reason.describe().to_owned(),
            (None, Some(signal)) => format!("the VMM was killed by signal {signal}"),
            (None, None) => format!("the VMM ended with {status}"),
        };
        let words = String::from_utf8_lossy(words);
        let last_words = words
            .lines()
            .rev()
            .map(|line| line.strip_prefix("hrun-vmm:").unwrap_or(line).trim())
            .find(|line| !line.is_empty())
            .map(Into::into);
        Self {
            exit,
            reason,
            last_words,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)?;
        match &self.last_words {
            Some(words) if *words != self.reason => write!(f, " ({words})"),
            _ => Ok(()),
        }
    }
}

/// Takes in all that the VMM says and keeps the end of it. With `HRUN_LOG` it was asked to be
/// talkative, and the user gets to see it.
fn listen(mut stderr: ChildStderr) -> Vec<u8> {
    let show = std::env::var_os("HRUN_LOG").is_some();
    let mut words = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match stderr.read(&mut chunk) {
            Ok(0) => return words,
            Ok(length) => {
                if show {
                    // Nobody reads it: then nobody misses it.
                    let _ = io::stderr().write_all(&chunk[..length]);
                }
                words.extend_from_slice(&chunk[..length]);
                let surplus = words.len().saturating_sub(MAX_WORDS);
                words.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return words,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use vmm::config::{BootConfig, Origin};

    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            version: vmm::config::VERSION,
            name: "test".into(),
            vcpus: 1,
            max_vcpus: None,
            memory: 128 << 20,
            origin: Origin::Boot(BootConfig {
                kernel: "/vmlinux".into(),
                ..BootConfig::default()
            }),
            control: "/run/control".into(),
            vsock: None,
            shares: Vec::new(),
            disks: Vec::new(),
            console: None,
            start_paused: false,
            profile: None,
            symbols: None,
            snapshot: None,
        }
    }

    /// A script in the place of hrun-vmm.
    fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hrun-vmm");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(20))
    }

    #[test]
    fn the_vmm_reads_its_configuration_and_its_end_is_explained() {
        let (dir, program) = fake("cat > \"$0.config\"; echo hrun-vmm: oh no >&2; exit 11");
        let mut process = VmProcess::spawn(&program, &config()).unwrap();
        let ended = process.wait(soon()).unwrap().unwrap();
        assert_eq!(ended.to_string(), "the guest kernel panicked (oh no)");
        let json = fs::read(dir.path().join("hrun-vmm.config")).unwrap();
        assert_eq!(VmConfig::from_json(&json).unwrap(), config());
    }

    #[test]
    fn the_lifeline_closes_with_its_owner() {
        let (_dir, program) = fake("cat <&3 >/dev/null; exit 14");
        let mut process = VmProcess::spawn(&program, &config()).unwrap();
        let pause = Some(Instant::now() + Duration::from_millis(50));
        assert_eq!(process.wait(pause).unwrap(), None);
        let (_, other) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        process.handles.lifeline = other;
        let ended = process.wait(soon()).unwrap().unwrap();
        assert_eq!(ended.to_string(), "the owner of the VM is gone");
    }

    #[test]
    fn a_dropped_vmm_is_gone() {
        let (_dir, program) = fake("exec sleep 1000");
        let process = VmProcess::spawn(&program, &config()).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(pidfd_open(pid, PidfdFlags::empty()).is_err());
    }

    #[test]
    fn a_talkative_vmm_does_not_fill_our_memory() {
        let (_dir, program) = fake("yes word | head -c 1000000 >&2; echo last >&2; exit 1");
        let mut process = VmProcess::spawn(&program, &config()).unwrap();
        let ended = process.wait(soon()).unwrap().unwrap();
        assert_eq!(ended.last_words.as_deref(), Some("last"));
    }

    #[test]
    fn a_missing_vmm_is_named() {
        let error = VmProcess::spawn(Path::new("/nonexistent/hrun-vmm"), &config()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/hrun-vmm"));
    }
}
