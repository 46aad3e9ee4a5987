//! Directories below the place that archives are unpacked at: how they are reached and made, and
//! when they get their times.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, ResolveFlags, Timestamps, futimens, mkdirat};
use rustix::io::Errno;

use crate::place::{DIRECTORY, open};
use crate::{CopyError, join};

/// Where paths of an archive count from.
#[derive(Debug)]
pub(crate) struct Anchor {
    directory: OwnedFd,
    /// Comes before every path.
    prefix: Vec<u8>,
    how: ResolveFlags,
    /// The directory of the last entry: most entries follow others of theirs.
    current: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories of the archive, each below the one before, and the times they shall have once
    /// nothing changes in them any more.
    times: Vec<(Vec<u8>, Timestamps)>,
}

impl Anchor {
    pub(crate) fn new(directory: OwnedFd, prefix: Vec<u8>, how: ResolveFlags) -> Self {
        Self {
            directory,
            prefix,
            how,
            current: None,
            times: Vec::new(),
        }
    }

    /// Opens the directory `path`, making what is missing of it.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, CopyError> {
        if let Some((_, directory)) = self.current.as_ref().filter(|(at, _)| at == path) {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.open(path) {
            Err(Errno::NOENT) => self.make(path),
            opened => opened,
        };
        let directory = directory.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
                CopyError::refused(path, "there is something that is no directory")
            }
            error => CopyError::system("open the directory", path)(error),
        })?;
        let directory = Rc::new(directory);
        self.current = Some((path.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = join(&self.prefix, path);
        open(self.directory.as_fd(), &path, DIRECTORY, self.how)
    }

    fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut directory = self.open(b"")?;
        let mut end = 0;
        for part in path.split(|byte| *byte == b'/') {
            end += part.len();
            match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            directory = self.open(&path[..end])?;
            end += 1;
        }
        Ok(directory)
    }

    /// Something was replaced: maybe a link that led to where we are.
    pub(crate) fn forget(&mut self) {
        self.current = None;
    }

    /// A directory of the archive gets its times later.
    pub(crate) fn set_times_later(&mut self, path: &[u8], times: Timestamps) {
        self.times.push((path.to_vec(), times));
    }

    /// Gives directories their times that the next entry, `path`, is not in.
    pub(crate) fn leave_for(&mut self, path: &[u8]) -> Result<(), CopyError> {
        let is_in = |directory: &[u8]| {
            let rest = path.strip_prefix(directory);
            rest.is_some_and(|rest| directory.is_empty() || rest.starts_with(b"/"))
        };
        while let Some((directory, times)) = self.times.pop_if(|(at, _)| !is_in(at)) {
            self.set_times(&directory, &times)?;
        }
        Ok(())
    }

    /// The archive is at its end.
    pub(crate) fn finish(&mut self) -> Result<(), CopyError> {
        while let Some((directory, times)) = self.times.pop() {
            self.set_times(&directory, &times)?;
        }
        Ok(())
    }

    fn set_times(&self, path: &[u8], times: &Timestamps) -> Result<(), CopyError> {
        let set = self
            .open(path)
            .and_then(|directory| futimens(directory, times));
        match set {
            // Somebody has taken it away.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            set => set.map_err(CopyError::system("set the time of", path)),
        }
    }
}
