mod build;
mod damage;
mod erofs;
mod full;
mod life;
mod load;
mod save;

use std::process::Command;
use std::sync::Mutex;

use serde_json::json;

use super::find::FindError;
use super::load::LoadError;
use super::remove::RemoveError;
use super::*;
use crate::manifest::Compression;
use crate::source::SourceError;
use crate::testing::Tar;
use crate::testing::layout::{CONFIG_TYPE, INDEX_TYPE, Layout, MANIFEST_TYPE, compress, config};
use crate::{Progress, digest};

struct Bench {
    dir: tempfile::TempDir,
    notes: Mutex<Vec<String>>,
}

impl Progress for Bench {
    fn started(&self, _what: &Digest, _task: crate::Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &Digest, _bytes: u64) {}
    fn finished(&self, what: &Digest) {
        self.notes.lock().unwrap().push(format!("finished {what}"));
    }
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            notes: Mutex::default(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open(&self.root()).unwrap()
    }

    /// Writes a source beside the store.
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn layout(&self, name: &str, layout: &Layout) -> PathBuf {
        let path = self.dir.path().join(name);
        let _ = fs::remove_dir_all(&path);
        layout.write_dir(&path);
        path
    }

    fn load(&self, source: &Path) -> Result<Vec<Image>, LoadError> {
        let result = self.store().load(source, self);
        self.assert_consistent();
        result
    }

    /// Nothing is left over, and what the index names is there.
    fn assert_consistent(&self) {
        let store = self.store();
        let index = store.read_index().unwrap();
        let list = |path: PathBuf| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(list(store.tmp_path()), Vec::<String>::new());
        assert_eq!(
            list(store.blobs_path()),
            index.blobs().into_iter().collect::<Vec<_>>()
        );
        assert_eq!(
            list(store.layers_path()),
            index.layers.keys().cloned().collect::<Vec<_>>()
        );
        for name in index.blobs() {
            let bytes = fs::read(store.blobs_path().join(name)).unwrap();
            assert_eq!(digest::of(&bytes).digest(), name);
        }
    }
}

fn layer(name: &str) -> Vec<u8> {
    Tar::new().dir("./").file(name, name.as_bytes()).finish()
}

fn names(image: &Image) -> Vec<String> {
    image.names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_store_is_for_root_only() {
    let bench = Bench::new();
    let root = bench.dir.path().join("a/store");
    Store::open(&root).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
    Store::open(&root).unwrap();
}

#[test]
fn an_open_store_is_closed_to_others_again() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    Store::open(dir.path()).unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_directory_with_other_contents_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("thesis"), "").unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(StoreError::NotAStore { .. })
    ));
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_store_of_another_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(index::FILE_NAME), r#"{"version": 2}"#).unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(StoreError::Version {
            found: 2,
            supported: 1,
            ..
        })
    ));
}
