//! Paths inside a container's root: resolved there and never outside, whatever symbolic links the
//! image holds.
//!
//! Boundary: the root is an open directory; nothing here knows what a container is. What is
//! missing is made if the caller wants it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many symbolic links as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a path shall lead to, if it leads nowhere yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Directory,
    /// An empty file, to mount another one over.
    File,
}

const WITHIN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens what is at `path`, as a mere place (`O_PATH`).
pub(crate) fn open(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    Ok(fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        WITHIN_ROOT,
    )?)
}

/// Opens what is at `path`, as a mere place (`O_PATH`); makes it and the directories on the way
/// if they are missing.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    path: &str,
    missing: Missing,
) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => walk(root, path, missing),
        result => result,
    }
}

/// Opens the directory `path`, without following a link anywhere; makes what is missing of it.
pub(crate) fn make_exactly(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    match fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {
            walk(root, path, Missing::Directory)?;
            Ok(fs::openat2(root, path, flags, Mode::empty(), resolve)?)
        }
        result => Ok(result?),
    }
}

/// Opens the directory in which `path` is, making it if it is missing, and gives the name in it.
pub(crate) fn open_parent<'p>(
    root: BorrowedFd<'_>,
    path: &'p str,
) -> io::Result<(OwnedFd, &'p OsStr)> {
    let path = Path::new(path);
    match (path.parent().and_then(Path::to_str), path.file_name()) {
        (Some(parent), Some(name)) => Ok((open_or_make(root, parent, Missing::Directory)?, name)),
        _ => Err(io::ErrorKind::InvalidFilename.into()),
    }
}

/// Walks `path` one component after the other, making what is missing. The walk holds every
/// directory it came through open, so renames underneath it cannot lead it astray.
fn walk(root: BorrowedFd<'_>, path: &str, missing: Missing) -> io::Result<OwnedFd> {
    let mut todo: Vec<String> = Vec::new();
    push_components(&mut todo, path);
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            way.pop();
            continue;
        }
        let here = way.last().map_or(root, |dir| dir.as_fd());
        let make = if todo.is_empty() {
            missing
        } else {
            Missing::Directory
        };
        let next = step(here, &name, make)?;
        if FileType::from_raw_mode(fs::fstat(&next)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = fs::readlinkat(&next, "", Vec::new())?;
            let target = target
                .to_str()
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
            if target.starts_with('/') {
                way.clear();
            }
            push_components(&mut todo, target);
        } else {
            way.push(next);
        }
    }
    match way.pop() {
        Some(place) => Ok(place),
        None => open(root, "."),
    }
}

fn push_components(todo: &mut Vec<String>, path: &str) {
    let components = path.split('/').filter(|name| !matches!(*name, "" | "."));
    todo.extend(components.rev().map(String::from));
}

/// Opens one component without following it, making it if it is missing.
fn step(dir: BorrowedFd<'_>, name: &str, make: Missing) -> io::Result<OwnedFd> {
    let open = || {
        fs::openat(
            dir,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    match open() {
        Err(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let made = match make {
        Missing::Directory => fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Missing::File => fs::mknodat(
            dir,
            name,
            FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        ),
    };
    match made {
        // Somebody else was faster.
        Ok(()) | Err(Errno::EXIST) => Ok(open()?),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file, replacing what is at `path`: a link there is not followed, as what it leads to
/// may serve others.
pub(crate) fn write_file(
    root: BorrowedFd<'_>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let (parent, name) = open_parent(root, path)?;
    let mode = Mode::from_raw_mode(mode & 0o7777);
    let create = || {
        fs::openat(
            &parent,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            mode,
        )
    };
    let file = match create() {
        Err(Errno::EXIST) => {
            fs::unlinkat(&parent, name, AtFlags::empty())?;
            create()?
        }
        result => result?,
    };
    // The umask took these away.
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        fs::fchmod(&file, mode)?;
    }
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// Reads a regular file of at most `limit` bytes; None if there is none.
pub(crate) fn read_file(
    root: BorrowedFd<'_>,
    path: &str,
    limit: usize,
) -> io::Result<Option<Vec<u8>>> {
    let opened = fs::openat2(
        root,
        path,
        // NONBLOCK: a FIFO must not hold the agent up.
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        WITHIN_ROOT,
    );
    let file = match opened {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        result => result?,
    };
    let stat = fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is no regular file",
        ));
    }
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if size > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut content = vec![0; size];
    let mut length = 0;
    while length < size {
        match rustix::io::read(&file, &mut content[length..])? {
            0 => break,
            count => length += count,
        }
    }
    content.truncate(length);
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as std_fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    /// A directory with a root in it, so that escapes from the root are seen.
    struct Root {
        outer: tempfile::TempDir,
        dir: OwnedFd,
    }

    impl Root {
        fn new() -> Self {
            let outer = tempfile::tempdir().unwrap();
            let path = outer.path().join("root");
            std_fs::create_dir(&path).unwrap();
            let dir = std_fs::File::open(&path).unwrap().into();
            Self { outer, dir }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.outer.path().join("root").join(path)
        }

        fn same(&self, fd: &OwnedFd, path: &str) -> bool {
            let stat = fs::fstat(fd).unwrap();
            let expected = std_fs::symlink_metadata(self.path(path)).unwrap();
            (stat.st_dev, stat.st_ino) == (expected.dev(), expected.ino())
        }

        fn nothing_outside(&self) {
            let names: Vec<_> = std_fs::read_dir(self.outer.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, ["root"]);
        }
    }

    #[test]
    fn missing_directories_are_made() {
        let root = Root::new();
        let made = open_or_make(root.dir.as_fd(), "/a/b/../c", Missing::Directory).unwrap();
        assert!(root.same(&made, "a/c"));
        assert_eq!(
            std_fs::metadata(root.path("a/b")).unwrap().mode() & 0o777,
            0o755
        );
    }

    #[test]
    fn a_missing_file_is_made_empty() {
        let root = Root::new();
        let made = open_or_make(root.dir.as_fd(), "/a/file", Missing::File).unwrap();
        assert!(root.same(&made, "a/file"));
        assert!(root.path("a/file").is_file());
    }

    #[test]
    fn links_lead_nowhere_but_into_the_root() {
        let root = Root::new();
        let up = "../../../../../../../..";
        for (name, target) in [
            ("absolute", "/"),
            ("up", up),
            ("config", "../../etc"),
            ("deep", "/../../tmp"),
        ] {
            symlink(target, root.path(name)).unwrap();
        }
        for path in [
            "/absolute/new1",
            "/up/new2",
            "/config/new3",
            "/deep/new4",
            "/../../new5",
            "up/../../new6",
        ] {
            let made = open_or_make(root.dir.as_fd(), path, Missing::Directory).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let inside = ["", "etc/", "tmp/"]
                .iter()
                .map(|dir| format!("{dir}{name}"))
                .find(|place| root.path(place).is_dir())
                .unwrap();
            assert!(root.same(&made, &inside), "{path}");
        }
        root.nothing_outside();
    }

    #[test]
    fn a_dangling_link_gets_its_target() {
        let root = Root::new();
        std_fs::create_dir(root.path("var")).unwrap();
        symlink("/run/lock", root.path("var/lock")).unwrap();
        let made = open_or_make(root.dir.as_fd(), "/var/lock/x", Missing::Directory).unwrap();
        assert!(root.same(&made, "run/lock/x"));
        let made = open_or_make(root.dir.as_fd(), "/var/lock", Missing::Directory).unwrap();
        assert!(root.same(&made, "run/lock"));
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let root = Root::new();
        symlink("b", root.path("a")).unwrap();
        symlink("a", root.path("b")).unwrap();
        let result = open_or_make(root.dir.as_fd(), "/a/x", Missing::Directory);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ELOOP));
        // The same on the slow way.
        assert!(walk(root.dir.as_fd(), "/a/x", Missing::Directory).is_err());
    }

    #[test]
    fn magic_links_are_not_followed() {
        let proc = std_fs::File::open("/proc").unwrap();
        assert!(open(proc.as_fd(), "/self/root").is_err());
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let root = Root::new();
        std_fs::write(root.path("file"), "").unwrap();
        let result = open_or_make(root.dir.as_fd(), "/file/x", Missing::Directory);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
    }

    #[test]
    fn files_are_written_with_their_mode() {
        let root = Root::new();
        write_file(root.dir.as_fd(), "/etc/hosts", b"x", 0o666).unwrap();
        let metadata = std_fs::metadata(root.path("etc/hosts")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o666);
        assert_eq!(std_fs::read(root.path("etc/hosts")).unwrap(), b"x");
        assert!(write_file(root.dir.as_fd(), "/", b"x", 0o666).is_err());
    }

    #[test]
    fn a_file_replaces_links_and_leaves_their_targets_alone() {
        let root = Root::new();
        std_fs::write(root.outer.path().join("root/kept"), "old").unwrap();
        symlink("/kept", root.path("soft")).unwrap();
        std_fs::hard_link(root.path("kept"), root.path("hard")).unwrap();
        for name in ["soft", "hard"] {
            write_file(root.dir.as_fd(), name, b"new", 0o644).unwrap();
            assert_eq!(std_fs::read(root.path(name)).unwrap(), b"new");
        }
        assert_eq!(std_fs::read(root.path("kept")).unwrap(), b"old");
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let root = Root::new();
        let read = |path| read_file(root.dir.as_fd(), path, 4);
        assert_eq!(read("/none").unwrap(), None);
        std_fs::write(root.path("small"), "1234").unwrap();
        assert_eq!(read("/small").unwrap().unwrap(), b"1234");
        std_fs::write(root.path("large"), "12345").unwrap();
        assert!(read("/large").is_err());
        assert!(read("/").is_err());
        fs::mknodat(
            &root.dir,
            "fifo",
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read("/fifo").is_err());
        symlink("/small", root.path("link")).unwrap();
        assert_eq!(read("/link").unwrap().unwrap(), b"1234");
    }
}
