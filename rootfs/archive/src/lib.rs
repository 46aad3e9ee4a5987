//! Reads tar archives: POSIX pax, ustar, GNU and V7, one entry after the other.
//!
//! The `tar` crate knows the headers; its iterator is not used, for three reasons: it splits PAX
//! records at newlines, so a `security.capability` with a byte 10 is lost; it reads extension
//! headers of any length into memory; and it takes the sparse files of GNU tar's PAX form for
//! plain ones. Like Go's reader, by which registries' layers are written and read, an archive ends
//! at two zero blocks or at the end of the file, and entries that have only a header have no data
//! whatever their size says: two readers that disagree about where the next entry begins are an
//! attack.

#![forbid(unsafe_code)]

mod number;
mod path;
mod pax;
mod sparse;
mod write;

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use tar::Header;

use number::number;
pub use path::{EntryPath, PathProblem, name};
use pax::Pax;
pub use pax::Timestamp;
pub use sparse::Segment;
pub use write::{NewEntry, Writer};

const BLOCK: usize = 512;

/// Where an archive comes from.
pub trait Input: BufRead {
    /// Passes over `bytes` bytes.
    ///
    /// # Errors
    ///
    /// It has not got so many.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// An input that can only be read.
#[derive(Debug)]
pub struct Stream<R>(
    /// What is read.
    pub R,
);

impl<R: BufRead> Input for Stream<R> {
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            let available = self.0.fill_buf()?.len() as u64;
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let n = available.min(bytes);
            self.0
                .consume(usize::try_from(n).expect("no more than is in the buffer"));
            bytes -= n;
        }
        Ok(())
    }
}

impl<R: BufRead> io::Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: BufRead> BufRead for Stream<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }
    fn consume(&mut self, amount: usize) {
        self.0.consume(amount);
    }
}

impl Input for BufReader<File> {
    /// May go beyond the end of the file: the next read then finds nothing.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.seek_relative(bytes)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    Regular,
    /// A further name of a file that came before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A type flag that this reader does not know.
    Unknown(u8),
}

impl Kind {
    fn of(flag: u8, path: &[u8]) -> Self {
        match flag {
            // V7 archives mark a directory by a slash.
            0 if path.ends_with(b"/") => Self::Directory,
            0 | b'0' | b'7' | b'S' => Self::Regular,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            other => Self::Unknown(other),
        }
    }

    fn has_data(self) -> bool {
        matches!(self, Self::Regular | Self::Unknown(_))
    }
}

/// One entry, from all the headers that describe it.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// As written: may be absolute, have `..` or NUL, or be no UTF-8.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    /// Permission bits only.
    pub mode: u32,
    /// Its owner.
    pub uid: u64,
    /// Its group.
    pub gid: u64,
    /// When it was last changed.
    pub mtime: Timestamp,
    /// Bytes of the file once unpacked.
    pub size: u64,
    /// Major and minor number of a device, if they are any.
    pub device: Option<(u32, u32)>,
    /// Names and values of its extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data go if there are holes.
    pub segments: Option<Vec<Segment>>,
    /// Position of the data in the archive.
    pub offset: u64,
}

/// Why an archive could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes did not come.
    #[error("Failed to read the archive at byte {position}")]
    Read {
        /// Where in the archive.
        position: u64,
        /// Why.
        source: io::Error,
    },
    /// A header is not one.
    #[error("The archive's header at byte {position} is not valid: {problem}")]
    Header {
        /// Where the header begins.
        position: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A PAX header or long name is longer than the limit.
    #[error("The archive has an extended header of {bytes} bytes, more than the limit of {limit}")]
    ExtensionTooLong {
        /// Its length.
        bytes: u64,
        /// The most that the reader was told to take.
        limit: u64,
    },
}

/// Headers that describe the entry after them.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Archive<I> {
    input: I,
    position: u64,
    /// Data of the current entry that were not read yet.
    remaining: u64,
    /// What fills the last block of the current entry.
    padding: u64,
    extension_limit: u64,
}

impl<I: Input> Archive<I> {
    /// Reads from `input`; extended headers may have `extension_limit` bytes.
    pub fn new(input: I, extension_limit: u64) -> Self {
        Self {
            input,
            position: 0,
            remaining: 0,
            padding: 0,
            extension_limit,
        }
    }

    /// The next entry; what is left of the one before is passed over.
    ///
    /// # Errors
    ///
    /// There is no further proper entry, nor a proper end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        let mut described = false;
        loop {
            self.skip_data()?;
            let start = self.position;
            let invalid = |problem| ArchiveError::Header {
                position: start,
                problem,
            };
            let Some(header) = self.read_header()? else {
                if described {
                    return Err(invalid("an extended header describes no entry"));
                }
                return Ok(None);
            };
            let size = number(&header.as_old().size)
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| invalid("size"))?;
            let slot = match header.as_old().linkflag[0] {
                b'x' => {
                    let bytes = self.read_extension(size)?;
                    let pax = Pax::parse(&bytes).map_err(invalid)?;
                    described = true;
                    if extensions.pax.replace(pax).is_some() {
                        return Err(invalid("two PAX headers for one entry"));
                    }
                    continue;
                }
                // Defaults for all entries: ignored, as Go's reader and docker do. Between an
                // entry and what describes it readers disagree whom that describes.
                b'g' if described => {
                    return Err(invalid("a global header between an entry and its own"));
                }
                b'g' => {
                    self.set_data(size);
                    continue;
                }
                b'L' => &mut extensions.long_path,
                b'K' => &mut extensions.long_link,
                _ => return self.entry(&header, size, extensions).map(Some),
            };
            if slot.is_some() {
                return Err(invalid("two long names for one entry"));
            }
            let mut name = self.read_extension(size)?;
            while name.last() == Some(&0) {
                name.pop();
            }
            *slot = Some(name);
            described = true;
        }
    }

    /// A piece of the current entry's data, empty at their end. Confirm with [`Self::consume`].
    ///
    /// # Errors
    ///
    /// They do not come.
    pub fn data(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let n = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(available.len());
        Ok(&available[..n])
    }

    /// Passes over `bytes` bytes of what [`Self::data`] gave.
    pub fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.remaining -= bytes as u64;
        self.position += bytes as u64;
    }

    /// What comes behind the archive.
    pub fn into_input(self) -> I {
        self.input
    }

    fn entry(
        &mut self,
        header: &Header,
        stored: u64,
        extensions: Extensions,
    ) -> Result<Entry, ArchiveError> {
        let start = self.position - BLOCK as u64;
        let invalid = |problem| ArchiveError::Header {
            position: start,
            problem,
        };
        let old = header.as_old();
        let mut pax = extensions.pax.unwrap_or_default();
        let unsigned = |field: &[u8], what| {
            number(field)
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| invalid(what))
        };
        // One reader would believe the one, another the other.
        if (pax.path.is_some() && extensions.long_path.is_some())
            || (pax.link.is_some() && extensions.long_link.is_some())
        {
            return Err(invalid("two names for one entry"));
        }
        let sparse_path = pax.sparse.path.take();
        let path = sparse_path
            .or(pax.path.take())
            .or(extensions.long_path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .take()
            .or(extensions.long_link)
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        let kind = Kind::of(old.linkflag[0], &path);
        let stored = if kind.has_data() {
            pax.size.unwrap_or(stored)
        } else {
            0
        };
        let uid = pax.uid.map_or_else(|| unsigned(&old.uid, "user id"), Ok)?;
        let gid = pax.gid.map_or_else(|| unsigned(&old.gid, "group id"), Ok)?;
        let mode = number(&old.mode)
            .and_then(|mode| u32::try_from(mode & 0o7777).ok())
            .ok_or_else(|| invalid("mode"))?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => number(&old.mtime)
                .and_then(|seconds| i64::try_from(seconds).ok())
                .map(|seconds| Timestamp {
                    seconds,
                    nanoseconds: 0,
                })
                .ok_or_else(|| invalid("modification time"))?,
        };
        let map = if old.linkflag[0] == b'S' {
            let gnu = header
                .as_gnu()
                .ok_or_else(|| invalid("a sparse file in no GNU header"))?;
            Some(self.read_gnu_sparse(gnu, stored)?)
        } else {
            self.set_data(stored);
            self.read_pax_sparse(&pax.sparse)?
        };
        let (size, segments) = match map {
            None => (stored, None),
            Some(map) => {
                map.check(self.remaining).map_err(invalid)?;
                (map.size, Some(map.segments))
            }
        };
        Ok(Entry {
            kind,
            path,
            link,
            mode,
            uid,
            gid,
            mtime,
            size,
            device: device(header),
            xattrs: pax.xattrs,
            segments,
            offset: self.position,
        })
    }

    /// The next header block; none at the end of the archive.
    fn read_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let start = self.position;
        let invalid = |problem| ArchiveError::Header {
            position: start,
            problem,
        };
        let mut header = Header::new_old();
        if !self.read_block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(header.as_bytes()) {
            let mut second = [0; BLOCK];
            if self.read_block(&mut second)? && !is_zero(&second) {
                return Err(invalid("something follows the end of the archive"));
            }
            return Ok(None);
        }
        let expected = number(&header.as_old().cksum).ok_or_else(|| invalid("checksum"))?;
        let bytes = header.as_bytes();
        let outside = || bytes[..148].iter().chain(&bytes[156..]);
        let blank = 8 * i128::from(b' ');
        let unsigned: i128 = outside().map(|b| i128::from(*b)).sum();
        // Some old writers added signed characters.
        let signed: i128 = outside().map(|b| i128::from(b.cast_signed())).sum();
        if expected != unsigned + blank && expected != signed + blank {
            return Err(invalid("its checksum is wrong, or this is no tar archive"));
        }
        Ok(Some(header))
    }

    /// Fills `block`, or gives false if the archive ends just before it.
    fn read_block(&mut self, block: &mut [u8]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < block.len() {
            let n = self
                .input
                .read(&mut block[filled..])
                .map_err(|err| self.failed(err))?;
            if n == 0 {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
            }
            filled += n;
        }
        self.position += filled as u64;
        Ok(true)
    }

    fn read_extension(&mut self, bytes: u64) -> Result<Vec<u8>, ArchiveError> {
        if bytes > self.extension_limit {
            return Err(ArchiveError::ExtensionTooLong {
                bytes,
                limit: self.extension_limit,
            });
        }
        self.set_data(bytes);
        let mut buffer = Vec::new();
        while self.remaining > 0 {
            let position = self.position;
            let piece = self
                .data()
                .map_err(|source| ArchiveError::Read { position, source })?;
            buffer.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
        }
        Ok(buffer)
    }

    fn set_data(&mut self, bytes: u64) {
        self.remaining = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        for bytes in [self.remaining, self.padding] {
            self.input.skip(bytes).map_err(|err| self.failed(err))?;
            self.position = self.position.saturating_add(bytes);
        }
        self.set_data(0);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read {
            position: self.position,
            source,
        }
    }
}

fn device(header: &Header) -> Option<(u32, u32)> {
    let major = header.device_major().ok()??;
    let minor = header.device_minor().ok()??;
    Some((major, minor))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests;
