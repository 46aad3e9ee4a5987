//! What is in a directory, once more in another: for a tmpfs that is to begin with what it hides.
//!
//! Boundary: both sides are reached by descriptors and nothing is followed, so the copy is of the
//! one tree and lands in the other. Other file systems in it are passed over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

/// Directories in one another that are copied: more are no layout of a program's.
const MAX_DEPTH: usize = 128;

/// Copies what is in `from`, a directory, and its own owner and times.
pub(crate) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fs::fstat(from)?;
    directory(from, to, stat.st_dev, 0)?;
    fs::chownat(to, "", owner(&stat).0, owner(&stat).1, AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    device: u64,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP.into());
    }
    for entry in Dir::read_from(open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY)?)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != device {
            continue;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => {
                fs::mkdirat(to, name, mode)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let (source, copy) = (open(from, name, flags)?, open(to, name, flags)?);
                directory(source.as_fd(), copy.as_fd(), device, depth + 1)?;
            }
            FileType::RegularFile => file(from, to, name, mode)?,
            FileType::Symlink => {
                let target = fs::readlinkat(from, name, Vec::new())?;
                fs::symlinkat(target, to, name)?;
            }
            _ => fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
        finish(to, name, &stat, kind)?;
    }
    Ok(())
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::empty())?)
}

fn file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    mode: Mode,
) -> io::Result<()> {
    let mut source = std::fs::File::from(open(from, name, OFlags::RDONLY)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut copy = std::fs::File::from(fs::openat(to, name, flags, mode)?);
    io::copy(&mut source, &mut copy)?;
    Ok(())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

/// Owner, mode and times: the owner first, as a change of it takes bits from the mode.
fn finish(
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
    kind: FileType,
) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.cast_signed(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
