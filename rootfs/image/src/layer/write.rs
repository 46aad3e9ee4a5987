//! Makes a layer's tar archive of a container's changes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, major, minor, statat};
use rustix::io::Errno;

use super::changes::{ChangeKind, Changes, Item};
use super::error::{DiffError, shown};
use super::node::{Node, changed};
use super::stack::Stack;
use super::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX};
use crate::progress::Notes;
use crate::tree::{Attributes, open_beneath};
use crate::{Limits, Progress};
use archive::EntryPath;
use archive::{Kind, NewEntry, Timestamp, Writer};

/// Writes the layer that the changes of `upper` make to `out`, as a tar archive: with whiteouts for
/// what is gone, and `.wh..wh..opq` in directories that replace others.
///
/// The same files make the same bytes. What no layer can hold is left out with a note: sockets,
/// and names that would be whiteouts.
pub fn write(
    upper: &Path,
    changes: &Changes,
    out: impl Write,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<(), DiffError> {
    let stack = Stack::open(&[PathBuf::from(upper)])?;
    let mut entries = Entries::new(out, limits, progress);
    // The topmost layer decides what the root directory is like.
    entries.node(b"", &Node::root(stack.root(0))?, Origin::default())?;
    let mut parent = Parent::default();
    for item in &changes.items {
        let path = EntryPath::new(&item.path).map_err(|_| DiffError::Name {
            entry: shown(&item.path),
        })?;
        if path
            .components()
            .any(|name| name.starts_with(WHITEOUT_PREFIX))
        {
            entries.notes.add(|| {
                format!(
                    "{} left out: in a layer it would be a whiteout",
                    shown(&item.path)
                )
            });
            continue;
        }
        if item.kind == Some(ChangeKind::Deleted) {
            if !item.apart {
                let (directory, name) = path.parent_and_base();
                entries.whiteout(directory, &[WHITEOUT_PREFIX, name].concat())?;
            }
            continue;
        }
        let (directory, name) = path.split().expect("no change is the root itself");
        let directory = parent.open(stack.root(0), directory)?;
        let node = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Err(changed(&item.path)),
            Err(err) => Err(DiffError::read("look at", &item.path)(err)),
            Ok(stat) => Node::read(directory, &name, stat, &item.path),
        }?;
        entries.changed(item, &node)?;
    }
    entries.finish()
}

/// The directory of the last entry: most entries follow others of theirs.
#[derive(Default)]
struct Parent(Option<(Vec<u8>, OwnedFd)>);

impl Parent {
    fn open(&mut self, root: BorrowedFd<'_>, path: &[u8]) -> Result<BorrowedFd<'_>, DiffError> {
        if self.0.as_ref().is_none_or(|(current, _)| current != path) {
            let directory = open_beneath(root, path).map_err(|err| match err {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => changed(path),
                err => DiffError::read("open the directory", path)(err),
            })?;
            self.0 = Some((path.to_vec(), directory));
        }
        let (_, directory) = self.0.as_ref().expect("it was set just now");
        Ok(directory.as_fd())
    }
}

/// Where a file is: names with the same origin are hard links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    device: u64,
    inode: u64,
}

/// Files on their way into an archive.
pub(super) struct Entries<'a, W> {
    archive: Writer<W>,
    limits: &'a Limits,
    pub(super) notes: Notes<'a>,
    /// Files with several names, and the first of them.
    linked: HashMap<Origin, Vec<u8>>,
    bytes: u64,
}

impl<'a, W: Write> Entries<'a, W> {
    pub(super) fn new(out: W, limits: &'a Limits, progress: &'a dyn Progress) -> Self {
        Self {
            archive: Writer::new(out),
            limits,
            notes: Notes::new(progress),
            linked: HashMap::new(),
            bytes: 0,
        }
    }

    fn changed(&mut self, item: &Item, node: &Node) -> Result<(), DiffError> {
        self.node(&item.path, node, origin(node))?;
        if item.opaque {
            self.whiteout(&item.path, OPAQUE_WHITEOUT)?;
        }
        Ok(())
    }

    /// Writes a file under a name.
    pub(super) fn node(
        &mut self,
        path: &[u8],
        node: &Node,
        origin: Origin,
    ) -> Result<(), DiffError> {
        let attributes = Attributes::of(&node.stat);
        let mut entry = NewEntry {
            kind: Kind::Regular,
            path,
            link: &node.link,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size: 0,
            device: (0, 0),
            xattrs: &node.xattrs,
        };
        let slashed = [if path.is_empty() { b"." } else { path }, b"/"].concat();
        let first;
        match node.kind {
            FileType::Directory => {
                (entry.kind, entry.path) = (Kind::Directory, &slashed);
            }
            // Wait for the first name.
            _ if node.stat.st_nlink > 1 && self.linked.contains_key(&origin) => {
                first = self.linked[&origin].clone();
                (entry.kind, entry.link, entry.xattrs) = (Kind::HardLink, &first, &[]);
            }
            FileType::RegularFile => {
                entry.size = u64::try_from(node.stat.st_size).unwrap_or(0);
            }
            FileType::Symlink => entry.kind = Kind::Symlink,
            FileType::Fifo => entry.kind = Kind::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => {
                entry.kind = if node.kind == FileType::BlockDevice {
                    Kind::BlockDevice
                } else {
                    Kind::CharacterDevice
                };
                entry.device = (major(node.stat.st_rdev), minor(node.stat.st_rdev));
            }
            _ => {
                self.notes
                    .add(|| format!("socket {} left out", shown(path)));
                return Ok(());
            }
        }
        self.count(entry.size)?;
        self.archive.entry(&entry).map_err(DiffError::Write)?;
        if entry.kind == Kind::Regular
            && let Some(file) = &node.file
        {
            self.data(path, file, entry.size)?;
        }
        if node.stat.st_nlink > 1 && node.kind != FileType::Directory {
            self.linked.entry(origin).or_insert_with(|| path.to_vec());
        }
        Ok(())
    }

    fn data(&mut self, path: &[u8], file: &OwnedFd, size: u64) -> Result<(), DiffError> {
        let file = file.try_clone().map_err(DiffError::read("read", path))?;
        let mut reading = Reading {
            file: File::from(file),
            failure: None,
        };
        let written = self.archive.data(&mut reading, size);
        match (written, reading.failure) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(err)) => Err(DiffError::read("read", path)(err)),
            (Err(err), None) if err.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(changed(path))
            }
            (Err(err), None) => Err(DiffError::Write(err)),
        }
    }

    fn count(&mut self, size: u64) -> Result<(), DiffError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.layer_bytes {
            return Err(DiffError::TooLarge {
                limit: self.limits.layer_bytes,
            });
        }
        Ok(())
    }

    fn whiteout(&mut self, directory: &[u8], name: &[u8]) -> Result<(), DiffError> {
        let path = if directory.is_empty() {
            name.to_vec()
        } else {
            [directory, b"/", name].concat()
        };
        let entry = NewEntry {
            kind: Kind::Regular,
            path: &path,
            link: b"",
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: 0,
            device: (0, 0),
            xattrs: &[],
        };
        self.archive.entry(&entry).map_err(DiffError::Write)
    }

    pub(super) fn finish(self) -> Result<(), DiffError> {
        self.archive.finish().map_err(DiffError::Write)?;
        Ok(())
    }
}

pub(super) fn origin(node: &Node) -> Origin {
    Origin {
        device: node.stat.st_dev,
        inode: node.stat.st_ino,
    }
}

/// Keeps the errors of a file apart from those of the archive that it goes to.
struct Reading {
    file: File,
    failure: Option<std::io::Error>,
}

impl std::io::Read for &mut Reading {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buf).map_err(|err| {
            let kind = err.kind();
            self.failure = Some(err);
            kind.into()
        })
    }
}
