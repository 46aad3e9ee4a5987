//! The EROFS file of an image, looked into with the tools that made it.

use std::sync::Barrier;
use std::thread;

use super::*;

fn tools_are_missing() -> bool {
    let missing = ["mkfs.erofs", "fsck.erofs"]
        .into_iter()
        .any(|tool| Command::new(tool).arg("--help").output().is_err());
    if missing {
        eprintln!("==== SKIPPED: erofs-utils is not installed; apt-get install it ====");
    }
    missing
}

fn load(bench: &Bench, layers: &[&[u8]], name: &str) -> Image {
    let docker = Layout::docker(layers, &[name]);
    let images = bench.load(&bench.file("archive", &docker.tar()));
    images.unwrap().remove(0)
}

/// What is in the file, unpacked.
fn extract(file: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let output = Command::new("fsck.erofs")
        .arg(format!("--extract={}", to.path().display()))
        .args(["--force", "--preserve"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    to
}

#[test]
fn the_file_holds_the_merged_layers() {
    if tools_are_missing() {
        return;
    }
    let bench = Bench::new();
    let base = Tar::new()
        .entry(b'5', "./", "", 0o751, b"")
        .entry(b'0', "kept", "", 0o4755, b"kept")
        .file("gone", b"gone")
        .file("changed", b"old")
        .dir("hidden")
        .file("hidden/below", b"below")
        .symlink("link", "kept")
        .with_header("root", "", b"root", |header| {
            header.set_uid(100_000);
            header.set_gid(0);
        })
        .finish();
    let top = Tar::new()
        .file(".wh.gone", b"")
        .file("changed", b"new")
        .dir("hidden")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/above", b"above")
        .finish();
    let image = load(&bench, &[&base, &top], "merged");
    let store = bench.store();
    let path = store
        .erofs(&image, &store.use_image(&image).unwrap())
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);

    let tree = extract(&path);
    let at = |name: &str| tree.path().join(name);
    let list = |name: &str| {
        let entries = fs::read_dir(at(name)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list("."), ["changed", "hidden", "kept", "link", "root"]);
    assert_eq!(list("hidden"), ["above"]);
    assert_eq!(fs::read(at("changed")).unwrap(), b"new");
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("kept"));
    let of = |name: &str| fs::symlink_metadata(at(name)).unwrap();
    let kept = of("kept");
    // fsck.erofs changes the owner last, which takes set-user-id away.
    assert_eq!(kept.mode() & 0o777, 0o755);
    assert_eq!((kept.uid(), kept.gid()), (1000, 1001));
    assert_eq!(kept.mtime(), 1_234_567_890);
    assert_eq!((of("root").uid(), of("root").gid()), (100_000, 0));
    bench.assert_consistent();
}

#[test]
fn the_file_is_made_once_and_goes_with_its_image() {
    if tools_are_missing() {
        return;
    }
    let bench = Bench::new();
    let image = load(&bench, &[&layer("one")], "one");
    let store = bench.store();
    let before = store.usage().unwrap().bytes;
    let barrier = Barrier::new(3);
    let make = || {
        let store = bench.store();
        let in_use = store.use_image(&image).unwrap();
        barrier.wait();
        let path = store.erofs(&image, &in_use).unwrap();
        (fs::metadata(&path).unwrap().ino(), path)
    };
    let made: Vec<_> = thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(make));
        threads.map(|thread| thread.join().unwrap()).to_vec()
    });
    assert!(made.iter().all(|one| *one == made[0]), "{made:?}");
    let bytes = fs::metadata(&made[0].1).unwrap().len();
    let usage = store.usage().unwrap();
    assert_eq!(usage.bytes, before + bytes);
    assert_eq!(usage.images[0].unique, usage.bytes);
    assert_eq!(store.reclaimable(&Default::default()).unwrap(), usage.bytes);

    // A process that died left a file, and another that of an image which is gone.
    let orphan = made[0].1.with_file_name("0".repeat(64));
    fs::write(&orphan, "orphan").unwrap();
    fs::create_dir(bench.root().join("tmp/dead")).unwrap();
    bench.store();
    assert!(!orphan.exists() && made[0].1.exists());

    let removed = store.remove("one").unwrap();
    assert_eq!(removed.freed, usage.bytes);
    assert!(!made[0].1.exists());
    bench.assert_consistent();
}

#[test]
fn nothing_of_the_making_is_seen_on_the_host() {
    if tools_are_missing() {
        return;
    }
    let bench = Bench::new();
    let image = load(&bench, &[&layer("one"), &layer("two")], "one");
    let store = bench.store();
    let in_use = store.use_image(&image).unwrap();
    store.erofs(&image, &in_use).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = bench.root();
    assert!(!mounts.contains(root.to_str().unwrap()), "{mounts}");
}
