//! A container's root file system: how it gets into the guest, and what hrun puts into it.

use std::path::{Component, Path, PathBuf};

use agent_protocol::{File, Lower, Source};
use vmm::config::{ShareConfig, ShareSource, SharedFile};

use super::{ROOT_TAG, Ready, empty_share};
use crate::{rootfs::Rootfs, volumes::ReadySource};

/// Of the tmpfs that takes a container's changes where the guest stacks its layers: half of the
/// guest's memory.
const UPPER_OPTIONS: &str = "size=50%";

/// What of the root file system is shared by virtio-fs.
pub(super) fn share(ready: &Ready<'_>) -> ShareConfig {
    let share = ShareConfig {
        // Nobody but this VM changes what it shows.
        exclusive: true,
        ..empty_share(ROOT_TAG)
    };
    match ready.options.rootfs {
        Rootfs::Host => ShareConfig {
            source: ShareSource::Overlay {
                lower: ready.layers.to_vec(),
                upper: Some(ready.writable.upper.clone()),
                work: Some(ready.writable.work.clone()),
            },
            // Also with --read-only: mount points have to be made, so it is the guest that closes
            // it.
            read_only: false,
            files: files(ready),
            directories: mount_points(ready),
            ..share
        },
        Rootfs::GuestOverFs => ShareConfig {
            source: ShareSource::Overlay {
                lower: ready.layers.to_vec(),
                upper: None,
                work: None,
            },
            read_only: true,
            ..share
        },
        Rootfs::GuestOverBlock => share,
    }
}

/// What the agent makes the root file system of.
pub(super) fn source(rootfs: Rootfs) -> Source {
    let tag = ROOT_TAG.to_owned();
    let lower = match rootfs {
        Rootfs::Host => {
            let path = String::new();
            return Source::Share { tag, path };
        }
        Rootfs::GuestOverFs => Lower::Share { tag },
        Rootfs::GuestOverBlock => Lower::Disk { number: 0 },
    };
    Source::Overlay {
        lower,
        upper: UPPER_OPTIONS.into(),
    }
}

/// [`files`], for the agent to write.
pub(super) fn guest_files(ready: &Ready<'_>) -> Vec<File> {
    let file = |file: SharedFile| File {
        path: file.path.to_string_lossy().into_owned(),
        content: file.content.into_bytes(),
        mode: file.mode,
    };
    files(ready).into_iter().map(file).collect()
}

/// The files by which a container knows who it is, unless the user mounts his own. There is no
/// `/etc/resolv.conf` among them: without a network there is nobody to ask.
pub(super) fn files(ready: &Ready<'_>) -> Vec<SharedFile> {
    let hostname = ready.hostname;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.1.1\t{hostname}\n"
    );
    [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts),
        ("/etc/machine-id", format!("{}\n", ready.machine_id)),
    ]
    .into_iter()
    .filter(|(path, _)| !is_covered(ready, path))
    .map(|(path, content)| SharedFile {
        path: path.into(),
        content,
        mode: 0o644,
    })
    .collect()
}

/// The directories that the agent needs in the root file system, unless a volume brings them:
/// made on the host, where it costs microseconds.
pub(super) fn mount_points(ready: &Ready<'_>) -> Vec<PathBuf> {
    let volumes = ready
        .volumes
        .iter()
        .filter(|volume| matches!(volume.source, ReadySource::Directory(_)))
        .map(|volume| volume.target.as_str());
    let paths = ["/dev", "/proc", "/sys", ready.process.cwd.as_str()];
    directories(paths.into_iter().chain(volumes), |path| {
        is_covered(ready, path)
    })
}

/// Those of these directories that have their places in the root file system itself.
pub(crate) fn directories<'a>(
    paths: impl IntoIterator<Item = &'a str>,
    is_covered: impl Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    paths
        .into_iter()
        .map(Path::new)
        .filter(|path| !is_covered(path.parent().unwrap_or(Path::new("/"))))
        .filter(|path| path.components().all(|part| part != Component::ParentDir))
        .map(PathBuf::from)
        .collect()
}

/// Whether a volume hides this path.
fn is_covered(ready: &Ready<'_>, path: impl AsRef<Path>) -> bool {
    let mut volumes = ready.volumes.iter();
    volumes.any(|volume| covers(&volume.target, path.as_ref()))
}

/// Whether something mounted on `target` hides `path`.
fn covers(target: &str, path: &Path) -> bool {
    path.starts_with(target)
}
