//! Root file systems that the guest stacks by itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use agent_protocol::*;

use crate::guest::{Guest, shell};

/// A share with a lower tree and a place for changes.
fn layers(guest: &Guest) -> PathBuf {
    let share = guest.dir.path().join("layers");
    for directory in ["lower/etc", "lower/bin", "rw/upper", "rw/work"] {
        fs::create_dir_all(share.join(directory)).unwrap();
    }
    fs::write(share.join("lower/etc/kept"), "kept\n").unwrap();
    fs::write(share.join("lower/etc/gone"), "gone\n").unwrap();
    let lower = share.join("lower");
    fs::set_permissions(&lower, fs::Permissions::from_mode(0o1751)).unwrap();
    chown(&lower, Some(7), Some(8)).unwrap();
    share
}

fn container(guest: &Guest, share: &Path, upper: Upper) -> Container {
    let source = Source::Overlay {
        lower: Lower::Share {
            tag: share.to_str().unwrap().into(),
            path: "lower".into(),
        },
        upper,
    };
    let mut container = guest.container();
    container.root.source = source;
    container.files.push(File {
        path: "/etc/hostname".into(),
        content: b"testbox\n".to_vec(),
        mode: 0o644,
    });
    // Where this host's programs find each other.
    for name in ["bin", "lib", "lib64"] {
        let link = share.join("lower").join(name);
        let _ = fs::remove_dir(&link);
        std::os::unix::fs::symlink(format!("usr/{name}"), link).unwrap();
    }
    container
}

const COMMAND: &str = "rm /etc/gone && echo new > /etc/new && cat /etc/kept /etc/hostname
    ls /etc && stat -c '%a %u:%g' /";
const EXPECTED: &str = "kept\ntestbox\nhostname\nkept\nnew\n1751 7:8\n";

fn run(guest: &Guest, container: Container) -> String {
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(container)));
    let output = guest.run(&mut control, shell(1, COMMAND));
    assert_eq!(output.stderr, "");
    output.stdout
}

fn assert_lower_is_untouched(share: &Path) {
    assert!(share.join("lower/etc/gone").exists());
    assert!(!share.join("lower/etc/new").exists());
    assert!(!share.join("lower/etc/hostname").exists());
}

#[test]
fn changes_go_to_the_upper_directory_of_a_share() {
    let guest = Guest::new();
    let share = layers(&guest);
    let upper = share.join("rw/upper");
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o1751)).unwrap();
    chown(&upper, Some(7), Some(8)).unwrap();
    let upper = Upper::Share {
        tag: share.to_str().unwrap().into(),
        path: "rw".into(),
    };
    let container = container(&guest, &share, upper);
    assert_eq!(run(&guest, container), EXPECTED);
    assert_lower_is_untouched(&share);
    let new = fs::read_to_string(share.join("rw/upper/etc/new")).unwrap();
    assert_eq!(new, "new\n");
    let whiteout = fs::symlink_metadata(share.join("rw/upper/etc/gone")).unwrap();
    assert_eq!(whiteout.rdev(), 0);
    assert!(share.join("rw/upper/etc/hostname").exists());
}

#[test]
fn changes_in_memory_go_with_the_container() {
    let guest = Guest::new();
    let share = layers(&guest);
    let upper = Upper::Tmpfs {
        options: "size=4m".into(),
    };
    let container = container(&guest, &share, upper);
    assert_eq!(run(&guest, container), EXPECTED);
    assert_lower_is_untouched(&share);
    assert_eq!(fs::read_dir(share.join("rw/upper")).unwrap().count(), 0);
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    let guest = Guest::new();
    let mut container = guest.container();
    container.root.source = Source::Overlay {
        lower: Lower::Disk { number: 25 },
        upper: Upper::Tmpfs {
            options: String::new(),
        },
    };
    let refused = guest
        .control()
        .try_ask(Action::Create(Box::new(container)))
        .unwrap_err();
    assert!(refused.1.contains("disk vdz"), "{refused:?}");
}

#[test]
fn an_overlay_is_for_roots_only() {
    let guest = Guest::new();
    let mut container = guest.container();
    container.mounts.push(Mount {
        source: Source::Overlay {
            lower: Lower::Disk { number: 0 },
            upper: Upper::Tmpfs {
                options: String::new(),
            },
        },
        target: "/data".into(),
        read_only: false,
    });
    let refused = guest
        .control()
        .try_ask(Action::Create(Box::new(container)))
        .unwrap_err();
    assert!(refused.1.contains("/data"), "{refused:?}");
}
