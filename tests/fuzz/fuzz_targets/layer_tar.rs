//! A layer's archive, unpacked for real: whatever it is, nothing beside its directory changes.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use image::Limits;
use image::layer::unpack;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const BLOCK: usize = 512;

fuzz_target!(|data: &[u8]| {
    let dir = bench();
    let (root, trash) = (dir.join("root"), dir.join("trash"));
    for path in [&root, &trash] {
        fs::create_dir(path).expect("the directory was removed after the run before");
    }
    let mut limits = Limits::default();
    limits.entries = 200;
    limits.layer_bytes = 1 << 20;
    let _ = unpack(
        with_checksums(data).as_slice(),
        File::open(&root).expect("it was just made").as_fd(),
        &[],
        File::open(&trash).expect("it was just made").into(),
        &limits,
        &(),
    );
    assert_eq!(
        fs::read_to_string(dir.join("canary/bird")).ok().as_deref(),
        Some("alive")
    );
    fs::remove_dir(&trash).expect("what was replaced is gone");
    remove(&root, dir);
    for (path, entries) in [(dir.join("canary"), 1), (dir.to_owned(), 1)] {
        let found = fs::read_dir(path).expect("it was there before").count();
        assert_eq!(found, entries);
    }
});

/// A directory in memory with a canary in it.
fn bench() -> &'static Path {
    static BENCH: OnceLock<TempDir> = OnceLock::new();
    BENCH
        .get_or_init(|| {
            let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
            fs::create_dir(dir.path().join("canary")).expect("an empty directory");
            fs::write(dir.path().join("canary/bird"), "alive").expect("an empty directory");
            dir
        })
        .path()
}

/// Removes a tree that may be too deep for a recursion: directories move up before they go.
fn remove(tree: &Path, dir: &Path) {
    let numbered = |number: usize| dir.join(number.to_string());
    fs::rename(tree, numbered(0)).expect("the tree is there");
    let mut found = 1;
    let mut removed = 0;
    while removed < found {
        let directory = numbered(removed);
        for entry in fs::read_dir(&directory).expect("it was there before") {
            let entry = entry.expect("a directory in memory");
            if entry.file_type().expect("a directory in memory").is_dir() {
                fs::rename(entry.path(), numbered(found)).expect("nothing is in the way");
                found += 1;
            } else {
                fs::remove_file(entry.path()).expect("root may remove it");
            }
        }
        fs::remove_dir(&directory).expect("it is empty");
        removed += 1;
    }
}

/// Puts the right checksum in every header, which mutation would not find.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    let mut at = 0;
    while let Some(header) = data.get_mut(at..at + BLOCK) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        if sum != 8 * u32::from(b' ') {
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        } else {
            header[148..156].fill(0);
        }
        let digits = header[124..136]
            .iter()
            .take_while(|b| matches!(b, b'0'..=b'7'));
        let size = digits.fold(0usize, |n, b| n * 8 + usize::from(b - b'0'));
        at = at
            .saturating_add(BLOCK)
            .saturating_add(size.next_multiple_of(BLOCK));
    }
    data
}
