//! Root file systems that the guest stacks by itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use agent_protocol::*;

use crate::guest::{Guest, shell};

/// A directory with a lower tree in it.
fn layers(guest: &Guest) -> PathBuf {
    let share = guest.dir.path().join("layers");
    fs::create_dir_all(share.join("lower/etc")).unwrap();
    fs::write(share.join("lower/etc/kept"), "kept\n").unwrap();
    fs::write(share.join("lower/etc/gone"), "gone\n").unwrap();
    let lower = share.join("lower");
    fs::set_permissions(&lower, fs::Permissions::from_mode(0o1751)).unwrap();
    chown(&lower, Some(7), Some(8)).unwrap();
    share
}

fn container(guest: &Guest, share: &Path) -> Container {
    let source = Source::Overlay {
        lower: Lower::Share {
            tag: share.join("lower").to_str().unwrap().into(),
        },
        upper: "size=4m".into(),
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
        symlink(format!("usr/{name}"), link).unwrap();
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

#[test]
fn changes_in_memory_go_with_the_container() {
    let guest = Guest::new();
    let share = layers(&guest);
    let container = container(&guest, &share);
    assert_eq!(run(&guest, container), EXPECTED);
    assert!(share.join("lower/etc/gone").exists());
    assert!(!share.join("lower/etc/new").exists());
    assert!(!share.join("lower/etc/hostname").exists());
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    let guest = Guest::new();
    let mut container = guest.container();
    container.root.source = Source::Overlay {
        lower: Lower::Disk { number: 25 },
        upper: String::new(),
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
    let source = Source::Overlay {
        lower: Lower::Disk { number: 0 },
        upper: String::new(),
    };
    container.mounts.push(Mount::new(source, "/data"));
    let refused = guest
        .control()
        .try_ask(Action::Create(Box::new(container)))
        .unwrap_err();
    assert!(refused.1.contains("/data"), "{refused:?}");
}
