//! Puts what an archive holds in its place.

use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;

use archive::{Archive, ArchiveError, Entry, EntryPath, Kind, Stream};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::anchor::Anchor;
use crate::make::{New, times};
use crate::place::{BENEATH, IN_ROOT, Place, Spot, is_directory};
use crate::{CopyError, join, shown};

/// Bytes that are read at once.
const BUFFER: usize = 128 << 10;
/// Longest PAX header or long name, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Where an archive goes, and what becomes of it there.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The path in the root.
    pub path: &'a [u8],
    /// What the archive is.
    pub what: What<'a>,
    /// Whose the files are to be.
    pub owner: Owner,
    /// What files may be.
    pub rights: Rights,
}

/// Two kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What<'a> {
    /// One file or directory, as [`pack()`](crate::pack()) writes it: it goes into the directory that is
    /// at the path, or else gets that name. Nothing of it is behind a symbolic link.
    Copy {
        /// The name that it must have in the archive, as [`Source::name`](crate::Source::name) says.
        /// Another would let the archive decide where in the directory it goes.
        name: &'a [u8],
    },
    /// Anything. It goes into the directory that is at the path; links on the way to an entry are
    /// followed in the root.
    Archive,
}

/// Whose files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Those whom the archive names.
    Kept,
    /// These in any case.
    Always {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// What files may be that can do harm where others are trusted than those who made the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Devices. Without this they are left out.
    pub devices: bool,
    /// Programs that run as their owner. Without this they do not.
    pub set_id: bool,
}

/// Unpacks `input` in `root`. Modes of pipes and devices are cut by the caller's umask.
///
/// `notes` are told what is left out.
///
/// # Errors
///
/// There is no place for it, the archive is not proper or asks for what cannot be, or the system
/// failed. What was unpacked by then stays.
pub fn unpack(
    root: BorrowedFd<'_>,
    to: &Destination<'_>,
    input: &mut dyn Read,
    notes: &mut dyn FnMut(String),
) -> Result<(), CopyError> {
    let input = BufReader::with_capacity(BUFFER, input);
    let mut archive = Archive::new(Stream(input), MAX_EXTENSION);
    let (anchor, renamed, first) = match to.what {
        What::Archive => {
            let anchor = anywhere(root, to.path)?;
            (anchor, Renamed::default(), archive.next_entry()?)
        }
        What::Copy { name } => {
            // A place that is none is told before anything is read.
            let spot = Spot::find(root, &Place::new(to.path).path, true)
                .map_err(CopyError::unresolved(to.path))?;
            let first = archive.next_entry()?.ok_or(CopyError::Empty)?;
            let (anchor, renamed) = one(&spot, to.path, &first, name)?;
            (anchor, renamed, Some(first))
        }
    };
    let mut unpacker = Unpacker {
        archive,
        anchor,
        renamed,
        to,
        notes,
    };
    unpacker.run(first)?;
    if to.what == What::Archive {
        // Who writes it may want to write what is behind its end, too.
        let mut rest = unpacker.archive.into_input();
        io::copy(&mut rest, &mut io::sink()).map_err(|source| ArchiveError::Read {
            position: 0,
            source,
        })?;
    }
    Ok(())
}

/// The place of any archive: a directory.
fn anywhere(root: BorrowedFd<'_>, path: &[u8]) -> Result<Anchor, CopyError> {
    let unresolved = || CopyError::unresolved(path);
    let spot = Spot::find(root, &Place::new(path).path, true).map_err(unresolved())?;
    spot.open_directory().map_err(unresolved())?;
    let name = spot.name.as_ref().map_or(&b""[..], |name| name.to_bytes());
    let root = root.try_clone_to_owned();
    let root = root.map_err(CopyError::system("open", b"/"))?;
    Ok(Anchor::new(root, join(&spot.path, name), IN_ROOT))
}

/// The place of one file or directory that begins with the entry `first`, and its name there.
fn one(
    spot: &Spot,
    raw: &[u8],
    first: &Entry,
    name: &[u8],
) -> Result<(Anchor, Renamed), CopyError> {
    let place = Place::new(raw);
    let unresolved = || CopyError::unresolved(raw);
    let path = EntryPath::new(&first.path).map_err(CopyError::unnameable(&first.path))?;
    if path.bytes() != name {
        return Err(CopyError::refused(
            &first.path,
            "it is not what was asked for",
        ));
    }
    let is_tree = first.kind == Kind::Directory;
    let there = spot.stat().map_err(unresolved())?;
    let (directory, new) = match (there, &spot.name) {
        (Some(stat), _) if is_directory(&stat) => {
            (spot.open_directory().map_err(unresolved())?, path.bytes())
        }
        (Some(_), _) if is_tree => {
            let raw = String::from_utf8_lossy(raw).into_owned();
            return Err(CopyError::DirectoryOverFile(raw));
        }
        (Some(stat), _) if !is_file(&stat) => {
            let raw = String::from_utf8_lossy(raw).into_owned();
            return Err(CopyError::NotFile(raw));
        }
        (Some(_), _) if place.is_directory => return Err(unresolved()(Errno::NOTDIR)),
        (None, _) if place.is_directory && !is_tree => return Err(unresolved()(Errno::NOENT)),
        (_, Some(name)) => {
            let parent = spot.directory.try_clone();
            let parent = parent.map_err(CopyError::system("open", raw))?;
            (parent, name.to_bytes())
        }
        (_, None) => return Err(unresolved()(Errno::NOENT)),
    };
    let renamed = Renamed {
        from: path.bytes().to_vec(),
        to: new.to_vec(),
    };
    Ok((Anchor::new(directory, Vec::new(), BENEATH), renamed))
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn outside(path: &[u8]) -> CopyError {
    CopyError::refused(path, "it lies outside of what is copied")
}

/// What the beginning of every path in an archive becomes; empty for nothing.
#[derive(Debug, Default)]
struct Renamed {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Renamed {
    fn path(&self, raw: &[u8]) -> Result<EntryPath, CopyError> {
        let path = EntryPath::new(raw).map_err(CopyError::unnameable(raw))?;
        let below = match path.bytes().strip_prefix(self.from.as_slice()) {
            Some(below) if self.from.is_empty() => below,
            Some([]) => b"",
            Some([b'/', below @ ..]) => below,
            _ => return Err(outside(raw)),
        };
        EntryPath::new(&join(&self.to, below)).map_err(CopyError::unnameable(raw))
    }
}

/// An archive on its way in.
pub(crate) type Incoming<'a> = Archive<Stream<BufReader<&'a mut dyn Read>>>;

struct Unpacker<'a, 'i> {
    archive: Incoming<'i>,
    anchor: Anchor,
    renamed: Renamed,
    to: &'a Destination<'a>,
    notes: &'a mut dyn FnMut(String),
}

impl Unpacker<'_, '_> {
    fn run(&mut self, first: Option<Entry>) -> Result<(), CopyError> {
        let mut next = first;
        while let Some(entry) = next {
            self.entry(&entry)?;
            next = self.archive.next_entry()?;
        }
        self.anchor.finish()
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), CopyError> {
        let path = self.renamed.path(&entry.path)?;
        self.anchor.leave_for(path.bytes())?;
        let Some((parent, name)) = path.split() else {
            // The directory that was there before stays what it is.
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(CopyError::refused(&entry.path, "it is no directory")),
            };
        };
        let parent = self.anchor.directory(parent)?;
        let new = New {
            entry,
            parent: &parent,
            name: &name,
            owner: self.to.owner,
            rights: self.to.rights,
        };
        match entry.kind {
            Kind::Directory => {
                new.directory()?;
                self.anchor.set_times_later(path.bytes(), times(entry));
            }
            Kind::Regular => new.regular(&mut self.archive, &mut self.anchor)?,
            Kind::HardLink => {
                let target = self.renamed.path(&entry.link)?;
                let reason = "it links to a name that cannot be";
                let refused = || CopyError::refused(&entry.path, reason);
                let (directory, base) = target.split().ok_or_else(refused)?;
                if target == path {
                    return Err(refused());
                }
                let directory = self.anchor.directory(directory)?;
                new.hard_link((&directory, &base), &mut self.anchor)?;
            }
            Kind::Symlink => new.symlink(&mut self.anchor)?,
            Kind::Fifo | Kind::CharacterDevice | Kind::BlockDevice => {
                if !new.node(&mut self.anchor)? {
                    (self.notes)(format!("device {} left out", shown(&entry.path)));
                }
            }
            Kind::Unknown(flag) => {
                let path = shown(&entry.path);
                (self.notes)(format!("{path} of unknown kind {flag:#x} left out"));
            }
        }
        Ok(())
    }
}
