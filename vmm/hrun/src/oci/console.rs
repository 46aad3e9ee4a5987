//! The terminal of a container under an engine: a pseudo-terminal of the host's, whose master the
//! engine gets over its console socket. The shim passes on what goes through the other end, which is
//! raw: keys and lines are the guest's terminal's business.

use std::{
    fs::File,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use agent_protocol::WindowSize;
use rustix::{
    fs::{Mode, OFlags, open},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

/// A terminal that could not be given to the engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("Failed to make a pseudo-terminal")]
    Make(#[source] io::Error),
    #[error("Failed to send the terminal over the console socket {path}")]
    Send { path: PathBuf, source: io::Error },
}

/// Makes a terminal, gives it to the engine, and makes it this process's standard streams and
/// controlling terminal. The process must be the head of its session.
pub(crate) fn enter(socket: &Path, size: Option<Winsize>) -> Result<(), ConsoleError> {
    let (master, slave) = pair().map_err(ConsoleError::Make)?;
    let prepare = || {
        if let Some(size) = size {
            tcsetwinsize(&slave, size)?;
        }
        let mut raw = tcgetattr(&slave)?;
        raw.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &raw)?;
        io::Result::Ok(())
    };
    prepare().map_err(ConsoleError::Make)?;
    let name = ptsname(&master, Vec::new()).map_err(|error| ConsoleError::Make(error.into()))?;
    send(socket, name.as_bytes(), &master).map_err(|source| ConsoleError::Send {
        path: socket.into(),
        source,
    })?;
    let attach = || {
        dup2_stdin(&slave)?;
        dup2_stdout(&slave)?;
        dup2_stderr(&slave)?;
        ioctl_tiocsctty(&slave)
    };
    attach().map_err(|error| ConsoleError::Make(error.into()))
}

/// A size in the terms of the kernel.
pub(crate) fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = open(name.as_c_str(), flags, Mode::empty())?;
    Ok((master, slave))
}

fn send(socket: &Path, name: &[u8], master: &OwnedFd) -> io::Result<()> {
    // A path may be longer than the address of a socket can be.
    let short;
    let directory;
    let address = match (socket.parent(), socket.file_name()) {
        (Some(parent), Some(file)) if socket.as_os_str().as_bytes().len() > 100 => {
            directory = File::open(parent)?;
            let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
            short = Path::new("/proc/self/fd")
                .join(number.to_string())
                .join(file);
            short.as_path()
        }
        _ => socket,
    };
    let stream = UnixStream::connect(address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        &stream,
        &[IoSlice::new(name)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
