//! Files and directories that the configuration puts into a share.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat2},
    io::Errno,
};

use crate::config::{ShareConfig, SharedFile};

/// Puts what the configuration asks for into a share, before a guest can race with us. The share
/// may come from a hostile image: nothing resolves to a place outside of it, and nothing blocks.
/// Where the image has something else already, it keeps it.
pub(super) fn fill(share: &ShareConfig, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let directories = share
        .directories
        .iter()
        .map(|path| (path, open_or_make(root, path).map(drop)));
    let files = share
        .files
        .iter()
        .map(|file| (&file.path, write_file(root, file)));
    for (path, done) in directories.chain(files) {
        match done {
            Err(
                why @ (Errno::EXIST
                | Errno::ISDIR
                | Errno::LOOP
                // A link whose target is in a directory that there is not.
                | Errno::NOENT
                | Errno::NOTDIR
                | Errno::NXIO
                | Errno::INVAL),
            ) => log::warn!(
                "Left {} of share {:?} alone: {why}",
                path.display(),
                share.tag
            ),
            done => done?,
        }
    }
    Ok(())
}

fn write_file(root: BorrowedFd<'_>, file: &SharedFile) -> rustix::io::Result<()> {
    open_or_make(root, file.path.parent().unwrap_or(Path::new("/")))?;
    let mode = Mode::from_raw_mode(file.mode);
    // Only regular files are truncated by that, and overlayfs then copies nothing up.
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat2(root, &file.path, flags, mode, IN_ROOT)?;
    if FileType::from_raw_mode(fstat(&opened)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    fchmod(&opened, mode)?;
    let mut content = file.content.as_bytes();
    while !content.is_empty() {
        let written = rustix::io::write(&opened, content)?;
        content = &content[written..];
    }
    Ok(())
}

/// The root of the share stays the root of every path in it, as in `chroot(2)`.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory of a share, with those on its way made if they are missing.
fn open_or_make(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(root, path, flags, Mode::empty(), IN_ROOT)
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    let mut made = PathBuf::from("/");
    let mut directory = open(&made)?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        made.push(name);
        directory = match open(&made) {
            Err(Errno::NOENT) => {
                mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                open(&made)?
            }
            opened => opened?,
        };
    }
    Ok(directory)
}
