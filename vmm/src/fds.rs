//! Descriptors by their number: what this process was given by whoever started it.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// A duplicate of the descriptor with this number; no program that this process executes gets
/// either.
///
/// # Errors
///
/// No descriptor has this number, or there are too many.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number, and touches no memory with this command.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it, for us.
    let duplicate = unsafe { OwnedFd::from_raw_fd(duplicate) };
    // SAFETY: as above; whoever has the descriptor keeps it.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(duplicate)
}

/// From this number on no descriptor is passed on to programs that this process executes, unless
/// that is asked for again.
///
/// # Errors
///
/// The kernel has no `close_range(2)` (it came with Linux 5.11).
pub fn close_at_exec(first: u32) -> io::Result<()> {
    // SAFETY: with this flag nothing is closed, and the call touches no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        os::fd::AsRawFd,
        process::Command,
    };

    use super::*;

    #[test]
    fn an_inherited_descriptor_is_the_same_file() {
        let mut file = tempfile::tempfile().unwrap();
        let mut duplicate = File::from(inherited(file.as_raw_fd()).unwrap());
        duplicate.write_all(b"x").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(inherited(1 << 20).is_err());
    }

    #[test]
    fn programs_get_nothing_that_was_left_open() {
        let file = tempfile::tempfile().unwrap();
        let number = file.as_raw_fd();
        // SAFETY: the descriptor is ours.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
        close_at_exec(3).unwrap();
        let path = format!("/proc/self/fd/{number}");
        let listed = Command::new("ls").arg(path).output().unwrap();
        assert!(!listed.status.success());
    }
}
