//! A directory tree that is written by names from a hostile archive.
//!
//! Every name is resolved by `openat2(2)` from the descriptor of the tree's root, so that neither
//! `..` nor a symbolic link can lead out of it. First without following any link
//! (`RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`); where a link is in the way, as in `bin -> usr/bin`,
//! it is followed as if the tree were the whole file system (`RESOLVE_IN_ROOT`). The last
//! component is never followed: it is created with `O_EXCL` or by calls that do not follow links.

mod attributes;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timestamps, XattrFlags, fsetxattr, fstat,
    futimens, mkdirat, mknodat, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use crate::trash::Trash;
use archive::Timestamp;

use archive::EntryPath;
pub(crate) use attributes::Attributes;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const SET_TIME: &str = "set the time of the directory of";
pub(crate) const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// What went wrong with one entry.
#[derive(Debug)]
pub(crate) enum TreeError {
    /// The archive asks for something that cannot be.
    Refused(&'static str),
    /// The system did not do it.
    System(&'static str, io::Error),
}

impl TreeError {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |err| Self::System(action, err.into())
    }
}

/// What stands where a directory was looked for.
pub(crate) enum Place<T> {
    Directory(T),
    /// A symbolic link is in the way.
    BehindLink,
    /// Something else is.
    NoDirectory,
}

/// What a directory is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To make an entry in it: links are followed, whiteouts give way.
    Make,
    /// To hide something below.
    Hide,
}

/// The directory of the last entry: most entries follow others of theirs.
struct Current {
    path: Vec<u8>,
    directory: Rc<OwnedFd>,
    /// What its times shall be when it is left.
    times: Timestamps,
    /// `path` leads through a link.
    followed: bool,
    /// Something was replaced in it, maybe a link that `path` leads through.
    stale: bool,
}

/// A tree under construction.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The layers below, topmost first. Opened when they are needed, which is seldom.
    lower: &'a [PathBuf],
    trash: Trash,
    current: Option<Current>,
    implied: u64,
    /// Whether a symbolic link was followed since the flag was last taken.
    followed: bool,
}

impl<'a> Tree<'a> {
    /// `root` is an empty directory on a file system of its own kind: nothing else is mounted
    /// there, and nobody else works in it.
    pub(crate) fn new(root: BorrowedFd<'a>, lower: &'a [PathBuf], trash: Trash) -> Self {
        Self {
            root,
            lower,
            trash,
            current: None,
            implied: 0,
            followed: false,
        }
    }

    /// Directories that no entry made but that entries lie in.
    pub(crate) fn implied(&self) -> u64 {
        self.implied
    }

    /// Whether resolving followed a link since the last call.
    pub(crate) fn take_followed(&mut self) -> bool {
        std::mem::take(&mut self.followed)
    }

    /// Opens the directory `path`, making what is missing with the attributes that the layers
    /// below give it, or else with `mtime`.
    pub(crate) fn directory(
        &mut self,
        path: &[u8],
        mtime: Timestamp,
    ) -> Result<Rc<OwnedFd>, TreeError> {
        if let Some(current) = self.current(path) {
            return Ok(current.directory.clone());
        }
        self.leave()?;
        let directory = match self.open_directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                match self.make_directories(path, mtime, Way::Make)? {
                    Place::Directory(directory) => directory,
                    Place::NoDirectory | Place::BehindLink => {
                        return Err(TreeError::Refused("something above it is no directory"));
                    }
                }
            }
            other => other.map_err(TreeError::system("open the directory of"))?,
        };
        let times = times_of(&directory)?;
        Ok(self.enter(path, directory, times))
    }

    /// Opens the directory of a whiteout. What it hides can only be below a directory of that
    /// name: if the layer has a file or a whiteout there, that hides it already, and if it has a
    /// link, then what the link leads to is something else.
    pub(crate) fn whiteout_directory(
        &mut self,
        path: &[u8],
        mtime: Timestamp,
    ) -> Result<Place<Rc<OwnedFd>>, TreeError> {
        if let Some(current) = self.current(path)
            && !current.followed
        {
            return Ok(Place::Directory(current.directory.clone()));
        }
        self.leave()?;
        Ok(match self.make_directories(path, mtime, Way::Hide)? {
            Place::Directory(directory) => {
                let times = times_of(&directory)?;
                Place::Directory(self.enter(path, directory, times))
            }
            Place::BehindLink => Place::BehindLink,
            Place::NoDirectory => Place::NoDirectory,
        })
    }

    fn current(&self, path: &[u8]) -> Option<&Current> {
        self.current
            .as_ref()
            .filter(|current| !current.stale && current.path == path)
    }

    /// Makes `directory` the current one, which shall have `times` in the end.
    fn enter(&mut self, path: &[u8], directory: OwnedFd, times: Timestamps) -> Rc<OwnedFd> {
        let directory = Rc::new(directory);
        let path = path.to_vec();
        self.current = Some(Current {
            path,
            directory: directory.clone(),
            times,
            followed: self.followed,
            stale: false,
        });
        directory
    }

    /// Gives the current directory its time back, which every change in it touched.
    fn leave(&mut self) -> Result<(), TreeError> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        futimens(&current.directory, &current.times).map_err(TreeError::system(SET_TIME))
    }

    /// Opens an existing directory.
    pub(crate) fn open_directory(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        match resolve(self.root, path, NO_LINKS) {
            Err(Errno::LOOP) => {
                let directory = resolve(self.root, path, IN_ROOT)?;
                self.followed = true;
                Ok(directory)
            }
            other => other,
        }
    }

    fn make_directories(
        &mut self,
        path: &[u8],
        mtime: Timestamp,
        way: Way,
    ) -> Result<Place<OwnedFd>, TreeError> {
        let open = TreeError::system("open the directory of");
        let mut directory = resolve(self.root, b".", NO_LINKS).map_err(open)?;
        let mut end = 0;
        for component in path
            .split(|b| *b == b'/')
            .filter(|component| !component.is_empty())
        {
            end += component.len();
            let so_far = &path[..end];
            end += 1;
            directory = match resolve(directory.as_fd(), component, NO_LINKS) {
                Ok(next) => next,
                Err(Errno::NOENT) => self.imply(&directory, component, so_far, mtime)?,
                Err(Errno::NOTDIR) => {
                    let name = archive::name(component);
                    if way == Way::Hide || !is_whiteout_at(&directory, &name) {
                        return Ok(Place::NoDirectory);
                    }
                    let times = times_of(&directory)?;
                    unlinkat(&directory, &name, AtFlags::empty())
                        .map_err(TreeError::system("replace the whiteout above"))?;
                    let next = self.imply(&directory, component, so_far, mtime)?;
                    set_opaque(&next)?;
                    futimens(&directory, &times).map_err(TreeError::system(SET_TIME))?;
                    next
                }
                Err(Errno::LOOP) if way == Way::Hide => return Ok(Place::BehindLink),
                Err(Errno::LOOP) => {
                    self.followed = true;
                    resolve(self.root, so_far, IN_ROOT).map_err(|err| match err {
                        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => TreeError::Refused(
                            "a symbolic link above it does not lead to a directory",
                        ),
                        err => TreeError::System("open the directory of", err.into()),
                    })?
                }
                Err(err) => return Err(TreeError::system("open the directory of")(err)),
            };
        }
        Ok(Place::Directory(directory))
    }

    /// Makes a directory that the archive does not list.
    fn imply(
        &mut self,
        parent: &OwnedFd,
        component: &[u8],
        path: &[u8],
        mtime: Timestamp,
    ) -> Result<OwnedFd, TreeError> {
        let parent_times = times_of(parent)?;
        let make = || {
            mkdirat(parent, component, Mode::RWXU)?;
            resolve(parent.as_fd(), component, NO_LINKS)
        };
        let directory = make().map_err(TreeError::system("make the directory of"))?;
        let attributes = self
            .lower_attributes(path)
            .map_err(TreeError::system("look below for the directory of"))?
            .unwrap_or(Attributes {
                uid: 0,
                gid: 0,
                mode: 0o755,
                mtime,
            });
        attributes.apply(&directory)?;
        futimens(&directory, &attributes.times()).map_err(TreeError::system(SET_TIME))?;
        futimens(parent, &parent_times).map_err(TreeError::system(SET_TIME))?;
        self.implied += 1;
        Ok(directory)
    }

    /// What the topmost layer that has directory `path` says about it.
    fn lower_attributes(&self, path: &[u8]) -> Result<Option<Attributes>, Errno> {
        for lower in self.lower {
            let root = rustix::fs::open(lower, DIRECTORY, Mode::empty())?;
            match resolve(root.as_fd(), path, NO_LINKS) {
                Ok(directory) => return Ok(Some(Attributes::of(&fstat(directory)?))),
                Err(Errno::NOENT) => {}
                // Something else hides the directories further down.
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Makes directory `name`, or takes the one that is there, for an entry of that kind.
    pub(crate) fn make_directory(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
    ) -> Result<Rc<OwnedFd>, TreeError> {
        let Some((parent, name)) = path.split() else {
            self.leave()?;
            let root = resolve(self.root, b".", NO_LINKS).map_err(TreeError::system("open"))?;
            return Ok(self.enter(b"", root, attributes.times()));
        };
        let parent = self.directory(parent, attributes.mtime)?;
        let mut hides_lower = false;
        loop {
            match mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) => break,
                Err(Errno::EXIST) => {
                    let there = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(TreeError::system("look at"))?;
                    if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                        break;
                    }
                    hides_lower |= is_whiteout(&there);
                    self.remove(&parent, &name)?;
                }
                Err(err) => return Err(TreeError::system("make")(err)),
            }
        }
        let directory = openat(&parent, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(TreeError::system("open"))?;
        if hides_lower {
            set_opaque(&directory)?;
        }
        self.leave()?;
        Ok(self.enter(path.bytes(), directory, attributes.times()))
    }

    /// Removes what stands where an entry shall go.
    pub(crate) fn remove(&mut self, parent: &OwnedFd, name: &CStr) -> Result<(), TreeError> {
        if let Some(current) = &mut self.current {
            current.stale = true;
        }
        self.trash
            .discard(parent, name)
            .map_err(|err| TreeError::System("replace what was in the place of", err))
    }

    /// Runs `create`; if something is in the way, removes it and tries again.
    pub(crate) fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        action: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, TreeError> {
        match create() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                create().map_err(TreeError::system(action))
            }
            other => other.map_err(TreeError::system(action)),
        }
    }

    /// Hides `name` of the layers below, but not what this layer itself has there.
    pub(crate) fn whiteout(&mut self, parent: &OwnedFd, name: &CStr) -> Result<(), TreeError> {
        match mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {
                let flags = DIRECTORY | OFlags::NOFOLLOW;
                match openat(parent, name, flags, Mode::empty()) {
                    Ok(directory) => set_opaque(&directory),
                    Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(err) => Err(TreeError::system("open what is hidden by")(err)),
                }
            }
            other => other.map_err(TreeError::system("make")),
        }
    }

    /// Ends the work: the last directory gets its time.
    pub(crate) fn finish(&mut self) -> Result<(), TreeError> {
        self.leave()
    }
}

fn times_of(directory: &OwnedFd) -> Result<Timestamps, TreeError> {
    let stat = fstat(directory).map_err(TreeError::system("look at the directory of"))?;
    Ok(Attributes::of(&stat).times())
}

/// Marks a directory that shows nothing of the layers below.
pub(crate) fn set_opaque(directory: &OwnedFd) -> Result<(), TreeError> {
    fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
        .map_err(TreeError::system("mark as opaque"))
}

/// Whether overlayfs takes this for a whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_whiteout_at(parent: &OwnedFd, name: &CStr) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_whiteout(&stat))
}

/// Opens directory `path` of a tree in which no link may be on the way.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    resolve(root, if path.is_empty() { b"." } else { path }, NO_LINKS)
}

fn resolve(from: BorrowedFd<'_>, path: &[u8], how: ResolveFlags) -> Result<OwnedFd, Errno> {
    // The kernel gives up with EAGAIN if something was renamed meanwhile, anywhere on the host.
    const ATTEMPTS: usize = 1000;
    for _ in 0..ATTEMPTS {
        match openat2(from, path, DIRECTORY, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}
