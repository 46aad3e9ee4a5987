//! A person at a terminal: a pseudo-terminal with hrun in its foreground.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

use crate::{
    Invocation,
    command::{Capture, tail},
};

/// A command on a terminal of its own. Dropping it kills the command.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    line: String,
    keyboard: File,
    screen: Capture,
    seen: usize,
    // Open as long as we look at its attributes: a terminal without users forgets them.
    peer: OwnedFd,
    timeout: Duration,
}

impl Terminal {
    /// Starts a command as the foreground of a new terminal of this size.
    ///
    /// # Errors
    ///
    /// No terminal can be had, or the command cannot be executed.
    pub fn open(invocation: &Invocation, rows: u16, columns: u16) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let open = || -> io::Result<(OwnedFd, OwnedFd)> {
            let controller = openpt(flags)?;
            grantpt(&controller)?;
            unlockpt(&controller)?;
            let peer = ioctl_tiocgptpeer(&controller, flags)?;
            tcsetwinsize(&controller, size(rows, columns))?;
            Ok((controller, peer))
        };
        let (controller, peer) = open().context("Failed to open a pseudo-terminal")?;
        let stdio = || peer.try_clone().map(Stdio::from);

        // setsid --ctty makes it the controlling terminal: keys become signals, and so does a
        // change of size. It executes the command in its own process.
        let inner = invocation.command();
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(inner.get_program())
            .args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let line = invocation.line();
        let child = command
            .stdin(stdio()?)
            .stdout(stdio()?)
            .stderr(stdio()?)
            .spawn()
            .with_context(|| format!("Failed to start {line} on a terminal"))?;
        let keyboard = File::from(controller);
        let screen = keyboard
            .try_clone()
            .context("Failed to duplicate a descriptor")?;
        Ok(Self {
            child,
            line,
            keyboard,
            screen: Capture::of(screen),
            seen: 0,
            peer,
            timeout: invocation.time_limit(),
        })
    }

    /// Types.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.keyboard
            .write_all(keys.as_bytes())
            .with_context(|| format!("Failed to type {keys:?} to {}", self.line))
    }

    /// Waits until `text` appears behind what was waited for before, and gives all from there up
    /// to its end.
    ///
    /// # Errors
    ///
    /// It does not appear in time.
    pub fn shows(&mut self, text: &str) -> Result<String> {
        let position = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .position(|window| window == text.as_bytes())
        };
        let seen = self.seen;
        let found = self.screen.wait(self.timeout, |captured| {
            position(&captured.bytes[seen..]).is_some() || captured.ended
        });
        let captured = self.screen.lock();
        let Some(at) = position(&captured.bytes[seen..]).filter(|_| found) else {
            bail!(
                "{} did not show {text:?}; on the screen: {:?}",
                self.line,
                tail(&String::from_utf8_lossy(&captured.bytes[seen..]))
            );
        };
        self.seen = seen + at + text.len();
        Ok(String::from_utf8_lossy(&captured.bytes[seen..self.seen]).into_owned())
    }

    /// Everything that was shown.
    #[must_use]
    pub fn screen(&self) -> String {
        self.screen.text()
    }

    /// Changes the size of the window.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        tcsetwinsize(&self.keyboard, size(rows, columns)).context("Failed to resize a terminal")
    }

    /// The terminal's attributes, in a form that can be compared and printed.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub fn attributes(&self) -> Result<String> {
        let attributes = tcgetattr(&self.peer).context("Failed to read terminal attributes")?;
        Ok(format!("{attributes:#?}"))
    }

    /// Process number of the command.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Sends the command a signal.
    ///
    /// # Errors
    ///
    /// It is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()).context("a child has a process number")?;
        kill_process(pid, signal).with_context(|| format!("Failed to signal {}", self.line))
    }

    /// Waits for the end of the command.
    ///
    /// # Errors
    ///
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .context("Failed to wait for a child")?
            {
                return Ok(status);
            }
            ensure!(
                started.elapsed() < self.timeout,
                "{} did not end; on the screen: {:?}",
                self.line,
                tail(&self.screen())
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
