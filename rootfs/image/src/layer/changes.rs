//! What a writable layer changes in the layers below: what docker's `diff` shows, and what a new
//! layer has to hold.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat};
use rustix::io::Errno;

use super::error::{DiffError, shown};
use super::node::{Node, changed};
use super::stack::{Merged, Stack, is_opaque};
use crate::Limits;
use crate::tree::is_whiteout;

/// Linux's `PATH_MAX`, with the byte that ends a path.
const PATH_MAX: usize = 4096;

/// How a path differs from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The image does not have it.
    Added,
    /// It is another file, or something in the directory is another.
    Modified,
    /// Only the image has it.
    Deleted,
}

/// One path that differs from the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Absolute, in the container. Not always UTF-8.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
}

/// The changes of a writable layer, sorted by path: a directory comes before what is in it.
#[derive(Debug, Default)]
pub struct Changes {
    pub(super) items: Vec<Item>,
}

/// A name in the writable layer, or one that it hides.
#[derive(Debug)]
pub(super) struct Item {
    /// Relative to the root.
    pub(super) path: Vec<u8>,
    /// None for what is as it was.
    pub(super) kind: Option<ChangeKind>,
    /// A directory that shows nothing of the one below.
    pub(super) opaque: bool,
    /// Lies in such a directory: whatever there is of it is in the writable layer, and what is not
    /// needs no whiteout.
    pub(super) apart: bool,
}

impl Changes {
    /// What differs, for people.
    pub fn list(&self) -> Vec<Change> {
        let change = |item: &Item| {
            Some(Change {
                path: [b"/", item.path.as_slice()].concat(),
                kind: item.kind?,
            })
        };
        self.items.iter().filter_map(change).collect()
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.items.iter().all(|item| item.kind.is_none())
    }
}

/// Finds what the overlayfs upper directory `upper` changes in the layers `lower`, topmost first.
///
/// The absolute paths `ignored`, and what is below them, do not count: what a runtime puts there is
/// no part of the container's work. A file that was only copied up is no change, nor is
/// the time of a directory in which only ignored names came or went.
pub fn changes(
    upper: &Path,
    lower: &[PathBuf],
    ignored: &[&str],
    limits: &Limits,
) -> Result<Changes, DiffError> {
    let mut walk = Walk {
        upper: Stack::open(&[upper.to_owned()])?,
        lower: Stack::open(lower)?,
        ignored: ignored
            .iter()
            .map(|path| path.trim_matches('/').as_bytes().to_vec())
            .collect(),
        limits,
        items: Vec::new(),
        pending: Vec::new(),
    };
    walk.pending.push(Directory {
        path: Vec::new(),
        lower: walk.lower.all(),
        apart: false,
        later: None,
    });
    while let Some(directory) = walk.pending.pop() {
        walk.directory(&directory)?;
    }
    let mut items = walk.items;
    items.sort_by(|a, b| a.path.cmp(&b.path));
    mark_parents(&mut items);
    items.retain(|item| item.kind.is_some() || item.apart);
    Ok(Changes { items })
}

struct Walk<'a> {
    upper: Stack,
    lower: Stack,
    ignored: BTreeSet<Vec<u8>>,
    limits: &'a Limits,
    items: Vec<Item>,
    pending: Vec<Directory>,
}

/// A directory of the writable layer that is still to be looked at.
struct Directory {
    path: Vec<u8>,
    /// The layers below that have a part in it, or had before it was replaced.
    lower: Vec<usize>,
    /// See [`Item::apart`].
    apart: bool,
    /// Its item, if it differs in nothing but its time.
    later: Option<usize>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Directory) -> Result<(), DiffError> {
        let path = directory.path.as_slice();
        let upper = self.upper.directory(path, &[0])?;
        let lower = self.lower.directory(path, &directory.lower)?;
        let names = upper.names().map_err(DiffError::read("list", path))?;
        for name in &names {
            let path = join(path, name);
            if path.len() >= PATH_MAX {
                return Err(DiffError::Name {
                    entry: shown(&path),
                });
            }
            if self.ignored.contains(&path) {
                if let Some(item) = directory.later {
                    self.items[item].kind = None;
                }
                continue;
            }
            self.name(directory, &upper, &lower, name, path)?;
        }
        if directory.apart {
            self.hidden(path, &lower, &names)?;
        }
        Ok(())
    }

    /// A name in the writable layer.
    fn name(
        &mut self,
        directory: &Directory,
        upper: &Merged,
        lower: &Merged,
        name: &CString,
        path: Vec<u8>,
    ) -> Result<(), DiffError> {
        let parent = upper.part(0);
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(changed(&path)),
            other => other.map_err(DiffError::read("look at", &path))?,
        };
        let before = lower
            .lookup(name)
            .map_err(DiffError::read("look below at", &path))?;
        let apart = directory.apart;
        if is_whiteout(&stat) {
            return match before {
                Some(_) => self.push(path, Some(ChangeKind::Deleted), false, apart),
                None => Ok(()),
            };
        }
        let node = Node::read(parent, name, stat, &path)?;
        let below = match &before {
            Some(found) => {
                let parent = lower.part(found.layer);
                Some((found, Node::read(parent, name, found.stat, &path)?))
            }
            None => None,
        };
        if node.kind != FileType::Directory {
            let kind = match &below {
                None => Some(ChangeKind::Added),
                Some((_, below)) => (!node.equals(below, &path)?).then_some(ChangeKind::Modified),
            };
            return self.push(path, kind, false, apart);
        }
        let was_directory = before.as_ref().is_some_and(|found| !found.parts.is_empty());
        let opened = node.file.as_ref().expect("directories are opened");
        let opaque = was_directory
            && is_opaque(opened.as_fd()).map_err(DiffError::read("look at", &path))?;
        let (kind, only_time) = match &below {
            None => (Some(ChangeKind::Added), false),
            Some((_, below)) if !opaque && node.has_attributes_of(below) => {
                let differs = !node.has_time_of(below);
                (differs.then_some(ChangeKind::Modified), differs)
            }
            Some(_) => (Some(ChangeKind::Modified), false),
        };
        self.pending.push(Directory {
            path: path.clone(),
            lower: below.map_or(Vec::new(), |(found, _)| found.parts.clone()),
            // In a directory that is opaque below an opaque one nothing is different.
            apart: apart || opaque,
            later: only_time.then_some(self.items.len()),
        });
        self.push(path, kind, opaque && !apart, apart)
    }

    /// What a directory that shows nothing of those below hides.
    fn hidden(
        &mut self,
        path: &[u8],
        lower: &Merged,
        names: &BTreeSet<CString>,
    ) -> Result<(), DiffError> {
        let below = lower.names().map_err(DiffError::read("list below", path))?;
        for name in below.difference(names) {
            let path = join(path, name);
            let found = lower
                .lookup(name)
                .map_err(DiffError::read("look below at", &path))?;
            if found.is_some() && !self.ignored.contains(&path) {
                self.push(path, Some(ChangeKind::Deleted), false, true)?;
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        path: Vec<u8>,
        kind: Option<ChangeKind>,
        opaque: bool,
        apart: bool,
    ) -> Result<(), DiffError> {
        if self.items.len() as u64 >= self.limits.entries {
            return Err(DiffError::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        self.items.push(Item {
            path,
            kind,
            opaque,
            apart,
        });
        Ok(())
    }
}

/// A directory in which something differs differs itself.
fn mark_parents(items: &mut [Item]) {
    let same: HashMap<Vec<u8>, usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| item.kind.is_none())
        .map(|(number, item)| (item.path.clone(), number))
        .collect();
    for number in 0..items.len() {
        if items[number].kind.is_none() {
            continue;
        }
        let path = items[number].path.clone();
        let slashes = path.iter().enumerate().rev();
        for (end, _) in slashes.filter(|(_, byte)| **byte == b'/') {
            match same.get(&path[..end]) {
                Some(parent) if items[*parent].kind.is_none() => {
                    items[*parent].kind = Some(ChangeKind::Modified);
                }
                // Those above it were marked with it, or are about to be.
                _ => {}
            }
        }
    }
}

pub(super) fn join(directory: &[u8], name: &CStr) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
    path
}
