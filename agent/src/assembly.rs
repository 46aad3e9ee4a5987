//! A root file system while it is put together: the root, and what is mounted and made in it, in
//! the order in which it was asked for.
//!
//! Every place is reached by a descriptor that was found inside the root, so whatever an image has
//! in the way, and whoever renames things in a share meanwhile, a mount lands where it was looked
//! up. Mounts are changed before they are attached.
//!
//! Boundary: runs in the sandbox. What nobody is to see or write is in `confine`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_protocol::{Attributes, Device, DeviceKind, Mount, Namespace, Source};
use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{self, OpenTreeFlags, UnmountFlags};
use rustix::process::{self, Gid, Uid};

use crate::confine::{self, Confined};
use crate::container::{
    ContainerError, Devices, Place, ROOT, Result, SHARE, attach, change_root, failed, is_dir,
    make_dir, open_place,
};
use crate::file_system::{self, NewFileSystem};
use crate::paths::{self, Missing};
use crate::{copy, overlay, sys};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC: i64 = 0x9fa0;

/// A root file system while it is put together.
pub(crate) struct Assembly<'a> {
    place: Place<'a>,
    /// Whether the root was prepared with the sandbox, and changed to: the staging directory is gone.
    prepared: bool,
    devices: &'a Devices,
    /// The shares that are mounted already, by tag. The root's is not among them: mounts in it would be in the way.
    shares: Vec<(String, OwnedFd)>,
    /// What other containers have, in the order in which it is mounted.
    joined: std::vec::IntoIter<OwnedFd>,
}

impl<'a> Assembly<'a> {
    /// `joined` is what each [`Source::Joined`] is, in their order.
    pub(crate) fn new(
        place: Place<'a>,
        prepared: bool,
        devices: &'a Devices,
        joined: Vec<OwnedFd>,
    ) -> Self {
        Self {
            place,
            prepared,
            devices,
            shares: Vec::new(),
            joined: joined.into_iter(),
        }
    }

    /// Gives the container's root directory, to which the caller's root is changed.
    pub(crate) fn assemble(mut self, spec: &agent_protocol::Container) -> Result<OwnedFd> {
        let confined = !self.prepared && Confined::suits(spec);
        let root = if self.prepared {
            open_place(Path::new("/"))?
        } else {
            let root = self.mount_root(&spec.root)?;
            let confined = confined.then_some(&self.devices.confined);
            self.place.move_in(root.as_fd(), confined)?;
            root
        };
        // Before the volumes, so that a file never ends up in one of them.
        for file in &spec.files {
            paths::write_file(root.as_fd(), &file.path, &file.content, file.mode)
                .map_err(failed("write", &file.path))?;
        }
        for mount in &spec.mounts {
            self.mount(root.as_fd(), mount)?;
        }
        self.unstage_shares()?;
        for device in &spec.devices {
            self.make_device(root.as_fd(), device)?;
        }
        if spec.joins(Namespace::Uts).is_none() {
            set_names(spec)?;
        }
        confine::apply(root.as_fd(), self.devices, spec, confined)?;
        if spec.read_only || is_read_only(&spec.root) {
            sys::mount_read_only(root.as_fd(), c"", false)
                .map_err(failed("make read-only", "the root file system"))?;
        }
        if !self.prepared {
            change_root(root.as_fd())?;
        }
        // Last: a shared mount cannot become the root.
        if let Some(propagation) = spec.propagation {
            sys::change_mount(root.as_fd(), Attributes::NONE, Some(propagation), false)
                .map_err(failed("set the propagation of", "the root file system"))?;
        }
        Ok(root)
    }

    /// Where shares are mounted before parts of them get to their places.
    fn share_stage(&self) -> PathBuf {
        if self.prepared {
            PathBuf::from("/dev/.shares")
        } else {
            self.place.at(SHARE)
        }
    }

    /// Without a staging directory, which goes with the old root, shares are to be put away.
    fn unstage_shares(&mut self) -> Result<()> {
        if !self.prepared || self.shares.is_empty() {
            return Ok(());
        }
        let stage = self.share_stage();
        for (tag, _) in self.shares.drain(..) {
            mount::unmount(&stage, UnmountFlags::DETACH).map_err(failed("hide share", tag))?;
        }
        fs::rmdir(&stage).map_err(failed("remove", stage.display().to_string()))
    }

    fn mount_root(&mut self, root: &Mount) -> Result<OwnedFd> {
        let target = self.place.at(ROOT);
        match &root.source {
            Source::Share { tag, path } if path.is_empty() => return self.place.mount_root(tag),
            Source::Share { tag, path } => {
                let tree = self.share_tree(tag, path)?;
                attach(
                    tree.as_fd(),
                    Path::new(""),
                    open_place(&target)?.as_fd(),
                    "/",
                )?;
            }
            Source::FileSystem {
                kind,
                name,
                options,
                copy_up: _,
            } => {
                let new = NewFileSystem {
                    kind,
                    name,
                    options,
                };
                let tree = new
                    .mount(Attributes::NONE, None)
                    .map_err(failed("mount", kind))?;
                let place = open_place(&target)?;
                attach(tree.as_fd(), Path::new(""), place.as_fd(), "/")?;
            }
            Source::Overlay { lower, upper } => overlay::mount(self.place, lower, upper, &target)?,
            Source::Present { .. } | Source::Container { .. } | Source::Joined { .. } => {
                return Err(failed("make a root of", "what is in it")(Errno::INVAL));
            }
        }
        open_place(&target)
    }

    fn mount(&mut self, root: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
        let target = &mount.target;
        let tree = match &mount.source {
            Source::Share { tag, path } => {
                let tree = self.share_tree(tag, path)?;
                (path.is_empty() || is_dir(tree.as_fd())?, tree)
            }
            Source::Container { path } => {
                let place = paths::open(root, path).map_err(failed("open", path))?;
                let tree = confine::clone_of(place.as_fd()).map_err(failed("bind", path))?;
                (is_dir(tree.as_fd())?, tree)
            }
            Source::Joined { path, .. } => {
                let tree = self.joined.next();
                let tree = tree.ok_or_else(|| failed("share", path)(Errno::NOENT))?;
                (is_dir(tree.as_fd())?, tree)
            }
            Source::FileSystem { .. } => return mount_file_system(root, mount),
            Source::Present { options } => {
                let place = paths::open(root, target).map_err(failed("open", target))?;
                if !options.is_empty() {
                    file_system::reconfigure(place.as_fd(), options)
                        .map_err(failed("change the options of", target))?;
                }
                return modify(place.as_fd(), mount);
            }
            Source::Overlay { .. } => {
                return Err(failed("mount an overlay on", target)(Errno::OPNOTSUPP));
            }
        };
        let (is_dir, tree) = tree;
        modify(tree.as_fd(), mount)?;
        let missing = if is_dir {
            Missing::Directory
        } else {
            Missing::File
        };
        let place = mount_point(root, target, missing)?;
        attach(tree.as_fd(), Path::new(""), place.as_fd(), target)
    }

    /// A new mount, attached nowhere yet, of what is at `path` in a share.
    fn share_tree(&mut self, tag: &str, path: &str) -> Result<OwnedFd> {
        let known = self.shares.iter().position(|(name, _)| name == tag);
        let index = match known {
            Some(index) => index,
            None => {
                // One over the other: they are reached by descriptor.
                let target = self.share_stage();
                if self.prepared {
                    make_dir(&target)?;
                }
                (self.place.mount_share)(tag, &target).map_err(failed("mount share", tag))?;
                self.shares.push((tag.to_owned(), open_place(&target)?));
                self.shares.len() - 1
            }
        };
        let share = self.shares[index].1.as_fd();
        let what = || format!("{path} of share {tag}");
        let below;
        let place = if path.is_empty() {
            share
        } else {
            below = paths::open(share, path).map_err(failed("open", what()))?;
            below.as_fd()
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        mount::open_tree(place, "", flags).map_err(failed("bind", what()))
    }

    fn make_device(&self, root: BorrowedFd<'_>, device: &Device) -> Result<()> {
        let path = &device.path;
        let (kind, class, major, minor) = match device.kind {
            DeviceKind::Character { major, minor } => {
                (FileType::CharacterDevice, "char", major, minor)
            }
            DeviceKind::Block { major, minor } => (FileType::BlockDevice, "block", major, minor),
            DeviceKind::Fifo => (FileType::Fifo, "", 0, 0),
        };
        let numbers = format!("{major}:{minor}");
        if kind != FileType::Fifo {
            let known = format!("dev/{class}/{numbers}");
            fs::statat(&self.devices.sys, known, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| {
                ContainerError::NoDevice {
                    path: path.clone(),
                    numbers,
                }
            })?;
        }
        let (parent, name) = paths::open_parent(root, path).map_err(failed("make", path))?;
        let node = || {
            let mode = Mode::from_raw_mode(device.mode & 0o7777);
            fs::mknodat(&parent, name, kind, mode, fs::makedev(major, minor))
        };
        let make = || {
            match node() {
                Err(Errno::EXIST) => {
                    fs::unlinkat(&parent, name, AtFlags::empty())?;
                    node()?;
                }
                made => made?,
            }
            let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            if owner != (Uid::ROOT, Gid::ROOT) {
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                fs::chownat(&parent, name, Some(owner.0), Some(owner.1), nofollow)?;
            }
            Ok(())
        };
        let umask = process::umask(Mode::empty());
        let made: Result<(), Errno> = make();
        process::umask(umask);
        made.map_err(failed("make", path))
    }
}

fn set_names(spec: &agent_protocol::Container) -> Result<()> {
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(failed("set the host name", &spec.hostname))?;
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .map_err(failed("set the domain name", &spec.domainname))?;
    }
    Ok(())
}

fn is_read_only(mount: &Mount) -> bool {
    (mount.attributes.set | mount.recursive.set) & Attributes::READ_ONLY.set != 0
}

/// The place to mount something on.
fn mount_point(root: BorrowedFd<'_>, target: &str, missing: Missing) -> Result<OwnedFd> {
    let place = paths::open_or_make(root, target, missing)
        .map_err(failed("make the mount point", target))?;
    // Who names a place in /proc knows what he does; a link that leads there is another matter.
    if !target.starts_with("/proc/") && is_proc(place.as_fd(), target)? {
        return Err(ContainerError::InProc(target.into()));
    }
    Ok(place)
}

fn is_proc(place: BorrowedFd<'_>, path: &str) -> Result<bool> {
    let stat = fs::fstatfs(place).map_err(failed("inspect", path))?;
    Ok(stat.f_type == PROC)
}

fn mount_file_system(root: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    let Source::FileSystem {
        kind,
        name,
        options,
        copy_up,
    } = &mount.source
    else {
        return Ok(());
    };
    let target = &mount.target;
    let place = if matches!(&**kind, "proc" | "sysfs") {
        // As runc has it: a link in their place could show something else to whoever looks later.
        paths::make_exactly(root, target).map_err(failed("make the mount point", target))?
    } else {
        mount_point(root, target, Missing::Directory)?
    };
    let new = NewFileSystem {
        kind,
        name,
        options,
    };
    // A tmpfs looks like what it hides.
    let mode = match &**kind == "tmpfs" && !file_system::names(options, "mode") {
        true => Some(
            fs::fstat(&place)
                .map_err(failed("inspect", target))?
                .st_mode
                & 0o7777,
        ),
        false => None,
    };
    // What is copied into it must be writable yet.
    let at_once = if *copy_up {
        Attributes::NONE
    } else {
        mount.attributes
    };
    let tree = new.mount(at_once, mode).map_err(failed("mount", kind))?;
    if *copy_up {
        copy::tree(place.as_fd(), tree.as_fd()).map_err(failed("copy what is in", target))?;
    }
    let rest = Mount {
        attributes: if *copy_up {
            mount.attributes
        } else {
            Attributes::NONE
        },
        ..mount.clone()
    };
    modify(tree.as_fd(), &rest)?;
    attach(tree.as_fd(), Path::new(""), place.as_fd(), target)
}

/// Makes of a mount what was asked for; no system call if that is nothing.
fn modify(place: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    let (below, alone) = match mount.propagation {
        Some(propagation) if propagation.recursive => (Some(propagation), None),
        alone => (None, alone),
    };
    for (attributes, propagation, recursive) in [
        (mount.recursive, below, true),
        (mount.attributes, alone, false),
    ] {
        if attributes != Attributes::NONE || propagation.is_some() {
            sys::change_mount(place, attributes, propagation, recursive)
                .map_err(failed("change the mount on", &mount.target))?;
        }
    }
    Ok(())
}
