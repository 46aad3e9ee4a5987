//! Overlayfs of the layers of an image and what a container changed in them.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use super::mount::ATTRIBUTES;

/// What the host may have made overlayfs's default, off: an upper directory that refers to layers
/// for its contents, or to handles of their files, can be read neither without them nor with copies
/// of them.
const SELF_CONTAINED: [(&str, &str); 3] = [
    ("redirect_dir", "off"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// Mounts an overlayfs, attached nowhere, of layers, topmost first, and of a directory for changes
/// with one for overlayfs's own use. `defaults` are options that give way to those which keep that
/// directory independent of the layers.
///
/// # Errors
///
/// The kernel's.
pub fn overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    read_only: bool,
    defaults: &[(&str, &str)],
) -> rustix::io::Result<OwnedFd> {
    let attributes = if read_only {
        ATTRIBUTES | MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        ATTRIBUTES
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsRawFd, unix::fs::PermissionsExt},
    };

    use super::*;

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
}
