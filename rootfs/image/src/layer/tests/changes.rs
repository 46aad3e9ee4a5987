//! From an upper directory of overlayfs to a layer and back.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use rustix::fs::{
    CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use super::*;
use crate::layer::{ChangeKind, changes, write, write_merged};

/// An upper directory on top of two layers.
struct Container {
    dir: tempfile::TempDir,
    notes: Bench,
}

impl Container {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for layer in ["upper", "top", "base", "work", "merged", "again"] {
            fs::create_dir(dir.path().join(layer)).unwrap();
        }
        Self {
            dir,
            notes: Bench::new(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn lower(&self) -> [PathBuf; 2] {
        [self.at("top"), self.at("base")]
    }

    fn file(&self, path: &str, contents: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn whiteout(&self, path: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn opaque(&self, path: &str) {
        fs::create_dir_all(self.at(path)).unwrap();
        let name = "trusted.overlay.opaque";
        lsetxattr(self.at(path), name, b"y", XattrFlags::empty()).unwrap();
    }

    /// Gives everything one time, so that only what a test changes differs.
    fn settle(&self) {
        let script = "find upper top base -exec touch -h -d @1234567890 {} +";
        let touched = Command::new("sh")
            .args(["-c", script])
            .current_dir(self.dir.path())
            .status()
            .unwrap();
        assert!(touched.success());
    }

    fn diff(&self) -> Vec<String> {
        self.diff_without(&[])
    }

    fn diff_without(&self, ignored: &[&str]) -> Vec<String> {
        let limits = Limits::default();
        changes(&self.at("upper"), &self.lower(), ignored, &limits)
            .unwrap()
            .list()
            .into_iter()
            .map(|change| {
                let letter = match change.kind {
                    ChangeKind::Added => "A",
                    ChangeKind::Modified => "C",
                    ChangeKind::Deleted => "D",
                };
                format!("{letter} {}", String::from_utf8(change.path).unwrap())
            })
            .collect()
    }

    fn layer(&self) -> Vec<u8> {
        let limits = Limits::default();
        let changes = changes(&self.at("upper"), &self.lower(), &[], &limits).unwrap();
        let mut layer = Vec::new();
        write(
            &self.at("upper"),
            &changes,
            &mut layer,
            &limits,
            &self.notes,
        )
        .unwrap();
        layer
    }

    /// The names in an archive, in their order.
    fn names(layer: &[u8]) -> Vec<String> {
        let mut archive = Archive::new(Stream(layer), 1 << 20);
        std::iter::from_fn(|| archive.next_entry().unwrap())
            .map(|entry| String::from_utf8(entry.path).unwrap())
            .collect()
    }

    /// What the layers show together: type, mode, owner, links, time, target, name and contents.
    fn shown(&self, top: &str) -> String {
        let lower: Vec<String> = [self.at(top)]
            .iter()
            .chain(&self.lower())
            .map(|layer| layer.to_str().unwrap().to_owned())
            .collect();
        let script = r#"
            mount -t overlay overlay -o "ro,lowerdir=$0" merged && cd merged &&
            find . -type d -printf 'd %m %U:%G %T@ %P\n' -o \
                -printf '%y %m %U:%G %n %T@ %l %P\n' | sort &&
            find . -type f -print0 | sort -z | xargs -0r sha256sum
        "#;
        let shown = Command::new("unshare")
            .args(["-m", "sh", "-c", script, &lower.join(":")])
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(shown.status.success(), "{shown:?}");
        String::from_utf8_lossy(&shown.stdout).into_owned()
    }

    /// Unpacks a layer where [`Container::shown`] finds it as "again".
    fn unpack(&self, layer: &[u8]) -> Summary {
        let trash = self.at("trash");
        fs::create_dir(&trash).unwrap();
        unpack(
            layer,
            fs::File::open(self.at("again")).unwrap().as_fd(),
            &self.lower(),
            fs::File::open(&trash).unwrap().into(),
            &Limits::default(),
            &self.notes,
        )
        .unwrap()
    }
}

#[test]
fn what_was_added_changed_and_deleted_is_told_apart() {
    let container = Container::new();
    container.file("base/etc/passwd", "root");
    container.file("base/etc/group", "root");
    container.file("base/home/me/notes", "x");
    container.file("top/etc/issue", "hello");
    container.whiteout("top/etc/motd");
    container.file("base/etc/motd", "hidden");
    container.file("upper/new", "x");
    container.file("upper/etc/issue", "other");
    container.whiteout("upper/etc/group");
    container.whiteout("upper/home");
    container.whiteout("upper/never");
    container.file("upper/etc/motd", "again");
    container.settle();
    assert_eq!(
        container.diff(),
        [
            "C /etc",
            "D /etc/group",
            "C /etc/issue",
            "A /etc/motd",
            "D /home",
            "A /new"
        ]
    );
}

#[test]
fn what_was_only_copied_up_is_no_change() {
    let container = Container::new();
    container.file("base/deep/er/file", "same");
    container.file("upper/deep/er/file", "same");
    container.settle();
    assert!(container.diff().is_empty());
    assert_eq!(Container::names(&container.layer()), ["./"]);
    // The same length and time, and yet another file.
    container.file("upper/deep/er/file", "SAME");
    container.settle();
    assert_eq!(
        container.diff(),
        ["C /deep", "C /deep/er", "C /deep/er/file"]
    );
}

#[test]
fn owners_modes_times_and_attributes_count() {
    type Edit = fn(&Path);
    let edits: [Edit; 4] = [
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap(),
        |path| chown(path, Some(7), None).unwrap(),
        |path| {
            let time = Timespec {
                tv_sec: 5,
                tv_nsec: 0,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
        },
        |path| lsetxattr(path, "user.a", b"b", XattrFlags::empty()).unwrap(),
    ];
    for edit in edits {
        for name in ["file", "directory"] {
            let container = Container::new();
            for layer in ["base", "upper"] {
                container.file(&format!("{layer}/file"), "x");
                fs::create_dir(container.at(&format!("{layer}/directory"))).unwrap();
            }
            container.settle();
            edit(&container.at(&format!("upper/{name}")));
            assert_eq!(container.diff(), [format!("C /{name}")]);
        }
    }
}

#[test]
fn a_directory_that_replaces_another_hides_what_that_had() {
    let container = Container::new();
    container.file("base/d/gone", "x");
    container.file("base/d/kept", "x");
    container.file("base/d/sub/gone", "x");
    container.file("top/d/top", "x");
    container.opaque("upper/d");
    container.file("upper/d/kept", "x");
    container.file("upper/d/sub/new", "x");
    container.settle();
    assert_eq!(
        container.diff(),
        [
            "C /d",
            "D /d/gone",
            "C /d/sub",
            "D /d/sub/gone",
            "A /d/sub/new",
            "D /d/top"
        ]
    );
    assert_eq!(
        Container::names(&container.layer()),
        [
            "./",
            "d/",
            "d/.wh..wh..opq",
            "d/kept",
            "d/sub/",
            "d/sub/new"
        ]
    );
}

#[test]
fn what_the_runtime_put_there_is_ignored() {
    let container = Container::new();
    container.file("base/etc/passwd", "x");
    container.settle();
    container.file("upper/etc/hosts", "localhost");
    container.file("upper/proc/x", "x");
    let ignored = ["/etc/hosts", "/proc"];
    assert!(container.diff_without(&ignored).is_empty());
    container.file("upper/etc/new", "x");
    assert_eq!(container.diff_without(&ignored), ["C /etc", "A /etc/new"]);
}

/// Everything a layer can hold.
fn motley() -> Container {
    let container = Container::new();
    container.file("base/etc/passwd", "root");
    container.file("base/etc/group", "root");
    container.file("base/replaced/old", "x");
    container.file("base/was-file", "x");
    container.file("base/was-dir/inside", "x");
    container.settle();
    container.file("upper/etc/passwd", "me");
    container.whiteout("upper/etc/group");
    container.opaque("upper/replaced");
    container.file("upper/replaced/new", "y");
    container.file("upper/was-file/inside", "x");
    container.file("upper/was-dir", "x");
    container.file("upper/suid", "#!");
    chown(container.at("upper/suid"), Some(1000), Some(3_000_000)).unwrap();
    let mode = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(container.at("upper/suid"), mode).unwrap();
    let name = "security.capability";
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    container.file("upper/capable", "x");
    lsetxattr(
        container.at("upper/capable"),
        name,
        &capability,
        XattrFlags::empty(),
    )
    .unwrap();
    lsetxattr(
        container.at("upper/etc"),
        "user.note",
        b"a\nb\0",
        XattrFlags::empty(),
    )
    .unwrap();
    fs::hard_link(container.at("upper/suid"), container.at("upper/a-link")).unwrap();
    symlink("/etc/passwd", container.at("upper/soft")).unwrap();
    mknodat(
        CWD,
        container.at("upper/fifo"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    container.file(
        &format!("upper/{}/{}", "long".repeat(50), "ö".repeat(60)),
        "x",
    );
    fs::write(
        container
            .at("upper")
            .join(std::ffi::OsStr::from_bytes(b"\xff\n")),
        "x",
    )
    .unwrap();
    fs::set_permissions(container.at("upper"), fs::Permissions::from_mode(0o1751)).unwrap();
    container
}

#[test]
fn a_layer_that_is_unpacked_shows_what_the_container_showed() {
    let container = motley();
    let layer = container.layer();
    let summary = container.unpack(&layer);
    assert!(!summary.depends_on_lower);
    assert_eq!(container.shown("again"), container.shown("upper"));
    for (path, name) in [("capable", "security.capability"), ("etc", "user.note")] {
        let of = |layer: &str| xattr(&container.at(&format!("{layer}/{path}")), name);
        assert!(of("again").is_some());
        assert_eq!(of("again"), of("upper"));
    }
    assert_eq!(container.layer(), layer, "the same bytes again");
    assert!(
        container.notes.notes().is_empty(),
        "{}",
        container.notes.notes()
    );
}

#[test]
fn an_export_has_what_all_layers_show_together() {
    let container = motley();
    let mut archive = Vec::new();
    let layers = [&[container.at("upper")][..], &container.lower()].concat();
    let limits = Limits::default();
    write_merged(&layers, &["/soft"], &mut archive, &limits, &container.notes).unwrap();
    let expected = container.shown("upper");
    container.unpack(&archive);
    // Nothing of it comes from below.
    for layer in ["base", "top"] {
        fs::remove_dir_all(container.at(layer)).unwrap();
        fs::create_dir(container.at(layer)).unwrap();
    }
    let shown = container.shown("again");
    let expected: Vec<&str> = expected.lines().filter(|l| !l.ends_with(" soft")).collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn what_no_layer_can_hold_is_left_out_with_a_note() {
    let container = Container::new();
    container.file("upper/.wh.evil", "x");
    container.file("upper/.wh.dir/x", "x");
    container.file("upper/good", "x");
    std::os::unix::net::UnixListener::bind(container.at("upper/socket")).unwrap();
    assert_eq!(Container::names(&container.layer()), ["./", "good"]);
    let notes = container.notes.notes();
    assert!(
        notes.contains(".wh.evil") && notes.contains("socket"),
        "{notes}"
    );
}

#[test]
fn overlayfs_references_are_refused() {
    for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        let container = Container::new();
        container.file("upper/x", "x");
        lsetxattr(container.at("upper/x"), name, b"/y", XattrFlags::empty()).unwrap();
        let limits = Limits::default();
        let err = changes(&container.at("upper"), &container.lower(), &[], &limits).unwrap_err();
        assert!(matches!(err, DiffError::Form { .. }), "{err:?}");
    }
}

#[test]
fn limits_hold_for_what_a_container_wrote() {
    let container = Container::new();
    container.file("upper/a", "x");
    container.file("upper/b", "x");
    let limits = Limits {
        entries: 1,
        ..Limits::default()
    };
    let find = |limits| changes(&container.at("upper"), &container.lower(), &[], limits);
    assert!(matches!(
        find(&limits),
        Err(DiffError::TooManyEntries { limit: 1 })
    ));
    let limits = Limits {
        layer_bytes: 1,
        ..Limits::default()
    };
    let changes = find(&limits).unwrap();
    let written = write(
        &container.at("upper"),
        &changes,
        std::io::sink(),
        &limits,
        &(),
    );
    assert!(matches!(written, Err(DiffError::TooLarge { limit: 1 })));
}

#[test]
fn links_in_a_hostile_tree_are_not_followed() {
    let container = Container::new();
    container.file("outside/secret", "secret");
    symlink("../outside", container.at("upper/link")).unwrap();
    symlink("../outside/secret", container.at("upper/file")).unwrap();
    let layer = container.layer();
    assert_eq!(Container::names(&layer), ["./", "file", "link"]);
}
