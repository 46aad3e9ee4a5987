//! A daemon that lives as long as somebody needs it.

use std::{
    ffi::OsString,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long one may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon. Dropping it asks it to end, and ends it if it does not.
#[derive(Debug)]
pub struct Daemon {
    program: String,
    child: Child,
}

impl Daemon {
    /// Starts it, its output in a file of `dir` that has its name.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn start(
        program: &Path,
        args: &[&str],
        env: &[(&str, OsString)],
        dir: &Path,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str());
        let name = name.to_string_lossy().into_owned();
        let log = dir.join(format!("{name}.log"));
        let log =
            fs::File::create(&log).with_context(|| format!("Failed to make {}", log.display()))?;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("Failed to start {name}"))?;
        Ok(Self {
            program: name,
            child,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it does what it is for.
    ///
    /// # Errors
    ///
    /// It ended, or does not do so in time.
    pub fn wait_until(&mut self, is_ready: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if is_ready()? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} has ended: {status}", self.program);
            }
            thread::sleep(Duration::from_millis(200));
        }
        bail!("{} does not answer", self.program);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_by_itself_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start("/bin/false".as_ref(), &[], &[], dir.path()).unwrap();
        let error = daemon.wait_until(|| Ok(false)).unwrap_err();
        assert!(error.to_string().contains("false has ended"), "{error}");
    }

    #[test]
    fn it_ends_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'echo asked; exit' TERM; echo ready; while :; do sleep 0.1; done";
        let log = dir.path().join("sh.log");
        let says = |word: &str| Ok(fs::read_to_string(&log)?.contains(word));
        let mut daemon =
            Daemon::start("/bin/sh".as_ref(), &["-c", script], &[], dir.path()).unwrap();
        daemon.wait_until(|| says("ready")).unwrap();
        drop(daemon);
        assert!(says("asked").unwrap());
    }
}
