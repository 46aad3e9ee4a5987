//! The corpus: images that mean harm or make no sense, in one table.
//!
//! A case is a name, how the image is made, and what must happen: it is refused with a message
//! that says which entry or document is to blame, or it becomes something harmless, and can be
//! removed. Each is loaded, and pulled as well if a registry could have it. A canary lives beside
//! the store, where the cases try to get at it.

mod amounts;
mod archives;
mod attributes;
mod documents;
mod links;
mod names;
mod whiteouts;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::manifest::Compression;
use crate::registry::{Access, AuthFiles};
use crate::testing::Tar;
use crate::testing::layout::{Layout, config};
use crate::testing::registry::Registry;
use crate::{Digest, Image, Limits, Progress, PullOptions, Store, Task};

/// Name; how it is made, given the path of the canary; what must happen.
type Case = (&'static str, fn(&str) -> Made, Then);

/// The least number of cases: a table that lost some is no corpus.
const LEAST: usize = 60;

enum Then {
    /// The error has one of these texts. Where a pull says it otherwise than a load, both are here.
    Refused(&'static [&'static str]),
    /// It can be loaded, and this looks at what became of it.
    Becomes(fn(&Seen<'_>)),
}

/// A source of images, and the limits with which it is loaded.
struct Made {
    layout: Layout,
    /// Loaded from this file instead of the layout's directory.
    file: Option<Vec<u8>>,
    limits: Limits,
    pulled: bool,
}

impl Made {
    fn layout(layout: Layout) -> Self {
        Self {
            pulled: !layout.manifests.is_empty(),
            layout,
            file: None,
            limits: Limits::default(),
        }
    }

    fn limited(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// For what a registry does not serve, or serves otherwise.
    fn not_pulled(mut self) -> Self {
        self.pulled = false;
        self
    }
}

/// An image of this layer on top of a harmless one.
fn layer(tar: Tar) -> Made {
    bytes(&tar.finish())
}

fn bytes(layer: &[u8]) -> Made {
    stack(&[
        &Tar::new().dir("below").file("base", b"base").finish(),
        layer,
    ])
}

fn stack(layers: &[&[u8]]) -> Made {
    let mut layout = Layout::new();
    layout.image(layers, None);
    Made::layout(layout)
}

/// An image of one layer, as a blob that is compressed already.
fn blob(tar: &[u8], compression: Compression, blob: &[u8]) -> Made {
    let mut layout = Layout::new();
    let manifest = layout.manifest(&config(&[tar]), &[]);
    let mut document = layout.document(&manifest);
    document["layers"] = vec![layout.blob(compression.media_type().as_ref(), blob)].into();
    let manifest = layout.blob(
        crate::testing::layout::MANIFEST_TYPE,
        document.to_string().as_bytes(),
    );
    layout.list(manifest, None);
    Made::layout(layout)
}

/// What became of a case.
struct Seen<'a> {
    image: &'a Image,
    notes: &'a str,
    /// Path of the canary, as `make` was given it.
    canary: &'a str,
}

impl Seen<'_> {
    /// A path in the topmost layer.
    fn at(&self, path: &str) -> PathBuf {
        self.image.layers()[0].join(path)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        let path = self.at(path);
        assert!(path.symlink_metadata().unwrap().is_file(), "{path:?}");
        fs::read(path).unwrap()
    }

    fn lacks(&self, path: &str) {
        assert!(self.at(path).symlink_metadata().is_err(), "{path} is there");
    }

    fn is_whiteout(&self, path: &str) {
        let metadata = self.at(path).symlink_metadata().unwrap();
        assert!(metadata.file_type().is_char_device() && metadata.rdev() == 0);
    }

    fn mode(&self, path: &str) -> u32 {
        self.at(path).symlink_metadata().unwrap().mode() & 0o7777
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 1024];
        let n = rustix::fs::lgetxattr(self.at(path), name, &mut value).ok()?;
        value.truncate(n);
        Some(value)
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").is_some()
    }

    fn noted(&self, words: &str) {
        assert!(self.notes.contains(words), "{words}: {}", self.notes);
    }

    /// The names in a directory of the topmost layer.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A directory with a store and a canary.
struct Place {
    dir: tempfile::TempDir,
    notes: Mutex<Vec<String>>,
    before: Vec<String>,
}

impl Progress for Place {
    fn started(&self, _what: &Digest, _task: Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &Digest, _bytes: u64) {}
    fn finished(&self, _what: &Digest) {}
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir_all(canary.join("nest")).unwrap();
        fs::write(canary.join("bird"), "alive").unwrap();
        fs::write(canary.join("nest/egg"), "whole").unwrap();
        fs::set_permissions(canary.join("bird"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = describe(&canary);
        Self {
            dir,
            notes: Mutex::default(),
            before,
        }
    }

    fn canary(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    fn store(&self, limits: &Limits) -> Store {
        Store::open_with(&self.dir.path().join("store"), limits.clone()).unwrap()
    }

    fn load(&self, made: &Made) -> Result<Image, String> {
        let source = self.dir.path().join("source");
        match &made.file {
            Some(bytes) => fs::write(&source, bytes).unwrap(),
            None => made.layout.write_dir(&source),
        }
        let loaded = self.store(&made.limits).load(&source, self);
        if source.is_dir() {
            fs::remove_dir_all(&source).unwrap();
        } else {
            fs::remove_file(&source).unwrap();
        }
        loaded
            .map(|mut images| images.remove(0))
            .map_err(|err| chain(&err))
    }

    fn pull(&self, made: &Made) -> Result<Image, String> {
        let registry = Registry::serve(&made.layout, |_, reply| reply);
        let reference = format!("{}/app:test", registry.name()).parse().unwrap();
        let options = PullOptions {
            platform: "linux/amd64".parse().unwrap(),
            access: Access::default(),
            credentials: AuthFiles::default(),
            ..PullOptions::default()
        };
        let pulled = self
            .store(&made.limits)
            .pull(&reference, &options, self)
            .map(|pulled| pulled.image)
            .map_err(|err| chain(&err));
        if pulled.is_ok() {
            let downloads = self.dir.path().join("store/downloads");
            assert_eq!(fs::read_dir(downloads).unwrap().count(), 0);
        }
        pulled
    }

    /// Nothing outside of the store was touched, and nothing in it is left over.
    fn check(&self, images: usize) {
        assert_eq!(describe(&self.canary()), self.before, "the canary");
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "canary" && name != "store")
            .collect();
        assert!(names.is_empty(), "{names:?} is beside the store");
        let store = self.dir.path().join("store");
        assert_eq!(store.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            self.store(&Limits::default()).images().unwrap().len(),
            images
        );
        assert_eq!(fs::read_dir(store.join("tmp")).unwrap().count(), 0);
        if images == 0 {
            for directory in ["layers", "blobs/sha256"] {
                let left = fs::read_dir(store.join(directory)).unwrap().count();
                assert_eq!(left, 0, "{directory}");
            }
        }
    }
}

/// Every name below `root`, with all that a harmful image could change.
fn describe(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let (mode, owner) = (metadata.mode(), metadata.uid());
        let (changed, links) = ((metadata.ctime(), metadata.ctime_nsec()), metadata.nlink());
        let mut text = format!("{path:?} {mode:o} {owner} {changed:?} {links}");
        if metadata.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
        found.push(text);
    }
    found.sort();
    found
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(&format!(": {err}"));
        cause = err.source();
    }
    text
}

fn table() -> Vec<Case> {
    [
        names::CASES,
        links::CASES,
        whiteouts::CASES,
        attributes::CASES,
        archives::CASES,
        amounts::CASES,
        documents::CASES,
    ]
    .concat()
}

impl Clone for Then {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Then {}

/// Runs one case; panics say what went wrong.
fn run(place: &Place, make: fn(&str) -> Made, then: Then, pull: bool) {
    let canary = place.canary();
    let canary = canary.to_str().unwrap();
    let made = make(canary);
    if pull && !made.pulled {
        return;
    }
    place.notes.lock().unwrap().clear();
    let result = match pull {
        true => place.pull(&made),
        false => place.load(&made),
    };
    place.check(usize::from(result.is_ok()));
    match (then, result) {
        (Then::Refused(texts), Err(err)) => {
            let said = texts.iter().any(|text| err.contains(text));
            assert!(said, "another error: {err}");
            assert!(!err.contains('\x1b'), "it would steer the terminal: {err}");
        }
        (Then::Refused(_), Ok(image)) => panic!("not refused: {image:?}"),
        (Then::Becomes(_), Err(err)) => panic!("refused: {err}"),
        (Then::Becomes(look), Ok(image)) => {
            look(&Seen {
                image: &image,
                notes: &place.notes.lock().unwrap().join("\n"),
                canary,
            });
            // What was harmless to make is harmless to delete.
            let store = place.store(&Limits::default());
            store.remove(image.id.digest()).unwrap();
            place.check(0);
        }
    }
}

/// Runs the table; reports all cases that fail, by name.
fn run_all(pull: bool) {
    let failed = Mutex::new(Vec::new());
    // Most of the time a disk is waited for.
    std::thread::scope(|scope| {
        for cases in table().chunks(LEAST) {
            let cases = cases.to_vec();
            let failed = &failed;
            scope.spawn(move || {
                let mut place = Place::new();
                for (name, make, then) in cases {
                    let case = std::panic::AssertUnwindSafe(|| run(&place, make, then, pull));
                    if std::panic::catch_unwind(case).is_err() {
                        failed.lock().unwrap().push(name);
                        // The next case shall not suffer for it.
                        place = Place::new();
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "these cases failed: {failed:#?}");
}

#[test]
fn every_case_of_the_corpus_is_loaded_without_harm() {
    run_all(false);
}

#[test]
fn every_case_of_the_corpus_is_pulled_without_harm() {
    run_all(true);
}

#[test]
fn the_corpus_has_its_cases_and_each_once() {
    let mut names: Vec<_> = table().into_iter().map(|(name, ..)| name).collect();
    assert!(names.len() >= LEAST, "{} cases are left", names.len());
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two cases have one name");
}
