//! The files of a source, in a directory or in a tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, linkat, openat2};
use rustix::io::Errno;

use crate::Limits;
use archive::EntryPath;
use archive::{Archive, ArchiveError, Kind};

/// Links that are followed from one file of an archive to another.
const MAX_LINKS: usize = 8;

/// Gives files by name.
pub(crate) enum Files {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        members: HashMap<Vec<u8>, Member>,
    },
}

/// What an archive has under a name.
pub(crate) enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// A link to another name in the archive.
    Link(Vec<u8>),
}

/// Why the members of an archive could not be listed.
#[derive(Debug)]
pub(crate) enum ListError {
    Archive(ArchiveError),
    TooMany(usize),
}

/// One file, open.
#[derive(Debug)]
pub(crate) struct Blob {
    file: Arc<File>,
    at: u64,
    end: u64,
    size: u64,
}

impl Files {
    pub(crate) fn directory(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::Directory(rustix::fs::open(
            path,
            flags,
            Mode::empty(),
        )?))
    }

    /// Lists an archive, reading its headers only.
    pub(crate) fn archive(file: File, limits: &Limits) -> Result<Self, ListError> {
        let reading = |source| {
            ListError::Archive(ArchiveError::Read {
                position: 0,
                source,
            })
        };
        let length = file.metadata().map_err(reading)?.len();
        let input = BufReader::with_capacity(1024, file.try_clone().map_err(reading)?);
        let mut archive = Archive::new(input, limits.extension_bytes);
        let mut members = HashMap::new();
        while let Some(entry) = archive.next_entry().map_err(ListError::Archive)? {
            let Ok(path) = EntryPath::new(&entry.path) else {
                continue;
            };
            let member = match entry.kind {
                Kind::Regular if entry.segments.is_none() => {
                    if entry
                        .offset
                        .checked_add(entry.size)
                        .is_none_or(|end| end > length)
                    {
                        return Err(reading(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Member::File {
                        offset: entry.offset,
                        size: entry.size,
                    }
                }
                Kind::Symlink => Member::Link(beside(path.parent_and_base().0, &entry.link)),
                Kind::HardLink => Member::Link(beside(b"", &entry.link)),
                _ => continue,
            };
            members.insert(path.bytes().to_vec(), member);
            if members.len() > limits.archive_members {
                return Err(ListError::TooMany(limits.archive_members));
            }
        }
        Ok(Self::Archive {
            file: Arc::new(file),
            members,
        })
    }

    /// Links the file `name` of a directory to the path `to`, where it may be already.
    pub(crate) fn link(&self, name: &str, to: &Path) -> io::Result<()> {
        let Self::Directory(directory) = self else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        match linkat(directory, name, CWD, to, AtFlags::empty()) {
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Opens the file `name`; none if there is none. What is not a plain file is an error.
    pub(crate) fn open(&self, name: &str) -> io::Result<Option<Blob>> {
        match self {
            Self::Directory(directory) => open_in(directory, name),
            Self::Archive { file, members } => {
                let invalid = |_| io::Error::other("the name leads out of the archive");
                let mut path = EntryPath::new(name.as_bytes())
                    .map_err(invalid)?
                    .bytes()
                    .to_vec();
                for _ in 0..MAX_LINKS {
                    match members.get(&path) {
                        None => return Ok(None),
                        Some(Member::Link(to)) => path.clone_from(to),
                        Some(&Member::File { offset, size }) => {
                            return Ok(Some(Blob {
                                file: file.clone(),
                                at: offset,
                                end: offset + size,
                                size,
                            }));
                        }
                    }
                }
                Err(io::Error::other("too many links from one to another"))
            }
        }
    }
}

/// Somebody else may have filled the directory: links in it may not lead out of it.
fn open_in(directory: &OwnedFd, name: &str) -> io::Result<Option<Blob>> {
    // Not blocking: opening a pipe would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 1000;
    let file = loop {
        match openat2(directory, name, flags, Mode::empty(), how) {
            Ok(file) => break File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            // Something was renamed while the path was resolved.
            Err(Errno::AGAIN | Errno::INTR) if attempts > 0 => attempts -= 1,
            Err(Errno::XDEV) => return Err(io::Error::other("it leads out of the directory")),
            Err(err) => return Err(err.into()),
        }
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let size = metadata.len();
    Ok(Some(Blob {
        file: Arc::new(file),
        at: 0,
        end: size,
        size,
    }))
}

/// Resolves a link's target by its text, as the archive has no other meaning for it.
fn beside(directory: &[u8], target: &[u8]) -> Vec<u8> {
    let mut path: Vec<&[u8]> = if target.starts_with(b"/") {
        Vec::new()
    } else {
        directory.split(|b| *b == b'/').collect()
    };
    for component in target.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                path.pop();
            }
            name => path.push(name),
        }
    }
    path.retain(|component| !component.is_empty());
    path.join(&b'/')
}

impl Blob {
    /// Bytes in all.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The first bytes, without passing over them.
    pub(crate) fn start(&self) -> io::Result<[u8; 4]> {
        let mut start = [0; 4];
        if self.size >= 4 {
            self.file.read_exact_at(&mut start, self.at)?;
        }
        Ok(start)
    }

    /// Everything; the caller has seen that the size is sensible.
    pub(crate) fn read_all(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buf.len().min(left);
        let n = self.file.read_at(&mut buf[..wanted], self.at)?;
        if n == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn read(files: &Files, name: &str) -> io::Result<Option<Vec<u8>>> {
        files.open(name)?.map(Blob::read_all).transpose()
    }

    #[test]
    fn an_archive_gives_its_files_through_links() {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder
            .append_data(&mut header, "x/layer.tar", &b"abc"[..])
            .unwrap();
        for (path, target) in [
            ("y/layer.tar", "../x/layer.tar"),
            ("out", "../../../etc/passwd"),
            ("loop", "loop"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, path, target).unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let files = Files::archive(file, &Limits::default()).unwrap();
        assert_eq!(read(&files, "x/layer.tar").unwrap().unwrap(), b"abc");
        assert_eq!(read(&files, "./y/layer.tar").unwrap().unwrap(), b"abc");
        assert!(read(&files, "out").unwrap().is_none());
        assert!(read(&files, "loop").is_err());
        assert!(read(&files, "../x/layer.tar").is_err());
    }

    #[test]
    fn an_archive_cut_short_is_an_error() {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(10_000);
        builder
            .append_data(&mut header, "a", io::repeat(1).take(10_000))
            .unwrap();
        let mut file = builder.into_inner().unwrap();
        file.set_len(5000).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert!(Files::archive(file, &Limits::default()).is_err());
    }

    #[test]
    fn nothing_outside_a_directory_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        fs::write(inner.join("file"), "f").unwrap();
        symlink("../secret", inner.join("link")).unwrap();
        symlink("../file", inner.join("sub/link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inner.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        let files = Files::directory(&inner).unwrap();
        assert_eq!(read(&files, "sub/link").unwrap().unwrap(), b"f");
        for name in ["link", "../secret", "/etc/passwd", "pipe", "sub"] {
            assert!(read(&files, name).is_err(), "{name}");
        }
        assert!(read(&files, "none").unwrap().is_none());
    }
}
