//! What the VMM process can reach of its host: its shares, its sockets, and nothing else.
//!
//! The process gets a mount namespace of its own whose root holds only
//!
//! | path | what |
//! |---|---|
//! | `/shares/N` | root of share N, read-only in the kernel's eyes if the share is |
//! | `/proc/self` | the process itself, through which virtio-fs opens files again |
//! | directories of the sockets | under their own names, for connections that the guest opens |
//!
//! Whatever is mounted here vanishes with the process, however it ends.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2,
        readlink,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        mount_change, move_mount, open_tree, unmount,
    },
    process::{chdir, pivot_root},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities},
};

use crate::config::{ShareConfig, ShareSource, SharedFile};

/// Failure to confine the process.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step that concerns no share failed.
    #[error("Failed to {step}")]
    Step {
        /// What was attempted.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The files that a share is to hold cannot be written.
    #[error("Failed to write the files that share {tag:?} is to hold")]
    Fill {
        /// Its tag.
        tag: String,
        /// Why.
        source: io::Error,
    },
    /// A share's source cannot be mounted.
    #[error("Failed to share {path} as {tag:?}")]
    Share {
        /// Its tag.
        tag: String,
        /// What was to be shared.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |source| SandboxError::Step {
        step,
        source: source.into(),
    }
}

/// The root of share `index`, once the process is confined.
#[must_use]
pub fn share(index: usize) -> PathBuf {
    Path::new("/shares").join(index.to_string())
}

/// Confines the process to `shares` and to the directories `sockets`, and gives up every
/// capability that serving files does not need. The new root file system is assembled on
/// `mount_point`, a directory whose content the process does not need under another name.
///
/// # Errors
///
/// The process lacks CAP_SYS_ADMIN, or something cannot be mounted: then it must end.
pub fn enter(
    mount_point: &Path,
    sockets: &[&Path],
    shares: &[ShareConfig],
) -> Result<(), SandboxError> {
    // SAFETY: the process has one thread as yet, and no descriptor or path of it depends on
    // the namespace being shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(step("make a mount namespace"))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(step("make all mounts private"))?;
    assemble(mount_point, sockets, shares)?;
    pivot(mount_point)?;
    drop_capabilities()
}

fn assemble(
    mount_point: &Path,
    sockets: &[&Path],
    shares: &[ShareConfig],
) -> Result<(), SandboxError> {
    // Sources first: the new root may hide them.
    // Not by our number: that is another one in /proc if our PID namespace is not its own.
    let own = readlink("/proc/self", Vec::new()).map_err(step("find itself in /proc"))?;
    let own = Path::new("/proc").join(OsStr::from_bytes(own.as_bytes()));
    let kept = [(Path::new("/proc/self"), own.as_path())]
        .into_iter()
        .chain(sockets.iter().map(|path| (*path, *path)))
        .map(|(to, from)| Ok((to, clone_mount(from, false)?)))
        .collect::<rustix::io::Result<Vec<_>>>()
        .map_err(step("find the directories that are kept"))?;
    let roots = shares
        .iter()
        .map(share_root)
        .collect::<Result<Vec<_>, _>>()?;

    let base = tmpfs().map_err(step("make a root file system"))?;
    attach(base.as_fd(), CWD, mount_point).map_err(step("mount a root file system"))?;
    for (path, directory) in kept {
        let relative = path.strip_prefix("/").unwrap_or(path);
        make_directories(base.as_fd(), relative)
            .and_then(|()| attach(directory.as_fd(), base.as_fd(), relative))
            .map_err(step("mount a directory that is kept"))?;
    }
    for (index, (root, config)) in roots.iter().zip(shares).enumerate() {
        let path = share(index);
        place(root, base.as_fd(), path.strip_prefix("/").unwrap_or(&path))
            .map_err(step("mount a share"))?;
        if let ShareRoot::Mount(mount) = root {
            fill(config, mount.as_fd()).map_err(|source| SandboxError::Fill {
                tag: config.tag.clone(),
                source: source.into(),
            })?;
        }
    }
    set_read_only(base.as_fd(), false).map_err(step("make the root file system read-only"))
}

/// Makes the root file system on `mount_point` the only one.
fn pivot(mount_point: &Path) -> Result<(), SandboxError> {
    chdir(mount_point).map_err(step("enter the root file system"))?;
    pivot_root(".", ".").map_err(step("pivot to the root file system"))?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH).map_err(step("leave the host's file system"))?;
    chdir("/").map_err(step("enter the root file system"))
}

fn drop_capabilities() -> Result<(), SandboxError> {
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    set_capabilities(None, sets).map_err(step("drop capabilities"))
}

/// Root of a share, before it has its place.
enum ShareRoot {
    Mount(OwnedFd),
    /// Files and directories, to be mounted on these names in a directory of its own.
    Collection(Vec<(String, OwnedFd)>),
}

fn share_root(share: &ShareConfig) -> Result<ShareRoot, SandboxError> {
    let failed = |path: &Path| {
        let (tag, path) = (share.tag.clone(), path.to_owned());
        move |source: rustix::io::Errno| SandboxError::Share {
            tag,
            path,
            source: source.into(),
        }
    };
    let bind = |path: &Path, read_only: bool| {
        clone_mount(path, true).and_then(|mount| {
            if read_only {
                set_read_only(mount.as_fd(), true)?;
            }
            Ok(mount)
        })
    };
    match &share.source {
        ShareSource::Directory(path) => {
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                .and_then(|_| bind(path, share.read_only))
                .map(ShareRoot::Mount)
                .map_err(failed(path))
        }
        ShareSource::Collection(entries) => entries
            .iter()
            .map(|entry| {
                bind(&entry.path, share.read_only || entry.read_only)
                    .map(|mount| (entry.name.clone(), mount))
                    .map_err(failed(&entry.path))
            })
            .collect::<Result<_, _>>()
            .map(ShareRoot::Collection),
        // Overlayfs does not take a single layer and nothing to write to; nor is there a need.
        ShareSource::Overlay {
            lower, upper: None, ..
        } if lower.len() == 1 => bind(&lower[0], true)
            .map(ShareRoot::Mount)
            .map_err(failed(&lower[0])),
        ShareSource::Overlay { lower, upper, work } => {
            let upper = upper.as_deref().zip(work.as_deref());
            overlay(lower, upper, share.read_only, &[])
                .map(ShareRoot::Mount)
                .map_err(failed(upper.map_or(lower[0].as_path(), |(upper, _)| upper)))
        }
    }
}

fn place(root: &ShareRoot, base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    make_directories(base.as_fd(), path)?;
    match root {
        ShareRoot::Mount(mount) => attach(mount.as_fd(), base, path),
        ShareRoot::Collection(entries) => entries.iter().try_for_each(|(name, mount)| {
            let path = path.join(name);
            if FileType::from_raw_mode(fstat(mount)?.st_mode) == FileType::Directory {
                mkdirat(&base, &path, Mode::RUSR | Mode::XUSR)?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&base, &path, flags, Mode::RUSR)?;
            }
            attach(mount.as_fd(), base.as_fd(), &path)
        }),
    }
}

/// Puts what the configuration asks for into a share, before a guest can race with us. The share
/// may come from a hostile image: nothing resolves to a place outside of it, and nothing blocks.
/// Where the image has something else already, it keeps it.
fn fill(share: &ShareConfig, root: BorrowedFd<'_>) -> rustix::io::Result<()> {
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

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MOUNT_ATTRIBUTES,
    )
}

/// Nothing in a share is a device or a program to the VMM.
const MOUNT_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// What the host may have made overlayfs's default, off: an upper directory that refers to layers
/// for its contents, or to handles of their files, can be read neither without them nor with copies
/// of them.
const SELF_CONTAINED: [(&str, &str); 3] = [
    ("redirect_dir", "off"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// Mounts an overlayfs. `defaults` are options that those of [`SELF_CONTAINED`] override.
fn overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    read_only: bool,
    defaults: &[(&str, &str)],
) -> rustix::io::Result<OwnedFd> {
    let attributes = if read_only {
        MOUNT_ATTRIBUTES | MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MOUNT_ATTRIBUTES
    };
    let configure = |layer_by_layer: bool| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &Path| fsconfig_set_string(context.as_fd(), key, value);
        if layer_by_layer {
            lower.iter().try_for_each(|layer| set("lowerdir+", layer))?;
        } else {
            let layers: Vec<_> = lower.iter().map(|layer| escape(layer)).collect();
            set("lowerdir", Path::new(&layers.join(":")))?;
        }
        if let Some((upper, work)) = upper {
            set("upperdir", upper)?;
            set("workdir", work)?;
            for (key, value) in defaults.iter().chain(&SELF_CONTAINED) {
                fsconfig_set_string(context.as_fd(), *key, *value)?;
            }
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    // Linux 6.5 learned "lowerdir+"; before, the whole list is one string of at most 255 bytes.
    match configure(true) {
        Err(Errno::INVAL) => configure(false),
        done => done,
    }
}

/// A layer's path as it stands in the list of `lowerdir`.
fn escape(layer: &Path) -> String {
    layer
        .to_string_lossy()
        .replace('\\', "\\\\")
        .replace(':', "\\:")
}

pub(crate) fn clone_mount(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

fn attach(mount: impl AsFd, base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        base,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Makes a mount read-only, with all mounts below it if asked.
pub(crate) fn set_read_only(mount: impl AsFd, recursive: bool) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        ..NO_CHANGE
    };
    change(mount, &attributes, recursive)
}

/// Makes a mount one that can be written.
pub(crate) fn set_writable(mount: impl AsFd) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_clr: libc::MOUNT_ATTR_RDONLY,
        ..NO_CHANGE
    };
    change(mount, &attributes, false)
}

/// Cuts a mount and those below it off from others that show the same: what is mounted or unmounted
/// there has no effect here, nor the other way round.
pub(crate) fn set_private(mount: impl AsFd) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        propagation: libc::MS_PRIVATE,
        ..NO_CHANGE
    };
    change(mount, &attributes, true)
}

const NO_CHANGE: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

fn change(
    mount: impl AsFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor and both pointers are valid for the call, and the size is that of
    // the structure; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

pub(crate) fn make_directories(base: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    let mut made = PathBuf::new();
    for part in path {
        made.push(part);
        match mkdirat(&base, &made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, thread};

    use super::*;
    use crate::config::CollectionEntry;

    fn share(tag: &str, source: ShareSource, read_only: bool) -> ShareConfig {
        ShareConfig {
            tag: tag.into(),
            source,
            read_only,
            exclusive: false,
            files: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Runs `inside` where the sandbox was entered: in a thread, because a mount namespace
    /// belongs to a thread. Says loudly when it cannot.
    fn enter(directory: &Path, shares: Vec<ShareConfig>, inside: impl FnOnce() + Send + 'static) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a sandbox needs root");
            return;
        }
        let state = directory.join("state");
        fs::create_dir(&state).unwrap();
        fs::write(state.join("socket"), "").unwrap();
        let confined = thread::spawn(move || {
            super::enter(&state, &[&state], &shares).unwrap();
            assert!(
                state.join("socket").exists(),
                "the sockets keep their names"
            );
            inside();
        });
        confined.join().unwrap();
    }

    fn refused(result: io::Result<()>) {
        assert_eq!(
            result.unwrap_err().kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
    }

    #[test]
    fn only_shares_and_sockets_can_be_reached() {
        let host = tempfile::tempdir().unwrap();
        let shared = host.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let shares = vec![share("a", ShareSource::Directory(shared.clone()), false)];
        let secret = host.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        enter(host.path(), shares, move || {
            assert!(!secret.exists() && !Path::new("/etc").exists());
            let others = fs::read_dir("/proc").unwrap().filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.file_name() != "self")
            });
            assert_eq!(others.count(), 0, "no other process is seen");
            fs::write("/shares/0/file", "by the guest").unwrap();
            refused(fs::write("/file", ""));
            refused(fs::write("/shares/file", ""));
        });
        if rustix::process::geteuid().is_root() {
            assert_eq!(
                fs::read_to_string(shared.join("file")).unwrap(),
                "by the guest"
            );
        }
    }

    #[test]
    fn a_read_only_share_is_read_only_to_the_kernel() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "content").unwrap();
        let (directory, file) = (host.path().to_owned(), host.path().join("file"));
        let shares = vec![
            share("a", ShareSource::Directory(directory), true),
            share(
                "b",
                ShareSource::Collection(vec![CollectionEntry {
                    name: "name".into(),
                    path: file,
                    read_only: true,
                }]),
                false,
            ),
        ];
        enter(host.path(), shares, || {
            refused(fs::write("/shares/0/file", ""));
            refused(fs::create_dir("/shares/0/new"));
            assert_eq!(fs::read_to_string("/shares/1/name").unwrap(), "content");
            refused(fs::write("/shares/1/name", ""));
            refused(fs::write("/shares/1/other", ""));
        });
    }

    #[test]
    fn an_overlay_takes_changes_in_its_upper_directory() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        for name in ["base", "top", "upper", "work"] {
            fs::create_dir(path(name)).unwrap();
        }
        for (file, content) in [
            ("base/both", "base"),
            ("base/one", "base"),
            ("top/both", "top"),
        ] {
            fs::write(path(file), content).unwrap();
        }
        let lower = vec![path("top"), path("base")];
        let overlay = |upper: Option<PathBuf>, work| ShareSource::Overlay {
            lower: lower.clone(),
            upper,
            work,
        };
        let shares = vec![
            share(
                "rw",
                overlay(Some(path("upper")), Some(path("work"))),
                false,
            ),
            share("ro", overlay(None, None), true),
            share(
                "one",
                ShareSource::Overlay {
                    lower: vec![path("base")],
                    upper: None,
                    work: None,
                },
                true,
            ),
        ];
        enter(host.path(), shares, || {
            assert_eq!(fs::read_to_string("/shares/0/both").unwrap(), "top");
            fs::write("/shares/0/one", "changed").unwrap();
            assert_eq!(fs::read_to_string("/shares/1/one").unwrap(), "base");
            refused(fs::write("/shares/1/one", ""));
            assert_eq!(fs::read_to_string("/shares/2/both").unwrap(), "base");
            refused(fs::write("/shares/2/both", ""));
        });
        if rustix::process::geteuid().is_root() {
            assert_eq!(fs::read_to_string(path("upper/one")).unwrap(), "changed");
            assert_eq!(fs::read_to_string(path("base/one")).unwrap(), "base");
        }
    }

    #[test]
    fn an_upper_directory_can_be_read_without_its_layers_whatever_the_host_prefers() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a mount needs root");
            return;
        }
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        fs::create_dir_all(path("base/directory")).unwrap();
        fs::write(path("base/directory/file"), "content").unwrap();
        for name in ["upper", "work"] {
            fs::create_dir(path(name)).unwrap();
        }
        let (upper, work) = (path("upper"), path("work"));
        let preferred = ["redirect_dir", "metacopy", "index"].map(|key| (key, "on"));
        let mount = overlay(&[path("base")], Some((&upper, &work)), false, &preferred).unwrap();
        // By a path, as rename(2) of the standard library has no other way.
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let renamed = fs::rename(root.join("directory"), root.join("other"));
        assert_eq!(
            renamed.unwrap_err().raw_os_error(),
            Some(libc::EXDEV),
            "mv shall copy it"
        );
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(root.join("directory/file"), mode).unwrap();
        let copied = path("upper/directory/file");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
        let mut names = vec![0_u8; 4096];
        let length = rustix::fs::listxattr(&copied, &mut names).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        assert!(!names.contains("metacopy"), "{names}");
        assert!(!path("work/index").exists());
    }

    #[test]
    fn files_and_directories_are_put_into_a_share_and_never_beside_it() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        fs::create_dir_all(path("share/real")).unwrap();
        fs::create_dir(path("outside")).unwrap();
        // A hostile image.
        std::os::unix::fs::symlink(path("outside"), path("share/etc")).unwrap();
        std::os::unix::fs::symlink("../../../real", path("share/up")).unwrap();
        std::os::unix::fs::symlink("/none/such", path("share/nowhere")).unwrap();
        let fifo = path("share/real/fifo");
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let file = |path: &str| SharedFile {
            path: path.into(),
            content: "box\n".into(),
            mode: 0o640,
        };
        let shared = ShareConfig {
            files: [
                "/etc/hostname",
                "/nowhere",
                "/up/fifo",
                "/up/file",
                "/new/a/b",
            ]
            .map(file)
            .to_vec(),
            directories: vec!["/proc".into(), "/real".into()],
            ..share("a", ShareSource::Directory(path("share")), false)
        };
        enter(host.path(), vec![shared], || {});
        if rustix::process::geteuid().is_root() {
            assert_eq!(fs::read_dir(path("outside")).unwrap().count(), 0);
            let read = |name: &str| fs::read_to_string(path(name)).unwrap();
            assert_eq!(read("share/real/file"), "box\n");
            assert_eq!(read("share/new/a/b"), "box\n");
            assert!(path("share/proc").is_dir());
        }
    }

    #[test]
    fn a_missing_source_is_named() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a sandbox needs root");
            return;
        }
        let state = tempfile::tempdir().unwrap();
        let shares = [share(
            "v",
            ShareSource::Directory("/no/such/place".into()),
            true,
        )];
        let assembled = thread::spawn(move || super::enter(state.path(), &[], &shares).err());
        let message = assembled.join().unwrap().unwrap().to_string();
        assert!(
            message.contains("/no/such/place") && message.contains("\"v\""),
            "{message}"
        );
    }
}
