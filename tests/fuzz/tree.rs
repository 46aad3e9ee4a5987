//! What the targets that unpack archives share: a place with a canary beside it.

use std::fs::{self, Metadata};
use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;

const BLOCK: usize = 512;

/// A directory in memory with a canary in it.
pub fn bench() -> &'static Path {
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

/// Checks that nothing beside what is tested has changed, and that this is gone.
pub fn canary_lives(dir: &Path) {
    let bird = fs::read_to_string(dir.join("canary/bird"));
    assert_eq!(bird.ok().as_deref(), Some("alive"));
    for path in [dir.join("canary"), dir.to_owned()] {
        let found = fs::read_dir(path).expect("it was there before").count();
        assert_eq!(found, 1);
    }
}

/// Looks at all files of a tree and removes it. It may be too deep for a recursion: directories move
/// up before they go.
pub fn remove(tree: &Path, dir: &Path, look: impl Fn(&Metadata)) {
    let numbered = |number: usize| dir.join(number.to_string());
    fs::rename(tree, numbered(0)).expect("the tree is there");
    let mut found = 1;
    let mut removed = 0;
    while removed < found {
        let directory = numbered(removed);
        for entry in fs::read_dir(&directory).expect("it was there before") {
            let entry = entry.expect("a directory in memory");
            let metadata = entry.metadata().expect("a directory in memory");
            look(&metadata);
            if metadata.is_dir() {
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
pub fn with_checksums(data: &[u8]) -> Vec<u8> {
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
