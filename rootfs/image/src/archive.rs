//! Reads tar archives: POSIX pax, ustar, GNU and V7, one entry after the other.
//!
//! The `tar` crate knows the headers; its iterator is not used, for three reasons: it splits PAX
//! records at newlines, so a `security.capability` with a byte 10 is lost; it reads extension
//! headers of any length into memory; and it takes the sparse files of GNU tar's PAX form for
//! plain ones. Like Go's reader, by which registries' layers are written and read, an archive ends
//! at two zero blocks or at the end of the file, and entries that have only a header have no data
//! whatever their size says: two readers that disagree about where the next entry begins are an
//! attack.

mod number;
mod pax;
mod sparse;

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use tar::Header;

use number::number;
use pax::Pax;
pub(crate) use pax::Timestamp;
pub(crate) use sparse::Segment;

const BLOCK: usize = 512;

/// Where an archive comes from.
pub(crate) trait Input: BufRead {
    /// Passes over `bytes` bytes.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// An input that can only be read.
pub(crate) struct Stream<R>(pub(crate) R);

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
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
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
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As written: may be absolute, have `..` or NUL, or be no UTF-8.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission bits only.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Timestamp,
    /// Bytes of the file once unpacked.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data go if there are holes.
    pub(crate) segments: Option<Vec<Segment>>,
    /// Position of the data in the archive.
    pub(crate) offset: u64,
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
        /// [`Limits::extension_bytes`](crate::Limits::extension_bytes).
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
pub(crate) struct Archive<I> {
    input: I,
    position: u64,
    /// Data of the current entry that were not read yet.
    remaining: u64,
    /// What fills the last block of the current entry.
    padding: u64,
    extension_limit: u64,
}

impl<I: Input> Archive<I> {
    pub(crate) fn new(input: I, extension_limit: u64) -> Self {
        Self {
            input,
            position: 0,
            remaining: 0,
            padding: 0,
            extension_limit,
        }
    }

    /// The next entry; what is left of the one before is passed over.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
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
                // Defaults for all entries: ignored, as Go's reader and docker do.
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
    pub(crate) fn data(&mut self) -> io::Result<&[u8]> {
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
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.remaining -= bytes as u64;
        self.position += bytes as u64;
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

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn archive(bytes: &[u8]) -> Archive<Stream<&[u8]>> {
        Archive::new(Stream(bytes), 1 << 16)
    }

    fn header(flag: u8, path: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkflag[0] = flag;
        header.set_mode(0o100_644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn append(to: &mut Vec<u8>, header: &Header, data: &[u8]) {
        to.extend_from_slice(header.as_bytes());
        to.extend_from_slice(data);
        to.resize(to.len().next_multiple_of(BLOCK), 0);
    }

    fn contents(archive: &mut Archive<Stream<&[u8]>>) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = archive.data().unwrap();
            if piece.is_empty() {
                return all;
            }
            all.extend_from_slice(piece);
            let n = piece.len();
            archive.consume(n);
        }
    }

    #[test]
    fn entries_come_in_order_with_their_data() {
        let mut bytes = Vec::new();
        append(&mut bytes, &header(b'5', "dir/", 0), b"");
        append(&mut bytes, &header(b'0', "dir/a", 3), b"abc");
        append(&mut bytes, &header(b'0', "skipped", 600), &[7; 600]);
        append(&mut bytes, &header(b'0', "last", 1), b"z");
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        let mut archive = archive(&bytes);
        let dir = archive.next_entry().unwrap().unwrap();
        assert_eq!(
            (dir.kind, dir.path.as_slice()),
            (Kind::Directory, &b"dir/"[..])
        );
        let a = archive.next_entry().unwrap().unwrap();
        assert_eq!(
            (a.kind, a.mode, a.uid, a.gid, a.size),
            (Kind::Regular, 0o644, 1, 2, 3)
        );
        assert_eq!(
            a.mtime,
            Timestamp {
                seconds: 3,
                nanoseconds: 0
            }
        );
        assert_eq!(contents(&mut archive), b"abc");
        archive.next_entry().unwrap().unwrap();
        assert_eq!(archive.next_entry().unwrap().unwrap().path, b"last");
        assert_eq!(contents(&mut archive), b"z");
        assert!(archive.next_entry().unwrap().is_none());
    }

    #[test]
    fn long_names_and_pax_records_describe_the_next_entry() {
        let long = "n".repeat(300);
        let mut bytes = Vec::new();
        append(
            &mut bytes,
            &header(b'L', "././@LongLink", 301),
            format!("{long}\0").as_bytes(),
        );
        append(&mut bytes, &header(b'0', "short", 0), b"");
        let mut pax = Vec::new();
        for (key, value) in [
            ("path", &b"other\nname"[..]),
            ("SCHILY.xattr.user.x", b"\n\0"),
        ] {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n| rest + n.to_string().len() == *n).unwrap();
            pax.extend_from_slice(format!("{length} {key}=").as_bytes());
            pax.extend_from_slice(value);
            pax.push(b'\n');
        }
        append(&mut bytes, &header(b'x', "pax", pax.len() as u64), &pax);
        append(&mut bytes, &header(b'0', "short", 0), b"");
        let mut archive = archive(&bytes);
        assert_eq!(archive.next_entry().unwrap().unwrap().path, long.as_bytes());
        let entry = archive.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"other\nname");
        assert_eq!(entry.xattrs, [(b"user.x".to_vec(), b"\n\0".to_vec())]);
        assert!(archive.next_entry().unwrap().is_none());
    }

    #[test]
    fn damaged_archives_are_errors() {
        let mut good = Vec::new();
        append(&mut good, &header(b'0', "a", 600), &[1; 600]);
        let truncated = &good[..BLOCK + 100];
        let mut reading = archive(truncated);
        reading.next_entry().unwrap().unwrap();
        assert!(reading.next_entry().is_err());
        assert!(archive(&good[..100]).next_entry().is_err());

        let mut flipped = good.clone();
        flipped[0] = b'b';
        assert!(matches!(
            archive(&flipped).next_entry(),
            Err(ArchiveError::Header { .. })
        ));

        let mut dangling = Vec::new();
        append(&mut dangling, &header(b'L', "x", 3), b"abc");
        assert!(archive(&dangling).next_entry().is_err());

        let mut after_end = vec![0; BLOCK];
        after_end.extend_from_slice(&good);
        assert!(archive(&after_end).next_entry().is_err());

        let mut huge = Vec::new();
        append(&mut huge, &header(b'x', "x", 1 << 40), b"");
        assert!(matches!(
            archive(&huge).next_entry(),
            Err(ArchiveError::ExtensionTooLong { .. })
        ));
    }

    #[test]
    fn entries_without_data_have_none_whatever_their_size() {
        let mut bytes = Vec::new();
        append(&mut bytes, &header(b'2', "link", 512), b"");
        append(&mut bytes, &header(b'0', "next", 0), b"");
        let mut archive = archive(&bytes);
        assert_eq!(archive.next_entry().unwrap().unwrap().size, 0);
        assert_eq!(archive.next_entry().unwrap().unwrap().path, b"next");
    }

    #[test]
    fn a_size_near_the_end_of_numbers_is_an_error_not_a_loop() {
        let mut bytes = Vec::new();
        append(&mut bytes, &header(b'0', "a", u64::MAX), b"");
        let mut archive = archive(&bytes);
        let entry = archive.next_entry();
        assert!(entry.is_err() || archive.next_entry().is_err());
    }

    #[test]
    fn sparse_files_of_gnu_tar_have_their_segments() {
        let mut sparse = header(b'S', "sparse", 6);
        let gnu = sparse.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(0);
        gnu.sparse[0].set_length(3);
        gnu.sparse[1].set_offset(4096);
        gnu.sparse[1].set_length(3);
        gnu.set_real_size(10_000);
        sparse.set_cksum();
        let mut bytes = Vec::new();
        append(&mut bytes, &sparse, b"abcdef");
        let mut old = archive(&bytes);
        let entry = old.next_entry().unwrap().unwrap();
        assert_eq!(entry.size, 10_000);
        let expected = [
            Segment {
                offset: 0,
                length: 3,
            },
            Segment {
                offset: 4096,
                length: 3,
            },
        ];
        assert_eq!(entry.segments.as_deref(), Some(&expected[..]));
        assert_eq!(contents(&mut old), b"abcdef");

        let pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
            27 GNU.sparse.name=sparse2\n31 GNU.sparse.realsize=0010000\n";
        let mut map = b"2\n0\n3\n4096\n3\n".to_vec();
        map.resize(BLOCK, 0);
        map.extend_from_slice(b"abcdef");
        let mut bytes = Vec::new();
        append(&mut bytes, &header(b'x', "pax", pax.len() as u64), pax);
        append(
            &mut bytes,
            &header(b'0', "GNUSparseFile.0/x", map.len() as u64),
            &map,
        );
        append(&mut bytes, &header(b'0', "next", 0), b"");
        let mut new = archive(&bytes);
        let entry = new.next_entry().unwrap().unwrap();
        assert_eq!(
            (entry.path.as_slice(), entry.size),
            (&b"sparse2"[..], 10_000)
        );
        assert_eq!(entry.segments.as_deref(), Some(&expected[..]));
        assert_eq!(contents(&mut new), b"abcdef");
        assert_eq!(new.next_entry().unwrap().unwrap().path, b"next");
    }

    #[test]
    fn the_stream_is_not_read_beyond_the_end_marker() {
        let mut bytes = vec![0; 2 * BLOCK];
        bytes.extend_from_slice(b"trailer");
        let mut archive = archive(&bytes);
        assert!(archive.next_entry().unwrap().is_none());
        let mut rest = String::new();
        archive.input.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "trailer");
    }
}
