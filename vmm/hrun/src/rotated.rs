//! Reads lines of JSON from a file that is rotated, oldest file first, and goes on with what is
//! written while it is read: `NAME` is written, `NAME.1` is older, and so on.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use crate::watch::Changes;

/// Longest line that is taken for an entry, in bytes: one of [`crate::log::MAX_LINE`] in which every
/// byte had to be escaped is shorter.
const MAX_ENTRY: usize = 256 << 10;

/// A place in such a file.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: PathBuf,
    file: &'static str,
    older: VecDeque<File>,
    current: Option<BufReader<File>>,
    line: Vec<u8>,
    changes: Option<Changes>,
}

impl Reader {
    /// Opens the file of this name in `dir`, at its beginning; with `follow`, so that
    /// [`Reader::wait`] can be used.
    pub(crate) fn open(dir: &Path, file: &'static str, follow: bool) -> io::Result<Self> {
        let changes = follow.then(|| Changes::of(dir)).transpose()?;
        let mut older = VecDeque::new();
        for number in 0.. {
            let name = match number {
                0 => file.to_owned(),
                _ => format!("{file}.{number}"),
            };
            match File::open(dir.join(name)) {
                Ok(file) => older.push_front(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            dir: dir.into(),
            file,
            older,
            current: None,
            line: Vec::new(),
            changes,
        })
    }

    /// The next entry, if there is one by now. What is no entry is passed over.
    pub(crate) fn next<E: DeserializeOwned>(&mut self) -> io::Result<Option<E>> {
        loop {
            let Some(current) = &mut self.current else {
                match self.older.pop_front() {
                    Some(file) => self.current = Some(BufReader::new(file)),
                    None => match File::open(self.dir.join(self.file)) {
                        Ok(file) => self.current = Some(BufReader::new(file)),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                        Err(error) => return Err(error),
                    },
                }
                continue;
            };
            let left = MAX_ENTRY.saturating_sub(self.line.len()).max(1);
            let limit = u64::try_from(left).unwrap_or(u64::MAX);
            let read = io::Read::take(&mut *current, limit).read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") || self.line.len() >= MAX_ENTRY {
                let entry = serde_json::from_slice(&self.line);
                self.line.clear();
                if let Ok(entry) = entry {
                    return Ok(Some(entry));
                }
            } else if read == 0 {
                if self.older.is_empty() && !self.is_rotated()? {
                    return Ok(None);
                }
                self.queue_newer()?;
                self.current = None;
                self.line.clear();
            }
        }
    }

    /// Lines up the files between the one that was read and the newest: a fast writer rotates
    /// several times before it is looked at.
    fn queue_newer(&mut self) -> io::Result<()> {
        let Some(current) = self.current.as_ref().filter(|_| self.older.is_empty()) else {
            return Ok(());
        };
        let ours = current.get_ref().metadata()?.ino();
        for number in 1.. {
            match File::open(self.dir.join(format!("{}.{number}", self.file))) {
                Ok(file) if file.metadata()?.ino() == ours => break,
                Ok(file) => self.older.push_front(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether another file than the one that is read is written by now.
    fn is_rotated(&self) -> io::Result<bool> {
        let Some(current) = &self.current else {
            return Ok(false);
        };
        let ours = current.get_ref().metadata()?;
        match fs::metadata(self.dir.join(self.file)) {
            Ok(newest) => Ok(newest.ino() != ours.ino() && {
                // What came before the rotation is there by now: once more to its end.
                let position = io::Seek::stream_position(&mut current.get_ref())?;
                position >= current.get_ref().metadata()?.len()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until something in the directory changes, or until `deadline`.
    pub(crate) fn wait(&self, deadline: std::time::Instant) -> io::Result<()> {
        match &self.changes {
            Some(changes) => changes.wait(Some(deadline)),
            None => Ok(()),
        }
    }
}
