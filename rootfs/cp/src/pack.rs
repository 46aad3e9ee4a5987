//! Writes a file, or a directory with all below it, as a tar archive.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use archive::{Kind, NewEntry, Timestamp, Writer};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, major, minor, openat, readlinkat,
    statat,
};
use rustix::io::Errno;

use crate::place::{BENEATH, DIRECTORY, Place, Spot, is_directory, open};
use crate::{CopyError, join, shown};

/// Bytes that are written at once.
const BUFFER: usize = 128 << 10;

/// File systems of the kernel's that hold no files of anybody's (linux/magic.h): proc, sysfs,
/// cgroup2, devpts, mqueue.
const NOT_FILES: [u64; 5] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1, 0x1980_0202];

/// What is to be packed.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its path in the root. If it ends in `/.`, the directory's contents are meant.
    pub path: &'a [u8],
    /// If it is a link, what that leads to.
    pub follow: bool,
}

impl Source<'_> {
    /// The name of the archive's first entry; empty for a directory's contents.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        let place = Place::new(self.path);
        if place.is_contents {
            return Vec::new();
        }
        place.name().to_vec()
    }
}

/// Writes what is at a place in `root` to `out`. The archive's first entry is that itself, under its
/// name or as `./`, and every other is below it; what comes and goes meanwhile is in it or not.
///
/// `notes` are told what is left out.
///
/// # Errors
///
/// It is not there, cannot be read or written, or became shorter meanwhile.
pub fn pack(
    root: BorrowedFd<'_>,
    source: &Source<'_>,
    out: &mut dyn Write,
    notes: &mut dyn FnMut(String),
) -> Result<(), CopyError> {
    let place = Place::new(source.path);
    let unresolved = || CopyError::unresolved(source.path);
    let follow = source.follow || place.is_directory;
    let spot = Spot::find(root, &place.path, follow).map_err(unresolved())?;
    let stat = spot.stat().map_err(unresolved())?;
    let stat = stat.ok_or(Errno::NOENT).map_err(unresolved())?;
    let base = source.name();
    let mut packer = Packer {
        archive: Writer::new(BufWriter::with_capacity(BUFFER, out)),
        linked: BTreeMap::new(),
        notes,
    };
    match &spot.name {
        _ if is_directory(&stat) => {
            packer.tree(&spot.open_directory().map_err(unresolved())?, &base)?;
        }
        Some(name) if !place.is_directory => {
            packer.file(spot.directory.as_fd(), name, &stat, &base)?;
        }
        _ => return Err(unresolved()(Errno::NOTDIR)),
    }
    packer.archive.finish().map_err(CopyError::Write)?;
    Ok(())
}

struct Packer<'a> {
    archive: Writer<BufWriter<&'a mut dyn Write>>,
    /// Files with several names, by device and inode, and the first of these.
    linked: BTreeMap<(u64, u64), Vec<u8>>,
    notes: &'a mut dyn FnMut(String),
}

impl Packer<'_> {
    /// Each directory comes right before what is in it, so that who unpacks them can be done with
    /// one before the next.
    fn tree(&mut self, top: &OwnedFd, base: &[u8]) -> Result<(), CopyError> {
        let device = fstat(top)
            .map_err(CopyError::system("look at", base))?
            .st_dev;
        let mut pending = vec![Vec::new()];
        while let Some(below) = pending.pop() {
            let path = join(base, &below);
            let directory = match open(top.as_fd(), &below, DIRECTORY, BENEATH) {
                Err(error) if is_gone(error) => continue,
                opened => opened.map_err(CopyError::system("open", &path))?,
            };
            let stat = fstat(&directory).map_err(CopyError::system("look at", &path))?;
            let slashed = [
                if path.is_empty() {
                    b"."
                } else {
                    path.as_slice()
                },
                b"/",
            ]
            .concat();
            self.entry(&slashed, &stat, Kind::Directory, b"")?;
            if stat.st_dev != device && holds_no_files(&directory) {
                continue;
            }
            let list = || CopyError::system("list", &path);
            for entry in Dir::read_from(&directory).map_err(list())? {
                let entry = entry.map_err(list())?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(error) if is_gone(error) => continue,
                    stat => stat.map_err(CopyError::system("look at", name.to_bytes()))?,
                };
                if is_directory(&stat) {
                    pending.push(join(&below, name.to_bytes()));
                } else {
                    let path = join(&path, name.to_bytes());
                    self.file(directory.as_fd(), name, &stat, &path)?;
                }
            }
        }
        Ok(())
    }

    /// What is no directory.
    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        path: &[u8],
    ) -> Result<(), CopyError> {
        let origin = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&origin).filter(|_| stat.st_nlink > 1) {
            let first = first.clone();
            return self.entry(path, stat, Kind::HardLink, &first);
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.regular(parent, name, path),
            FileType::Symlink => match readlinkat(parent, name, Vec::new()) {
                Err(error) if is_gone(error) => Ok(()),
                target => {
                    let target = target.map_err(CopyError::system("read", path))?;
                    self.entry(path, stat, Kind::Symlink, target.as_bytes())
                }
            },
            FileType::Fifo => self.entry(path, stat, Kind::Fifo, b""),
            FileType::CharacterDevice => self.entry(path, stat, Kind::CharacterDevice, b""),
            FileType::BlockDevice => self.entry(path, stat, Kind::BlockDevice, b""),
            _ => {
                (self.notes)(format!("socket {} left out", shown(path)));
                Ok(())
            }
        }
    }

    fn regular(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<(), CopyError> {
        // There may be a pipe or a link by now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(parent, name, flags, Mode::empty()) {
            Err(error) if is_gone(error) => return Ok(()),
            file => file.map_err(CopyError::system("open", path))?,
        };
        let stat = fstat(&file).map_err(CopyError::system("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        self.entry(path, &stat, Kind::Regular, b"")?;
        let mut reading = Reading {
            file: file.into(),
            failure: None,
        };
        let written = self.archive.data(&mut reading, size(&stat));
        match (written, reading.failure) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(CopyError::system("read", path)(error)),
            (Err(error), None) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(CopyError::Changed(shown(path)))
            }
            (Err(error), None) => Err(CopyError::Write(error)),
        }
    }

    fn entry(
        &mut self,
        path: &[u8],
        stat: &Stat,
        kind: Kind,
        link: &[u8],
    ) -> Result<(), CopyError> {
        let entry = NewEntry {
            kind,
            path,
            link,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            size: if kind == Kind::Regular { size(stat) } else { 0 },
            device: (major(stat.st_rdev), minor(stat.st_rdev)),
            xattrs: &[],
        };
        self.archive.entry(&entry).map_err(CopyError::Write)?;
        if stat.st_nlink > 1 && !matches!(kind, Kind::Directory | Kind::HardLink) {
            self.linked
                .insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        Ok(())
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Whether it was taken away, or something else put in its place.
fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::INVAL
    )
}

fn holds_no_files(directory: &OwnedFd) -> bool {
    let kind = fstatfs(directory).map(|stat| stat.f_type.cast_unsigned());
    kind.is_ok_and(|kind| NOT_FILES.contains(&kind))
}

/// Keeps the errors of a file apart from those of the archive that it goes to.
struct Reading {
    file: File,
    failure: Option<io::Error>,
}

impl io::Read for &mut Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.failure = Some(error);
            kind.into()
        })
    }
}
