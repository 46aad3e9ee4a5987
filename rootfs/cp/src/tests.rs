//! Both ends together, and what hostile archives do not get.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use archive::{Kind, NewEntry, Timestamp, Writer};

use super::*;

const PLAIN: Rights = Rights {
    devices: false,
    set_id: false,
};

fn packed(root: &Path, path: &str, follow: bool) -> Result<Vec<u8>, CopyError> {
    let mut bytes = Vec::new();
    let source = Source {
        path: path.as_bytes(),
        follow,
    };
    let root = File::open(root).unwrap();
    pack(root.as_fd(), &source, &mut bytes, &mut |_| {})?;
    Ok(bytes)
}

fn unpacked(
    root: &Path,
    path: &str,
    what: What<'_>,
    bytes: &[u8],
) -> Result<Vec<String>, CopyError> {
    let mut notes = Vec::new();
    let to = Destination {
        path: path.as_bytes(),
        what,
        owner: Owner::Always {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        },
        rights: PLAIN,
    };
    let root = File::open(root).unwrap();
    let mut bytes = bytes;
    unpack(root.as_fd(), &to, &mut bytes, &mut |note| {
        notes.push(note);
    })?;
    Ok(notes)
}

/// Copies within a directory, as a user would by two paths.
fn copy(root: &Path, from: &str, to: &str) -> Result<(), CopyError> {
    let source = Source {
        path: from.as_bytes(),
        follow: false,
    };
    let bytes = packed(root, from, false)?;
    let name = source.name();
    unpacked(root, to, What::Copy { name: &name }, &bytes).map(drop)
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// An archive of these: kind, path, target or data, mode.
fn archive(entries: &[(Kind, &str, &str, u32)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (kind, path, content, mode) in entries {
        let is_file = *kind == Kind::Regular;
        let entry = NewEntry {
            kind: *kind,
            path: path.as_bytes(),
            link: if is_file { b"" } else { content.as_bytes() },
            mode: *mode,
            uid: 12,
            gid: 34,
            mtime: Timestamp::default(),
            size: if is_file { content.len() as u64 } else { 0 },
            device: (1, 3),
            xattrs: &[],
        };
        writer.entry(&entry).unwrap();
        if is_file {
            writer
                .data(content.as_bytes(), content.len() as u64)
                .unwrap();
        }
    }
    writer.finish().unwrap()
}

#[test]
fn a_tree_arrives_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let long = "n".repeat(200);
    fs::create_dir_all(at("src/sub").join(&long)).unwrap();
    fs::write(at("src/file"), "data").unwrap();
    fs::write(at("src/sub").join(&long).join(&long), "deep").unwrap();
    fs::hard_link(at("src/file"), at("src/sub/hard")).unwrap();
    symlink("/etc/passwd", at("src/link")).unwrap();
    fs::set_permissions(at("src/file"), fs::Permissions::from_mode(0o604)).unwrap();
    fs::set_permissions(at("src/sub"), fs::Permissions::from_mode(0o1711)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789);
    for name in ["src/file", "src/sub", "src"] {
        File::open(at(name)).unwrap().set_modified(time).unwrap();
    }
    fs::create_dir(at("into")).unwrap();
    copy(dir.path(), "/src", "/into").unwrap();
    let copied = |name: &str| at("into/src").join(name);
    assert_eq!(text(copied("file")), "data");
    assert_eq!(text(copied("sub").join(&long).join(&long)), "deep");
    assert_eq!(
        fs::read_link(copied("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    let (file, hard) = (
        copied("file").metadata().unwrap(),
        copied("sub/hard").metadata().unwrap(),
    );
    assert_eq!((file.ino(), file.mode() & 0o7777), (hard.ino(), 0o604));
    assert_eq!(copied("sub").metadata().unwrap().mode() & 0o7777, 0o1711);
    for name in ["file", "sub", ""] {
        assert_eq!(
            copied(name).metadata().unwrap().modified().unwrap(),
            time,
            "{name}"
        );
    }
}

#[test]
fn the_rules_of_docker_decide_on_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::create_dir(at("there")).unwrap();
    fs::write(at("tree/sub/inner"), "inner").unwrap();
    fs::write(at("file"), "file").unwrap();
    fs::write(at("other"), "other").unwrap();
    // Onto a new name, onto a file, into a directory.
    copy(root, "/file", "/new").unwrap();
    copy(root, "/file", "/other").unwrap();
    copy(root, "/file", "/there/").unwrap();
    for name in ["new", "other", "there/file"] {
        assert_eq!(text(at(name)), "file", "{name}");
    }
    // A directory becomes a new one, goes into one, or only what is in it does.
    copy(root, "/tree", "/made").unwrap();
    copy(root, "/tree", "/there").unwrap();
    copy(root, "/tree/.", "/there").unwrap();
    copy(root, "/tree/.", "/contents/").unwrap();
    for name in ["made", "there/tree", "there", "contents"] {
        assert_eq!(text(at(name).join("sub/inner")), "inner", "{name}");
    }
    // Onto what a link leads to, which stays.
    symlink("there", at("to-dir")).unwrap();
    symlink("/there/target", at("to-file")).unwrap();
    copy(root, "/file", "/to-file").unwrap();
    copy(root, "/other", "/to-dir").unwrap();
    assert_eq!(text(at("there/target")), "file");
    assert_eq!(text(at("there/other")), "file");
    assert!(at("to-file").is_symlink() && at("to-dir").is_symlink());
    for (from, to, message) in [
        ("/none", "/x", "Could not find the file /none"),
        ("/file", "/none/x", "Could not find the file /none/x"),
        ("/file", "/none/", "Could not find the file /none/"),
        ("/file", "/other/", "/other/ is not a directory"),
        ("/file/", "/x", "/file/ is not a directory"),
        ("/tree", "/file", "Cannot copy a directory to /file"),
        ("/file", "/file/x", "/file/x is not a directory"),
    ] {
        let error = copy(root, from, to).unwrap_err().to_string();
        assert!(error.starts_with(message), "{from} {to}: {error}");
    }
}

#[test]
fn a_link_is_copied_unless_it_is_to_be_followed_in_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/passwd"), "the root's own").unwrap();
    for (name, target) in [
        ("link", "/etc/passwd"),
        ("up", "../../../../../../etc/passwd"),
        ("chain", "link"),
    ] {
        symlink(target, root.join(name)).unwrap();
        let what = What::Copy {
            name: name.as_bytes(),
        };
        let bytes = packed(root, name, false).unwrap();
        unpacked(root, "/copy", what, &bytes).unwrap();
        assert_eq!(fs::read_link(root.join("copy")).unwrap(), Path::new(target));
        fs::remove_file(root.join("copy")).unwrap();
        let bytes = packed(root, name, true).unwrap();
        unpacked(root, "/copy", what, &bytes).unwrap();
        assert_eq!(text(root.join("copy")), "the root's own");
        fs::remove_file(root.join("copy")).unwrap();
    }
    symlink("loop", root.join("loop")).unwrap();
    assert!(packed(root, "/loop", true).is_err());
}

/// What none of the archives below may change.
fn canary(dir: &Path) -> impl Fn() {
    fs::create_dir_all(dir.join("out/dest")).unwrap();
    fs::write(dir.join("out/secret"), "secret").unwrap();
    fs::create_dir(dir.join("out/dir")).unwrap();
    let out = dir.join("out");
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    move || {
        assert_eq!(text(out.join("secret")), "secret");
        assert_eq!(names(&out), 3);
        assert_eq!(names(&out.join("dir")), 0);
        assert_eq!(out.join("secret").metadata().unwrap().nlink(), 1);
    }
}

#[test]
fn hostile_archives_stay_below_their_place() {
    use Kind::{Directory as D, HardLink as H, Regular as R, Symlink as S};
    let cases: &[&[(Kind, &str, &str, u32)]] = &[
        &[(D, "x/", "", 0o755), (R, "x/../../secret", "bad", 0o644)],
        &[(D, "x/", "", 0o755), (R, "../secret", "bad", 0o644)],
        &[(D, "x/", "", 0o755), (R, "sibling", "bad", 0o644)],
        &[(D, "x/", "", 0o755), (R, "xy", "bad", 0o644)],
        &[(D, "x/", "", 0o755), (R, "/out/secret", "bad", 0o644)],
        &[(D, "y/", "", 0o755)],
        &[(D, "./", "", 0o755), (R, "authorized_keys", "bad", 0o644)],
        &[
            (D, "x/", "", 0o755),
            (S, "x/l", "../../secret", 0),
            (R, "x/l/y", "bad", 0o644),
        ],
        &[
            (D, "x/", "", 0o755),
            (S, "x/l", "../../dir", 0),
            (R, "x/l/y", "bad", 0o644),
        ],
        &[
            (D, "x/", "", 0o755),
            (S, "x/l", "../../dir", 0),
            (D, "x/l/", "", 0o700),
        ],
        &[
            (D, "x/", "", 0o755),
            (S, "x/l", "../../dir", 0),
            (H, "x/h", "x/l/../secret", 0),
        ],
        &[(D, "x/", "", 0o755), (H, "x/h", "../secret", 0)],
        &[(D, "x/", "", 0o755), (H, "x/h", "/out/secret", 0)],
        &[
            (D, "x/", "", 0o755),
            (S, "x/l", "../..", 0),
            (H, "x/h", "x/l/secret", 0),
        ],
        &[(S, "x", "../dir", 0), (R, "x/y", "bad", 0o644)],
    ];
    for (number, entries) in cases.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let intact = canary(dir.path());
        let what = What::Copy { name: b"x" };
        let result = unpacked(dir.path(), "/out/dest", what, &archive(entries));
        intact();
        assert!(
            matches!(result, Err(CopyError::Refused { .. })),
            "{number}: {result:?}"
        );
        assert!(!dir.path().join("out/dest/authorized_keys").exists());
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_replaced_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let intact = canary(dir.path());
    let entries = [
        (Kind::Directory, "x/", "", 0o755),
        (Kind::Symlink, "x/l", "../../secret", 0),
        (Kind::Regular, "x/l", "mine", 0o600),
    ];
    let what = What::Copy { name: b"x" };
    unpacked(dir.path(), "/out/dest", what, &archive(&entries)).unwrap();
    intact();
    assert_eq!(text(dir.path().join("out/dest/x/l")), "mine");
}

#[test]
fn neither_devices_nor_set_user_id_programs_come_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let entries = [
        (Kind::Directory, "x/", "", 0o6755),
        (Kind::CharacterDevice, "x/null", "", 0o666),
        (Kind::BlockDevice, "x/disk", "", 0o666),
        (Kind::Regular, "x/su", "program", 0o6755),
        (Kind::Fifo, "x/pipe", "", 0o600),
    ];
    let what = What::Copy { name: b"x" };
    let notes = unpacked(dir.path(), "/", what, &archive(&entries)).unwrap();
    let at = |name: &str| dir.path().join("x").join(name);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(!at("null").exists() && !at("disk").exists());
    assert!(at("pipe").metadata().unwrap().file_type().is_fifo());
    for name in ["su", ""] {
        let metadata = at(name).metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o755, "{name}");
        assert_ne!(metadata.uid(), 12);
    }
}

#[test]
fn a_device_is_not_replaced_by_a_file() {
    let root = Path::new("/");
    let entries = [(Kind::Regular, "x", "bad", 0o644)];
    let what = What::Copy { name: b"x" };
    let error = unpacked(root, "/dev/null", what, &archive(&entries)).unwrap_err();
    assert!(matches!(error, CopyError::NotFile(_)), "{error}");
}

#[test]
fn an_archive_that_is_cut_or_lies_about_sizes_ends_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let what = What::Copy { name: b"x" };
    let whole = archive(&[(Kind::Regular, "x", &"data".repeat(500), 0o644)]);
    for length in [0, 100, 512, 700, 2000] {
        let error = unpacked(dir.path(), "/", what, &whole[..length]).unwrap_err();
        assert!(error.is_of_stream(), "{length}: {error}");
    }
    // 8 EiB are announced, and do not come.
    let mut huge = Vec::new();
    let mut writer = Writer::new(&mut huge);
    let entry = NewEntry {
        kind: Kind::Regular,
        path: b"x",
        link: b"",
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: u64::MAX >> 1,
        device: (0, 0),
        xattrs: &[],
    };
    writer.entry(&entry).unwrap();
    let error = unpacked(dir.path(), "/", what, &huge).unwrap_err();
    assert!(error.is_of_stream(), "{error}");
}

#[test]
fn any_archive_goes_through_links_of_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    symlink("/usr/lib", root.join("lib")).unwrap();
    symlink("/../../../../..", root.join("up")).unwrap();
    let entries = [
        (Kind::Regular, "lib/module", "module", 0o644),
        (Kind::Regular, "up/new/file", "file", 0o644),
        (Kind::HardLink, "again", "lib/module", 0),
    ];
    let mut bytes = archive(&entries);
    bytes.resize(10240, 0);
    unpacked(root, "/", What::Archive, &bytes).unwrap();
    assert_eq!(text(root.join("usr/lib/module")), "module");
    assert_eq!(text(root.join("new/file")), "file");
    assert_eq!(text(root.join("again")), "module");
    let error = unpacked(root, "/again", What::Archive, &bytes).unwrap_err();
    assert!(matches!(error, CopyError::NotDirectory(_)), "{error}");
    let outside = archive(&[(Kind::Regular, "../x", "", 0o644)]);
    assert!(unpacked(root, "/usr", What::Archive, &outside).is_err());
}

#[test]
fn a_tree_deeper_than_descriptors_go_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let deep = "d/".repeat(1500);
    fs::create_dir_all(root.join("src").join(&deep)).unwrap();
    fs::write(root.join("src").join(&deep).join("f"), "bottom").unwrap();
    copy(root, "/src", "/dst").unwrap();
    assert_eq!(text(root.join("dst").join(&deep).join("f")), "bottom");
}

#[test]
fn whatever_an_archive_became_nothing_beside_its_place_changes() {
    let entries = [
        (Kind::Directory, "x/", "", 0o755),
        (Kind::Symlink, "x/l", "../../dir", 0),
        (Kind::Regular, "x/l/y", "bad", 0o644),
        (Kind::HardLink, "x/h", "x/l/../secret", 0),
        (Kind::Regular, "x/f", "data", 0o644),
        (Kind::Fifo, "x/p", "", 0o644),
    ];
    let whole = archive(&entries);
    let dir = tempfile::tempdir().unwrap();
    let intact = canary(dir.path());
    let dest = dir.path().join("out/dest");
    let mut state = 1u64;
    let mut random = |below: usize| {
        // Knuth's generator: the same archives every time.
        state = state.wrapping_mul(6_364_136_223_846_793_005);
        state = state.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..500 {
        let mut bytes = whole.clone();
        for _ in 0..=random(3) {
            // Names, numbers and kinds are at the beginning of a header, targets follow.
            let header = random(bytes.len() / 512) * 512;
            let from = random(bytes.len() / 512) * 512 + random(200);
            let (at, value) = (header + random(200), bytes[from]);
            bytes[at] = [value, b"./xlhf0125\0"[random(11)]][random(2)];
        }
        for header in bytes.chunks_mut(512) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let what = What::Copy { name: b"x" };
        let _ = unpacked(dir.path(), "/out/dest", what, &bytes);
        intact();
        fs::remove_dir_all(&dest).unwrap();
        fs::create_dir(&dest).unwrap();
    }
}
