//! The sandbox as a whole, entered.

use std::{fs, thread};

use super::*;
use crate::config::{CollectionEntry, SharedFile};

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
