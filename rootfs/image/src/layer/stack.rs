//! Layers as overlayfs shows them, without mounting them: which directories make one directory, and
//! what a name in it stands for.
//!
//! Containers write these trees: nothing is opened through a link, and nothing is kept open but
//! the layers and the one directory that is looked at.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, statat};
use rustix::io::Errno;

use super::error::DiffError;
use crate::tree::{OPAQUE, is_whiteout, open_beneath};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Layers, topmost first.
pub(super) struct Stack {
    roots: Vec<OwnedFd>,
}

/// A directory of a stack: that of each layer which has a part in it, topmost first.
pub(super) struct Merged {
    parts: Vec<(usize, OwnedFd)>,
}

/// What a name stands for.
pub(super) struct Found {
    /// The layer in which it is.
    pub(super) layer: usize,
    pub(super) stat: Stat,
    /// The layers that have a part in it, if it is a directory.
    pub(super) parts: Vec<usize>,
}

impl Stack {
    pub(super) fn open(layers: &[PathBuf]) -> Result<Self, DiffError> {
        let open = |path: &PathBuf| {
            rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|err| DiffError::Open {
                path: path.clone(),
                source: err.into(),
            })
        };
        let roots = layers.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { roots })
    }

    /// The layers that have a part in the root directory.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.roots.len()).collect()
    }

    pub(super) fn root(&self, layer: usize) -> BorrowedFd<'_> {
        self.roots[layer].as_fd()
    }

    /// Opens the directory `path`, in which `parts` have a part.
    pub(super) fn directory(&self, path: &[u8], parts: &[usize]) -> Result<Merged, DiffError> {
        let open = |&layer: &usize| Ok((layer, open_beneath(self.root(layer), path)?));
        let parts = parts.iter().map(open).collect::<Result<_, Errno>>();
        Ok(Merged {
            parts: parts.map_err(DiffError::read("open the directory", path))?,
        })
    }
}

impl Merged {
    /// The directory of `layer`, which has a part in this one.
    pub(super) fn part(&self, layer: usize) -> BorrowedFd<'_> {
        let part = self.parts.iter().find(|(number, _)| *number == layer);
        part.expect("only layers with a part are asked for")
            .1
            .as_fd()
    }

    /// All names in it, also those that are hidden.
    pub(super) fn names(&self) -> Result<BTreeSet<CString>, Errno> {
        let mut names = BTreeSet::new();
        for (_, directory) in &self.parts {
            names.append(&mut list(directory.as_fd())?);
        }
        Ok(names)
    }

    /// What `name` stands for, if it is not hidden.
    pub(super) fn lookup(&self, name: &CStr) -> Result<Option<Found>, Errno> {
        self.lookup_among(name, |_| true)
    }

    /// What `name` would stand for without the layer `left_out`.
    pub(super) fn lookup_without(
        &self,
        left_out: usize,
        name: &CStr,
    ) -> Result<Option<Found>, Errno> {
        self.lookup_among(name, |layer| layer != left_out)
    }

    fn lookup_among(
        &self,
        name: &CStr,
        counts: impl Fn(usize) -> bool,
    ) -> Result<Option<Found>, Errno> {
        let mut found: Option<Found> = None;
        for (layer, directory) in self.parts.iter().filter(|(layer, _)| counts(*layer)) {
            let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_whiteout(&stat) || (found.is_some() && !is_directory) {
                break;
            }
            let found = found.get_or_insert(Found {
                layer: *layer,
                stat,
                parts: Vec::new(),
            });
            if !is_directory {
                break;
            }
            found.parts.push(*layer);
            if is_opaque(openat(directory, name, DIRECTORY, Mode::empty())?.as_fd())? {
                break;
            }
        }
        Ok(found)
    }
}

/// The names in one directory.
pub(super) fn list(directory: BorrowedFd<'_>) -> Result<BTreeSet<CString>, Errno> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether a directory shows nothing of the layers below.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(err) => Err(err),
    }
}
