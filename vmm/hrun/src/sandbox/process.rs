//! The process of a VMM: started with its configuration, never outliving its owner.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::Instant,
};

use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{MemfdFlags, memfd_create},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, pidfd_open},
};
use vmm::{config::VmConfig, exit::ExitReason};

use crate::poll;

/// The descriptor that is the VMM's lifeline. Its configuration is standard input.
const LIFELINE: i32 = 3;

/// How much of the VMM's last words is kept, in bytes.
const MAX_WORDS: usize = 4096;

/// The environment of hrun is the user's, with his secrets in it: the VMM gets this of it.
const PASSED_ON: [&str; 2] = ["HRUN_LOG", "RUST_BACKTRACE"];

/// A running VMM. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub(crate) struct VmProcess {
    child: Child,
    pidfd: OwnedFd,
    /// The VMM ends when this is closed, however we end.
    _lifeline: OwnedFd,
    words: Option<JoinHandle<Vec<u8>>>,
    reaped: bool,
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What its exit status means.
    pub(crate) reason: String,
    /// The last line that it wrote to standard error.
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
}

impl VmProcess {
    /// Starts the VMM at `program` with a VM of this description.
    pub(crate) fn spawn(program: &Path, config: &VmConfig) -> Result<Self, SpawnError> {
        let prepare = |what| move |source| SpawnError::Prepare { what, source };
        let config = config_file(config).map_err(prepare("configuration"))?;
        let (far_end, lifeline) =
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
            .stdin(config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C at the terminal is for the container, not for its VM.
            .process_group(0)
            .fd_mappings(vec![FdMapping {
                parent_fd: far_end,
                child_fd: LIFELINE,
            }])?;
        let spawn = |source| SpawnError::Spawn {
            path: program.into(),
            source,
        };
        let mut child = command.spawn().map_err(spawn)?;
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
                child,
                pidfd,
                _lifeline: lifeline,
                words: Some(words),
                reaped: false,
            }),
            Err(source) => {
                // The error above is the one to report.
                let _ = child.kill();
                let _ = child.wait();
                Err(spawn(source))
            }
        }
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it ends, or until `deadline`: then the answer is none.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Option<Ended>> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if !poll::wait(&mut fds, deadline)? {
            return Ok(None);
        }
        let status = self.child.wait()?;
        self.reaped = true;
        let words = self.words.take().and_then(|words| words.join().ok());
        Ok(Some(Ended::new(status, &words.unwrap_or_default())))
    }

    /// Ends it by force and waits until it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        if !self.reaped {
            self.child.kill()?;
            self.child.wait()?;
            self.reaped = true;
        }
        Ok(())
    }
}

/// Readable once the process has ended.
impl AsFd for VmProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        // It cannot fail for a child that was not waited for, and there is nobody to tell.
        let _ = self.kill();
    }
}

impl Ended {
    fn new(status: ExitStatus, words: &[u8]) -> Self {
        let reason = match (
            status.code().and_then(ExitReason::from_code),
            status.signal(),
        ) {
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
        Self { reason, last_words }
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

/// The configuration as a file in memory, to be read from its beginning.
fn config_file(config: &VmConfig) -> io::Result<File> {
    let mut file = File::from(memfd_create("vm-config", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file)
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

    use vmm::config::BootConfig;

    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            version: vmm::config::VERSION,
            name: "test".into(),
            vcpus: 1,
            memory: 128 << 20,
            boot: BootConfig {
                kernel: "/vmlinux".into(),
                initramfs: None,
                cmdline: String::new(),
            },
            control: "/run/control".into(),
            vsock: None,
            shares: Vec::new(),
            console: None,
            start_paused: false,
            profile: None,
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
        process._lifeline = other;
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
