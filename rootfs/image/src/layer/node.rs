//! One file of a layer: what a tar archive says of it, and whether two are the same.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::error::{DiffError, shown};
use crate::tree::Attributes;

/// Linux's `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const XATTR_MAX: usize = 64 << 10;
/// Bytes of the names of a few.
const FEW: usize = 512;
const BUFFER: usize = 128 << 10;
/// How overlayfs writes down where the contents are instead of them.
const REFERENCES: [(&[u8], &str); 2] = [
    (b"trusted.overlay.redirect", "redirect_dir"),
    (b"trusted.overlay.metacopy", "metacopy"),
];

/// Names and values of extended attributes.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A file, looked at once.
pub(super) struct Node {
    pub(super) stat: Stat,
    pub(super) kind: FileType,
    /// Target of a symbolic link.
    pub(super) link: Vec<u8>,
    /// Sorted; without those that steer overlayfs or the host.
    pub(super) xattrs: Xattrs,
    /// A regular file or a directory, open.
    pub(super) file: Option<OwnedFd>,
}

impl Node {
    /// Reads what `name` in `parent` is; `stat` has just been told of it.
    pub(super) fn read(
        parent: BorrowedFd<'_>,
        name: &CStr,
        stat: Stat,
        path: &[u8],
    ) -> Result<Self, DiffError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut node = Self {
            stat,
            kind,
            link: Vec::new(),
            xattrs: Vec::new(),
            file: None,
        };
        match kind {
            FileType::Symlink => {
                let link = readlinkat(parent, name, Vec::new());
                node.link = link
                    .map_err(DiffError::read("read the symbolic link", path))?
                    .into_bytes();
            }
            FileType::RegularFile | FileType::Directory => {
                // A container that runs may put a pipe or a link there at any time.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(parent, name, flags, Mode::empty()).map_err(|err| match err {
                    Errno::LOOP | Errno::NXIO | Errno::NOENT => changed(path),
                    err => DiffError::read("open", path)(err),
                })?;
                node.stat = fstat(&file).map_err(DiffError::read("look at", path))?;
                if FileType::from_raw_mode(node.stat.st_mode) != kind {
                    return Err(changed(path));
                }
                node.xattrs = xattrs(file.as_fd(), path)?;
                node.file = Some(file);
            }
            _ => {}
        }
        Ok(node)
    }

    /// The root directory of a layer.
    pub(super) fn root(root: BorrowedFd<'_>) -> Result<Self, DiffError> {
        Ok(Self {
            stat: fstat(root).map_err(DiffError::read("look at", b"/"))?,
            kind: FileType::Directory,
            link: Vec::new(),
            xattrs: xattrs(root, b"/")?,
            file: None,
        })
    }

    /// Whether owner, mode and extended attributes are the same.
    pub(super) fn has_attributes_of(&self, other: &Self) -> bool {
        let of = |node: &Self| {
            let Attributes { uid, gid, mode, .. } = Attributes::of(&node.stat);
            (uid, gid, mode)
        };
        self.kind == other.kind && of(self) == of(other) && self.xattrs == other.xattrs
    }

    pub(super) fn has_time_of(&self, other: &Self) -> bool {
        Attributes::of(&self.stat).mtime == Attributes::of(&other.stat).mtime
    }

    /// Whether two files are the same in everything, contents included.
    pub(super) fn equals(&self, other: &Self, path: &[u8]) -> Result<bool, DiffError> {
        let same = self.has_attributes_of(other)
            && self.has_time_of(other)
            && self.link == other.link
            && self.stat.st_rdev == other.stat.st_rdev
            && (self.kind != FileType::RegularFile || self.stat.st_size == other.stat.st_size);
        match (&self.file, &other.file) {
            (Some(a), Some(b)) if same && self.kind == FileType::RegularFile => {
                have_same_contents(a, b).map_err(DiffError::read("read", path))
            }
            _ => Ok(same),
        }
    }
}

pub(super) fn changed(path: &[u8]) -> DiffError {
    DiffError::Changed { entry: shown(path) }
}

fn have_same_contents(a: &OwnedFd, b: &OwnedFd) -> std::io::Result<bool> {
    let (mut a, mut b) = (File::from(a.try_clone()?), File::from(b.try_clone()?));
    let mut buffers = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let n = a.read(&mut buffers.0)?;
        match b.read_exact(&mut buffers.1[..n]) {
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if buffers.0[..n] != buffers.1[..n] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(b.read(&mut buffers.1)? == 0);
        }
    }
}

/// The extended attributes of a file that belong into a layer.
fn xattrs(file: BorrowedFd<'_>, path: &[u8]) -> Result<Xattrs, DiffError> {
    let failed = |err| DiffError::read("read the extended attributes of", path)(err);
    // Most files have none, or one.
    let mut names = vec![0; FEW];
    let mut length = flistxattr(file, names.as_mut_slice());
    if matches!(length, Err(Errno::RANGE)) {
        names.resize(XATTR_MAX, 0);
        length = flistxattr(file, names.as_mut_slice());
    }
    let length = match length {
        Err(Errno::NOTSUP) => 0,
        other => other.map_err(failed)?,
    };
    names.truncate(length);
    let mut xattrs = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if let Some((_, feature)) = REFERENCES.iter().find(|(xattr, _)| *xattr == name) {
            return Err(DiffError::Form {
                entry: shown(path),
                feature,
            });
        }
        if !belongs_into_a_layer(name) {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        let key = CString::new(name).expect("it was split at the NULs");
        match fgetxattr(file, &key, value.as_mut_slice()) {
            // Taken away meanwhile.
            Err(Errno::NODATA) => continue,
            length => value.truncate(length.map_err(failed)?),
        }
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(xattrs)
}

fn belongs_into_a_layer(name: &[u8]) -> bool {
    if name.starts_with(b"trusted.overlay.") {
        return false;
    }
    // The labels of the host's security modules are the host's.
    !name.starts_with(b"security.") || name == b"security.capability"
}
