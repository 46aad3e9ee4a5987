//! Writes tar archives: ustar headers, with PAX records for what those do not hold.
//!
//! The same entries make the same bytes. The `tar` crate would write its numbers and long names in
//! GNU's way, and takes names for text.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::{BLOCK, Kind, Timestamp};

/// Longest name, or target of a link, in a header.
const NAME_LENGTH: usize = 100;
/// The largest numbers of 7 and of 11 octal digits.
const SEVEN_DIGITS: u64 = 0o7_777_777;
const ELEVEN_DIGITS: u64 = 0o77_777_777_777;
/// What a PAX header is called itself.
const PAX_NAME: &[u8] = b"PaxHeaders/0";

/// One entry to be written.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// What it is.
    pub kind: Kind,
    /// Relative, in normal form; a directory's ends with a slash.
    pub path: &'a [u8],
    /// Target of a link, or nothing.
    pub link: &'a [u8],
    /// Permission bits only.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last changed.
    pub mtime: Timestamp,
    /// Bytes of a regular file.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Names and values of its extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// A tar archive under construction.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes the headers of an entry. The data of a regular file come next: [`Writer::data`].
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn entry(&mut self, entry: &NewEntry<'_>) -> io::Result<()> {
        let records = pax_records(entry);
        if !records.is_empty() {
            let mut header = header(b'x', PAX_NAME, b"");
            header.set_mode(0o644);
            header.set_size(records.len() as u64);
            self.header(header)?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let mut header = header(type_flag(entry.kind), entry.path, entry.link);
        header.set_mode(entry.mode);
        let fitting = |n: u64, max: u64| if n > max { 0 } else { n };
        header.set_uid(fitting(entry.uid.into(), SEVEN_DIGITS));
        header.set_gid(fitting(entry.gid.into(), SEVEN_DIGITS));
        header.set_size(fitting(entry.size, ELEVEN_DIGITS));
        let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
        header.set_mtime(fitting(seconds, ELEVEN_DIGITS));
        if matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            header.set_device_major(entry.device.0)?;
            header.set_device_minor(entry.device.1)?;
        }
        self.header(header)
    }

    /// Writes `size` bytes from `data`, which may have more by now, but not less.
    ///
    /// # Errors
    ///
    /// It cannot be written, or has less.
    pub fn data(&mut self, data: impl Read, size: u64) -> io::Result<()> {
        let copied = io::copy(&mut data.take(size), &mut self.out)?;
        if copied < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(size)
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, mut header: Header) -> io::Result<()> {
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).expect("less than a block");
        let padding = (BLOCK - rest) % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding])
    }
}

/// A header in which all numbers are 0.
fn header(flag: u8, path: &[u8], link: &[u8]) -> Header {
    let mut header = Header::new_ustar();
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    header.set_entry_type(EntryType::new(flag));
    let old = header.as_old_mut();
    // What does not fit is in a PAX record; here stands the beginning, for those who do not know.
    for (field, text) in [(&mut old.name, path), (&mut old.linkname, link)] {
        let length = text.len().min(NAME_LENGTH);
        field[..length].copy_from_slice(&text[..length]);
    }
    header
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::Regular => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
        Kind::Unknown(flag) => flag,
    }
}

/// What the header of an entry has no room for.
fn pax_records(entry: &NewEntry<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let is_plain = |text: &[u8]| text.len() <= NAME_LENGTH && text.is_ascii();
    if !is_plain(entry.path) {
        record(&mut records, b"path", entry.path);
    }
    if !is_plain(entry.link) {
        record(&mut records, b"linkpath", entry.link);
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if u64::from(id) > SEVEN_DIGITS {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    if entry.size > ELEVEN_DIGITS {
        record(&mut records, b"size", entry.size.to_string().as_bytes());
    }
    let Timestamp {
        seconds,
        nanoseconds,
    } = entry.mtime;
    let fits = u64::try_from(seconds).is_ok_and(|seconds| seconds <= ELEVEN_DIGITS);
    if nanoseconds != 0 || !fits {
        record(&mut records, b"mtime", decimal(entry.mtime).as_bytes());
    }
    for (name, value) in entry.xattrs {
        let key = [super::pax::XATTR_PREFIX, name].concat();
        record(&mut records, &key, value);
    }
    records
}

/// Seconds with a fraction; before the epoch both count backwards from it.
fn decimal(time: Timestamp) -> String {
    let Timestamp {
        seconds,
        nanoseconds,
    } = time;
    let sign = if seconds < 0 { "-" } else { "" };
    let (whole, fraction) = match nanoseconds {
        1.. if seconds < 0 => ((seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        _ => (seconds.unsigned_abs(), nanoseconds),
    };
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    let fraction = format!("{fraction:09}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

/// Appends `LENGTH KEY=VALUE\n`; the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Archive, Entry, Stream};

    fn entry<'a>(path: &'a [u8], link: &'a [u8], xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> NewEntry<'a> {
        NewEntry {
            kind: Kind::Symlink,
            path,
            link,
            mode: 0o1751,
            uid: 4_000_000_000,
            gid: 7,
            mtime: Timestamp {
                seconds: -2,
                nanoseconds: 250_000_000,
            },
            size: 0,
            device: (0, 0),
            xattrs,
        }
    }

    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut archive = Archive::new(Stream(bytes), 1 << 20);
        std::iter::from_fn(|| archive.next_entry().unwrap()).collect()
    }

    #[test]
    fn what_a_header_has_no_room_for_comes_back() {
        let (path, link) = (vec![b'p'; 300], b"\xff\n=".to_vec());
        let xattrs = [(b"user.a".to_vec(), b"\n0 x=\0".to_vec())];
        let mut writer = Writer::new(Vec::new());
        let entry = entry(&path, &link, &xattrs);
        writer.entry(&entry).unwrap();
        let read = read(&writer.finish().unwrap());
        let [found] = read.as_slice() else {
            panic!("{read:?}")
        };
        assert_eq!((&found.path, &found.link), (&path, &link));
        assert_eq!(found.kind, Kind::Symlink);
        assert_eq!(
            (found.mode, found.uid, found.gid),
            (0o1751, 4_000_000_000, 7)
        );
        assert_eq!(found.mtime, entry.mtime);
        assert_eq!(found.xattrs, xattrs);
    }

    #[test]
    fn data_end_where_the_header_said() {
        let mut writer = Writer::new(Vec::new());
        for size in [0, 1, 511, 512, 513] {
            let name = format!("f{size}");
            let entry = NewEntry {
                kind: Kind::Regular,
                size,
                ..entry(name.as_bytes(), b"", &[])
            };
            writer.entry(&entry).unwrap();
            writer.data(&[b'x'; 600][..], size).unwrap();
        }
        let sizes: Vec<u64> = read(&writer.finish().unwrap())
            .iter()
            .map(|entry| entry.size)
            .collect();
        assert_eq!(sizes, [0, 1, 511, 512, 513]);
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        assert!(writer.data(&b"abc"[..], 4).is_err());
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..2000 {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let digits = records.iter().position(|b| *b == b' ').unwrap();
            let stated: usize = std::str::from_utf8(&records[..digits])
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(stated, records.len());
        }
    }
}
