//! Makes what one entry of an archive stands for.
//!
//! Others may rename and remove in the same directory meanwhile, with rights that are none of ours:
//! attributes are given to the file that was made, not to whatever has its name.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use archive::{Entry, Kind, Segment};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use crate::anchor::Anchor;
use crate::place::{DIRECTORY, is_directory};
use crate::unpack::Incoming;
use crate::{CopyError, Owner, Rights};

/// Longest target of a symbolic link.
const MAX_TARGET: usize = 4095;

/// An entry on its way to a name.
pub(crate) struct New<'a> {
    pub(crate) entry: &'a Entry,
    pub(crate) parent: &'a OwnedFd,
    pub(crate) name: &'a CStr,
    pub(crate) owner: Owner,
    pub(crate) rights: Rights,
}

impl New<'_> {
    /// Makes a directory, or takes the one that is there.
    pub(crate) fn directory(&self) -> Result<(), CopyError> {
        match mkdirat(self.parent, self.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW);
                if !is_directory(&there.map_err(self.failed("look at"))?) {
                    return Err(self.refused("it would replace what is no directory"));
                }
            }
            Err(error) => return Err(self.failed("make")(error)),
        }
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let directory = openat(self.parent, self.name, flags, Mode::empty());
        self.settle(&directory.map_err(self.failed("open"))?)
    }

    /// Makes a file with the data that come next.
    pub(crate) fn regular(
        &self,
        archive: &mut Incoming<'_>,
        anchor: &mut Anchor,
    ) -> Result<(), CopyError> {
        let file = self.replace(anchor, "create", || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let mode = Mode::RUSR | Mode::WUSR;
            openat(self.parent, self.name, flags | OFlags::CLOEXEC, mode)
        })?;
        self.write(archive, &file)?;
        self.settle(&file)?;
        futimens(&file, &times(self.entry)).map_err(self.failed("set the time of"))
    }

    fn write(&self, archive: &mut Incoming<'_>, file: &OwnedFd) -> Result<(), CopyError> {
        let whole = [Segment {
            offset: 0,
            length: self.entry.size,
        }];
        let segments = match &self.entry.segments {
            Some(segments) => {
                ftruncate(file, self.entry.size).map_err(self.failed("set the size of"))?;
                segments.as_slice()
            }
            None => &whole,
        };
        for segment in segments {
            let mut at = segment.offset;
            let end = at.saturating_add(segment.length);
            while at < end {
                let data = archive
                    .data()
                    .map_err(|source| archive::ArchiveError::Read {
                        position: self.entry.offset,
                        source,
                    })?;
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
                let piece = &data[..data.len().min(wanted)];
                let length = match pwrite(file, piece, at) {
                    Err(Errno::INTR) => continue,
                    written => written.map_err(self.failed("write"))?,
                };
                archive.consume(length);
                at += length as u64;
            }
        }
        Ok(())
    }

    pub(crate) fn hard_link(
        &self,
        target: (&OwnedFd, &CStr),
        anchor: &mut Anchor,
    ) -> Result<(), CopyError> {
        let (directory, name) = target;
        let linked = self.replace(anchor, "link", || {
            linkat(directory, name, self.parent, self.name, AtFlags::empty())
        });
        match linked {
            Err(CopyError::System { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(self.refused("it links to a file that is not there"))
            }
            linked => linked,
        }
    }

    pub(crate) fn symlink(&self, anchor: &mut Anchor) -> Result<(), CopyError> {
        let target = self.entry.link.as_slice();
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(self.refused("the target of a link has 1 to 4095 bytes, none of them 0"));
        }
        self.replace(anchor, "make", || symlinkat(target, self.parent, self.name))?;
        self.settle_unopened(FileType::Symlink)
    }

    /// Makes a pipe or a device; false if devices are not to be made.
    pub(crate) fn node(&self, anchor: &mut Anchor) -> Result<bool, CopyError> {
        let kind = match self.entry.kind {
            Kind::CharacterDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = match self.entry.device {
            _ if kind == FileType::Fifo => 0,
            Some((major, minor)) if self.rights.devices => makedev(major, minor),
            _ => return Ok(false),
        };
        self.replace(anchor, "make", || {
            let mode = Mode::from_raw_mode(self.mode());
            mknodat(self.parent, self.name, kind, mode, device)
        })?;
        self.settle_unopened(kind)?;
        Ok(true)
    }

    /// Runs `create`; if something else than a directory is in the way, removes it and tries again.
    fn replace<T>(
        &self,
        anchor: &mut Anchor,
        action: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, CopyError> {
        match create() {
            Err(Errno::EXIST) => {
                anchor.forget();
                match unlinkat(self.parent, self.name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR) => {
                        return Err(self.refused("it would replace a directory"));
                    }
                    Err(error) => return Err(self.failed("replace")(error)),
                }
                create().map_err(self.failed(action))
            }
            created => created.map_err(self.failed(action)),
        }
    }

    /// Owner and mode, in this order: the kernel takes bits from the mode with the owner.
    fn settle(&self, file: &OwnedFd) -> Result<(), CopyError> {
        let stat = fstat(file).map_err(self.failed("look at"))?;
        let (uid, gid) = self.owner()?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchown(file, Some(uid), Some(gid)).map_err(self.failed("set the owner of"))?;
        }
        fchmod(file, Mode::from_raw_mode(self.mode())).map_err(self.failed("set the mode of"))
    }

    /// Owner and time of what cannot be opened.
    fn settle_unopened(&self, kind: FileType) -> Result<(), CopyError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.parent, self.name, flags, Mode::empty());
        let file = file.map_err(self.failed("open"))?;
        let stat = fstat(&file).map_err(self.failed("look at"))?;
        if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_nlink != 1 {
            return Err(self.refused("somebody else has replaced it"));
        }
        let (uid, gid) = self.owner()?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(file.as_fd(), c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
                .map_err(self.failed("set the owner of"))?;
        }
        utimensat(file, c"", &times(self.entry), AtFlags::EMPTY_PATH)
            .map_err(self.failed("set the time of"))
    }

    fn owner(&self) -> Result<(u32, u32), CopyError> {
        // -1 means "leave as it is" to chown.
        let id = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.refused("its owner is not a user or group id"))
        };
        match self.owner {
            Owner::Kept => Ok((id(self.entry.uid)?, id(self.entry.gid)?)),
            Owner::Always { uid, gid } => Ok((uid, gid)),
        }
    }

    fn mode(&self) -> u32 {
        let taken = if self.rights.set_id { 0 } else { 0o6000 };
        self.entry.mode & !taken
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(Errno) -> CopyError {
        CopyError::system(action, &self.entry.path)
    }

    fn refused(&self, reason: &'static str) -> CopyError {
        CopyError::refused(&self.entry.path, reason)
    }
}

pub(crate) fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.seconds,
        tv_nsec: entry.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
