//! The standard streams of a process: what it gets and what the agent keeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{Stdio, Stream, WindowSize};
use rustix::fs::{self, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Uid;
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{self, Winsize};

use super::{Result, preparing};
use crate::container::Devices;

/// The two ends of a process's standard streams.
#[derive(Debug)]
pub(crate) struct Ends {
    /// For descriptors 0, 1 and 2 of the process; None for `/dev/null`.
    process: [Option<OwnedFd>; 3],
    /// For the agent.
    agent: Vec<(Stream, OwnedFd)>,
    /// Whether it is a terminal that the process gets.
    has_terminal: bool,
}

impl Ends {
    /// Makes pipes or a terminal, owned by the user so that `/dev/stdout` can be opened.
    pub(crate) fn new(stdio: Stdio, devices: &Devices, uid: Uid) -> Result<Self> {
        let ends = match stdio {
            Stdio::Terminal(size) => Self::of_terminal(size, devices)?,
            Stdio::Pipes { stdin } => Self::pipes(stdin)?,
        };
        if uid != Uid::ROOT {
            for end in ends.process.iter().flatten() {
                fs::fchown(end, Some(uid), None).map_err(preparing("own standard streams"))?;
            }
        }
        Ok(ends)
    }

    fn pipes(stdin: bool) -> Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(preparing("make a pipe"));
        let (out_reader, out_writer) = pipe()?;
        let (err_reader, err_writer) = pipe()?;
        let mut agent = vec![(Stream::Stdout, out_reader), (Stream::Stderr, err_reader)];
        let mut input = None;
        if stdin {
            let (reader, writer) = pipe()?;
            input = Some(reader);
            agent.push((Stream::Stdin, writer));
        }
        Ok(Self {
            process: [input, Some(out_writer), Some(err_writer)],
            agent,
            has_terminal: false,
        })
    }

    fn of_terminal(size: WindowSize, devices: &Devices) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let master = fs::openat(&devices.pts, "ptmx", flags, Mode::empty())
            .map_err(preparing("open a terminal"))?;
        pty::unlockpt(&master).map_err(preparing("unlock a terminal"))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = pty::ioctl_tiocgptpeer(&master, flags).map_err(preparing("open a terminal"))?;
        set_size(master.as_fd(), size).map_err(preparing("size a terminal"))?;
        Ok(Self {
            process: [Some(slave), None, None],
            agent: vec![(Stream::Terminal, master)],
            has_terminal: true,
        })
    }

    /// The agent's ends. Those of the process are closed, so that its own count.
    pub(crate) fn into_agent(self) -> Vec<(Stream, OwnedFd)> {
        self.agent
    }

    /// Files, as they are.
    pub(crate) fn files(input: OwnedFd, output: OwnedFd) -> Result<Self> {
        let errors = output
            .try_clone()
            .map_err(preparing("connect a hook's output"))?;
        Ok(Self {
            process: [Some(input), Some(output), Some(errors)],
            agent: Vec::new(),
            has_terminal: false,
        })
    }

    pub(crate) fn for_process<'a>(&'a self, devices: &'a Devices) -> [BorrowedFd<'a>; 3] {
        let default = self.terminal().unwrap_or(devices.null.as_fd());
        self.process
            .each_ref()
            .map(|end| end.as_ref().map_or(default, AsFd::as_fd))
    }

    /// The process's end of its terminal, if it has one.
    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let end = self.process[0].as_ref().filter(|_| self.has_terminal)?;
        Some(end.as_fd())
    }
}

/// Sets the size of a terminal.
pub(crate) fn set_size(terminal: BorrowedFd<'_>, size: WindowSize) -> rustix::io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    termios::tcsetwinsize(terminal, size)
}
