//! Unpacks a layer's tar to a directory that overlayfs can use as a lower one.
//!
//! What is special to layers stands here: whiteouts, opaque directories, and what of an archive
//! may become part of a root file system. How names stay inside is `tree`'s business, how
//! bytes become entries `archive`'s.
//!
//! The way back is here as well: [`changes`] finds what a container's writable layer changes, and
//! [`write()`] makes a layer of that.

mod changes;
mod error;
mod merged;
mod node;
mod stack;
mod write;
mod xattr;

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chmodat, chownat, fchmod, ftruncate, futimens, linkat,
    mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

pub use changes::{Change, ChangeKind, Changes, changes};
pub use error::{DiffError, LayerError};
use error::{named, shown};
pub use merged::write_merged;
pub use write::write;

use crate::Limits;
use crate::progress::{Notes, Progress};
use crate::trash::Trash;
use crate::tree::{Attributes, Place, Tree, TreeError, is_whiteout, set_opaque};
use archive::EntryPath;
use archive::{Archive, Entry, Input, Kind, Segment, Stream};

/// Marks a name that the layer removes from those below (OCI image specification, "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// aufs's own bookkeeping, which old versions of docker left in layers.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Longest target of a symbolic link.
const TARGET_MAX: usize = 4095;

/// What a layer turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Bytes of its regular files.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
    /// The layer hides all layers below it. overlayfs takes no such mark on a layer's root, so
    /// whoever mounts it must leave those out.
    pub opaque: bool,
    /// Some directories are not in the archive: their owner and mode came from the layers below.
    pub depends_on_lower: bool,
}

/// Unpacks the tar archive `input` into the empty directory `root`.
///
/// `trash` is another empty directory on the same file system, for what later entries replace.
/// `lower` are the directories of the unpacked layers below, topmost first: they lend owner and mode to directories
/// that the archive implies but does not list. Needs root, and a file system with `trusted.*`
/// extended attributes. After an error, what is in `root` is of no use.
pub fn unpack(
    input: impl Read,
    root: BorrowedFd<'_>,
    lower: &[PathBuf],
    trash: OwnedFd,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Summary, LayerError> {
    unpack_buffered(
        BufReader::new(input),
        root,
        lower,
        Trash::new(trash),
        limits,
        progress,
    )
}

/// [`unpack`] for an input that has a buffer of its own.
pub(crate) fn unpack_buffered(
    input: impl BufRead,
    root: BorrowedFd<'_>,
    lower: &[PathBuf],
    trash: Trash,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Summary, LayerError> {
    fchmod(root, Mode::from_raw_mode(0o755))
        .map_err(|err| LayerError::Directory { source: err.into() })?;
    let mut unpacker = Unpacker {
        archive: Archive::new(Stream(input), limits.extension_bytes),
        tree: Tree::new(root, lower, trash),
        limits,
        notes: Notes::new(progress),
        summary: Summary::default(),
        absolute: false,
    };
    unpacker.run()?;
    Ok(unpacker.summary)
}

struct Unpacker<'a, I> {
    archive: Archive<I>,
    tree: Tree<'a>,
    limits: &'a Limits,
    notes: Notes<'a>,
    summary: Summary,
    /// An absolute name was seen.
    absolute: bool,
}

impl<I: Input> Unpacker<'_, I> {
    fn run(&mut self) -> Result<(), LayerError> {
        while let Some(entry) = self.archive.next_entry()? {
            if entry.kind == Kind::Regular {
                self.summary.bytes = self.summary.bytes.saturating_add(entry.size);
                if self.summary.bytes > self.limits.layer_bytes {
                    return Err(LayerError::TooLarge {
                        entry: shown(&entry.path),
                        limit: self.limits.layer_bytes,
                    });
                }
            }
            self.entry(&entry).map_err(|err| named(&entry.path, err))?;
            if self.tree.take_followed() {
                self.notes.add(|| {
                    let entry = shown(&entry.path);
                    format!("entry {entry} lies behind a symbolic link, followed inside the image")
                });
            }
            self.summary.entries += 1;
            let entries = self.summary.entries + self.tree.implied();
            if entries > self.limits.entries {
                return Err(LayerError::TooManyEntries {
                    entry: shown(&entry.path),
                    limit: self.limits.entries,
                });
            }
        }
        self.tree.finish().map_err(|err| named(b"/", err))?;
        self.summary.depends_on_lower = self.tree.implied() > 0;
        self.summary.entries += self.tree.implied();
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let path = EntryPath::new(&entry.path)?;
        // Said once: kaniko, for one, writes all its entries so.
        if entry.path.starts_with(b"/") && !std::mem::replace(&mut self.absolute, true) {
            self.notes.add(|| {
                let entry = shown(&entry.path);
                format!("entry {entry} is absolute: this and others are taken as inside the image")
            });
        }
        let (parent, base) = path.parent_and_base();
        if base == OPAQUE_WHITEOUT {
            return self.opaque(parent, entry);
        }
        if path
            .components()
            .any(|component| component.starts_with(AUFS_PREFIX))
        {
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT_PREFIX) {
            // `hidden` has no slash; `.` and `..` would be the directory and its parent.
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(TreeError::Refused("it is a whiteout of nothing"));
            }
            let hidden = EntryPath::new(hidden)?;
            let (_, name) = hidden.split().expect("it is not empty");
            return match self.whiteout_directory(parent, entry)? {
                Some(parent) => self.tree.whiteout(&parent, &name),
                None => Ok(()),
            };
        }
        if path
            .components()
            .any(|component| component.starts_with(WHITEOUT_PREFIX))
        {
            return Err(TreeError::Refused("it lies in a whiteout"));
        }
        self.node(entry, &path)
    }

    fn opaque(&mut self, parent: &[u8], entry: &Entry) -> Result<(), TreeError> {
        if parent.is_empty() {
            self.summary.opaque = true;
            return Ok(());
        }
        match self.whiteout_directory(parent, entry)? {
            Some(directory) => set_opaque(&directory),
            None => Ok(()),
        }
    }

    /// Where a whiteout belongs; nothing if it hides nothing.
    fn whiteout_directory(
        &mut self,
        path: &[u8],
        entry: &Entry,
    ) -> Result<Option<Rc<OwnedFd>>, TreeError> {
        Ok(match self.tree.whiteout_directory(path, entry.mtime)? {
            Place::Directory(directory) => Some(directory),
            Place::NoDirectory => None,
            Place::BehindLink => {
                self.notes.add(|| {
                    format!(
                        "whiteout {} left out: it lies behind a symbolic link",
                        shown(&entry.path)
                    )
                });
                None
            }
        })
    }

    fn node(&mut self, entry: &Entry, path: &EntryPath) -> Result<(), TreeError> {
        let attributes = attributes(entry)?;
        if entry.kind == Kind::Directory {
            let directory = self.tree.make_directory(path, &attributes)?;
            attributes.apply(&directory)?;
            return self.xattrs(entry, directory.as_fd());
        }
        let Some((parent, name)) = path.split() else {
            return Err(TreeError::Refused(
                "the root of an image can only be a directory",
            ));
        };
        match entry.kind {
            Kind::CharacterDevice | Kind::BlockDevice => {
                self.notes
                    .add(|| format!("device node {} left out", shown(&entry.path)));
                return Ok(());
            }
            Kind::Unknown(flag) => {
                self.notes.add(|| {
                    format!(
                        "entry {} of unknown kind {flag:#x} left out",
                        shown(&entry.path)
                    )
                });
                return Ok(());
            }
            _ => {}
        }
        let parent = self.tree.directory(parent, entry.mtime)?;
        match entry.kind {
            Kind::Regular => {
                let file = self.tree.replace(&parent, &name, "create", || {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                    openat(
                        &parent,
                        &name,
                        flags | OFlags::CLOEXEC,
                        Mode::RUSR | Mode::WUSR,
                    )
                })?;
                self.write(entry, &file)?;
                attributes.apply(&file)?;
                self.xattrs(entry, file.as_fd())?;
                futimens(&file, &attributes.times()).map_err(TreeError::system("set the time of"))
            }
            Kind::HardLink => self.hard_link(entry, path, &parent, &name),
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > TARGET_MAX {
                    return Err(TreeError::Refused(
                        "the target of a link has 1 to 4095 bytes",
                    ));
                }
                if entry.link.contains(&0) {
                    return Err(TreeError::Refused("the target of the link has a NUL"));
                }
                self.tree.replace(&parent, &name, "create", || {
                    symlinkat(entry.link.as_slice(), &parent, &name)
                })?;
                self.nameable(&parent, &name, &attributes, entry)
            }
            _ => {
                self.tree.replace(&parent, &name, "create", || {
                    mknodat(&parent, &name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                })?;
                // Cannot follow a link: the name was just made, and nobody else works here.
                chmodat(
                    &parent,
                    &name,
                    Mode::from_raw_mode(attributes.mode),
                    AtFlags::empty(),
                )
                .map_err(TreeError::system("set the mode of"))?;
                self.nameable(&parent, &name, &attributes, entry)
            }
        }
    }

    /// Owner and time of what cannot be opened.
    fn nameable(
        &mut self,
        parent: &OwnedFd,
        name: &std::ffi::CStr,
        attributes: &Attributes,
        entry: &Entry,
    ) -> Result<(), TreeError> {
        let (uid, gid) = attributes.owner();
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(TreeError::system("set the owner of"))?;
        if entry.kind == Kind::Fifo {
            // `chown` took set-id bits away.
            chmodat(
                parent,
                name,
                Mode::from_raw_mode(attributes.mode),
                AtFlags::empty(),
            )
            .map_err(TreeError::system("set the mode of"))?;
        }
        if !entry.xattrs.is_empty() {
            self.notes.add(|| {
                format!(
                    "extended attributes of {} left out: it is no file",
                    shown(&entry.path)
                )
            });
        }
        utimensat(parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(TreeError::system("set the time of"))
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        parent: &OwnedFd,
        name: &std::ffi::CStr,
    ) -> Result<(), TreeError> {
        const MISSING: &str = "it links to a file that the layer does not have";
        let target = EntryPath::new(&entry.link)
            .map_err(|_| TreeError::Refused("it links to a name that cannot be"))?;
        if target == *path {
            return Err(TreeError::Refused("it links to itself"));
        }
        let Some((target_parent, target_name)) = target.split() else {
            return Err(TreeError::Refused("it links to the root directory"));
        };
        let from = match self.tree.open_directory(target_parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Err(TreeError::Refused(MISSING));
            }
            other => other.map_err(TreeError::system("open the target's directory of"))?,
        };
        let there = match statat(&from, &target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(TreeError::Refused(MISSING)),
            other => other.map_err(TreeError::system("look at the target of"))?,
        };
        if is_whiteout(&there) {
            return Err(TreeError::Refused(MISSING));
        }
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Err(TreeError::Refused("it links to a directory"));
        }
        let linked = self.tree.replace(parent, name, "link", || {
            linkat(&from, &target_name, parent, name, AtFlags::empty())
        });
        match linked {
            // The target was in the directory whose place the link takes.
            Err(TreeError::System(_, err)) if err.kind() == io::ErrorKind::NotFound => {
                Err(TreeError::Refused(MISSING))
            }
            other => other,
        }
    }

    fn write(&mut self, entry: &Entry, file: &OwnedFd) -> Result<(), TreeError> {
        let whole = [Segment {
            offset: 0,
            length: entry.size,
        }];
        let segments = match &entry.segments {
            Some(segments) => {
                ftruncate(file, entry.size).map_err(TreeError::system("set the size of"))?;
                segments.as_slice()
            }
            None => &whole,
        };
        for segment in segments {
            let mut at = segment.offset;
            let end = at + segment.length;
            while at < end {
                let data = self
                    .archive
                    .data()
                    .map_err(|err| TreeError::System("read", err))?;
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
                let piece = &data[..data.len().min(wanted)];
                let n = match pwrite(file, piece, at) {
                    Err(Errno::INTR) => continue,
                    other => other.map_err(TreeError::system("write"))?,
                };
                self.archive.consume(n);
                at += n as u64;
            }
        }
        Ok(())
    }

    fn xattrs(&mut self, entry: &Entry, file: BorrowedFd<'_>) -> Result<(), TreeError> {
        for (name, value) in &entry.xattrs {
            if let xattr::Outcome::LeftOut(why) = xattr::set(file, name, value)? {
                self.notes.add(|| {
                    format!(
                        "extended attribute {} of {} left out: {why}",
                        shown(name),
                        shown(&entry.path)
                    )
                });
            }
        }
        Ok(())
    }
}

fn attributes(entry: &Entry) -> Result<Attributes, TreeError> {
    // -1 means "leave as it is" to chown.
    let id = |id: u64| {
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or(TreeError::Refused("its owner is not a user or group id"))
    };
    Ok(Attributes {
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mode: entry.mode,
        mtime: entry.mtime,
    })
}

#[cfg(test)]
mod tests;
