//! Pulling from registries that are good, lame, or evil.

mod authorization;
mod faults;
mod hostile;
mod mirrors;

use std::sync::Mutex;

use super::*;
use crate::manifest::Compression;
use crate::progress::Task;
use crate::testing::Tar;
use crate::testing::layout::{INDEX_TYPE, Layout, config};
use crate::testing::registry::{Registry, Reply, Request};

/// A store of its own, and what pulls into it said.
struct Bench {
    dir: tempfile::TempDir,
    notes: Mutex<Vec<String>>,
    options: PullOptions,
}

impl Progress for Bench {
    fn started(&self, _what: &Digest, _task: Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &Digest, _bytes: u64) {}
    fn finished(&self, _what: &Digest) {}
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            notes: Mutex::default(),
            options: PullOptions {
                platform: "linux/amd64".parse().unwrap(),
                access: Access::default(),
                credentials: AuthFiles::default(),
                mirrors: Mirrors::default(),
            },
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).unwrap()
    }

    fn pull(&self, registry: &Registry) -> Result<Pulled, PullError> {
        self.pull_as(registry, "app:test")
    }

    fn pull_as(&self, registry: &Registry, name: &str) -> Result<Pulled, PullError> {
        let reference = format!("{}/{name}", registry.name()).parse().unwrap();
        self.store().pull(&reference, &self.options, self)
    }

    /// The error of a pull, with all its causes, and that nothing of it is in the store.
    fn refused(&self, registry: &Registry) -> String {
        let err = self.pull(registry).unwrap_err();
        assert!(self.store().images().unwrap().is_empty());
        for directory in ["tmp", "layers", "blobs/sha256"] {
            assert!(self.files(directory).is_empty(), "{directory}");
        }
        chain(&err)
    }

    fn files(&self, directory: &str) -> Vec<String> {
        let path = self.dir.path().join("store").join(directory);
        let entries = fs::read_dir(path).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Puts bytes where an interrupted download has them.
    fn leave(&self, digest: &Digest, bytes: &[u8]) -> PathBuf {
        let path = self.store().downloads_path().join(digest.digest());
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Random enough not to be compressed to nothing.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..300_000).map(|_| next()).collect()
}

fn layer(name: &str, seed: u32) -> Vec<u8> {
    Tar::new().file(name, &noise(seed)).finish()
}

/// One image of two layers; gives the digest of the second layer's blob.
fn two_layers() -> (Layout, Digest) {
    let mut layout = Layout::new();
    layout.image(&[&layer("a", 1), &layer("b", 2)], None);
    let digest = last_layer(&layout);
    (layout, digest)
}

fn manifest_of(layout: &Layout) -> serde_json::Value {
    let digest = layout.manifests[0]["digest"].as_str().unwrap();
    let file = format!("blobs/{}", digest.replace(':', "/"));
    serde_json::from_slice(&layout.files[&file]).unwrap()
}

fn last_layer(layout: &Layout) -> Digest {
    let manifest = manifest_of(layout);
    let layers = manifest["layers"].as_array().unwrap();
    digest::parse(layers.last().unwrap()["digest"].as_str().unwrap()).unwrap()
}

fn blob_bytes<'a>(layout: &'a Layout, digest: &Digest) -> &'a [u8] {
    &layout.files[&format!("blobs/sha256/{}", digest.digest())]
}

fn honest(_: &Request, reply: Reply) -> Reply {
    reply
}

#[test]
fn an_image_is_pulled_once_and_then_only_asked_for() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    let pulled = bench.pull(&registry).unwrap();
    assert!(pulled.changed);
    assert_eq!(pulled.image.names[0].tag(), Some("test"));
    assert_eq!(
        fs::read(pulled.image.layers()[0].join("b")).unwrap(),
        noise(2)
    );
    assert_eq!(registry.take_blob_requests().len(), 3);
    assert!(bench.files("downloads").is_empty());

    let again = bench.pull(&registry).unwrap();
    assert!(!again.changed);
    assert_eq!(again.image.id, pulled.image.id);
    let requests = registry.take_blob_requests();
    assert_eq!(requests.len(), 1, "the configuration alone: {requests:?}");
}

#[test]
fn what_was_loaded_is_not_downloaded() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    let source = bench.dir.path().join("layout");
    layout.write_dir(&source);
    bench.store().load(&source, &()).unwrap();
    bench.pull(&registry).unwrap();
    assert_eq!(registry.take_blob_requests().len(), 1);
}

#[test]
fn layers_of_every_compression_are_pulled() {
    let (a, b, c) = (layer("a", 1), layer("b", 2), layer("c", 3));
    let mut layout = Layout::new();
    let layers = [
        (a.as_slice(), Compression::None),
        (&b, Compression::Gzip),
        (&c, Compression::Zstd),
    ];
    let manifest = layout.manifest(&config(&[&a, &b, &c]), &layers);
    layout.list(manifest, None);
    let registry = Registry::serve(&layout, honest);
    let pulled = Bench::new().pull(&registry).unwrap();
    assert_eq!(pulled.image.layers().len(), 3);
}

/// An index of an image for each architecture.
fn index(architectures: &[&str]) -> Layout {
    let mut layout = Layout::new();
    let manifests: Vec<_> = architectures
        .iter()
        .map(|architecture| {
            let tar = layer(architecture, 7);
            let mut config = config(&[&tar]);
            config["architecture"] = (*architecture).into();
            let mut manifest = layout.manifest(&config, &[(&tar, Compression::Gzip)]);
            manifest["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
            manifest
        })
        .collect();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests,
    });
    let index = layout.blob(INDEX_TYPE, index.to_string().as_bytes());
    layout.list(index, None);
    layout
}

#[test]
fn an_index_gives_the_image_for_the_platform() {
    let registry = Registry::serve(&index(&["arm64", "amd64", "s390x"]), honest);
    let mut bench = Bench::new();
    let pulled = bench.pull(&registry).unwrap();
    assert_eq!(pulled.image.platform().0, "linux/amd64");
    bench.options.platform = "linux/arm64".parse().unwrap();
    let pulled = bench.pull(&registry).unwrap();
    assert_eq!(pulled.image.platform().0, "linux/arm64");
    bench.options.platform = "linux/riscv64".parse().unwrap();
    let err = chain(&bench.pull(&registry).unwrap_err());
    assert!(
        err.contains("not there for linux/riscv64, only for linux/amd64, linux/arm64, linux/s390x"),
        "{err}"
    );
}

#[test]
fn a_digest_pins_an_index_or_a_manifest_and_finds_it_again() {
    let layout = index(&["amd64"]);
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    let by_tag = bench.pull(&registry).unwrap();
    for digest in [&by_tag.digest, &by_tag.image.manifest_digest] {
        let name = format!("app:ignored@{digest}");
        let pulled = bench.pull_as(&registry, &name).unwrap();
        assert_eq!(pulled.image.id, by_tag.image.id);
        let full = format!("{}/{name}", registry.name());
        assert_eq!(bench.store().find(&full).unwrap().id, by_tag.image.id);
    }
    let other = format!("{}/app@sha256:{:064}", registry.name(), 0);
    assert!(bench.store().find(&other).is_err());
}

#[test]
fn several_pulls_at_once_download_each_layer_once() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    bench.store();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.pull(&registry).unwrap());
        }
    });
    let mut layers: Vec<String> = registry
        .take_blob_requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    layers.sort();
    let manifest = manifest_of(&layout);
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let count = layers.iter().filter(|path| path.ends_with(digest)).count();
        assert_eq!(count, 1, "{layers:?}");
    }
    assert!(bench.files("downloads").is_empty());
}

#[test]
fn others_may_clear_up_in_the_middle_of_a_pull() {
    let (layout, digest) = two_layers();
    let bench = Bench::new();
    let root = bench.dir.path().join("store");
    let path = digest.to_string();
    let registry = Registry::serve(&layout, move |request, reply| {
        if request.path.ends_with(&path) {
            // The next command clears leftovers, as a prune does downloads.
            let store = Store::open(&root).unwrap();
            assert_eq!(store.prune_downloads().unwrap(), 0);
        }
        reply
    });
    bench.pull(&registry).unwrap();
}

#[test]
fn a_layer_that_is_removed_under_a_pull_is_downloaded_after_all() {
    let (base, other) = (layer("a", 1), layer("other", 3));
    let mut known = Layout::new();
    known.image(&[&base, &other], Some("known:1"));
    let (layout, digest) = two_layers();
    let bench = Bench::new();
    let source = bench.dir.path().join("known");
    known.write_dir(&source);
    bench.store().load(&source, &()).unwrap();

    let root = bench.dir.path().join("store");
    let path = digest.to_string();
    let registry = Registry::serve(&layout, move |request, reply| {
        if request.path.ends_with(&path) {
            // It is there no more when the download ends; asked again it is gone already.
            let _ = Store::open(&root).unwrap().remove("known:1");
        }
        reply
    });
    bench.pull(&registry).unwrap();
    let requests = registry.take_blob_requests();
    assert_eq!(
        requests.len(),
        3,
        "configuration and both layers: {requests:?}"
    );
    assert!(bench.files("downloads").is_empty());
}

#[test]
fn forgotten_downloads_are_removed() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    let week = std::time::Duration::from_secs(8 * 24 * 3600);
    let old = bench.leave(&digest::of(b"old"), b"o");
    let file = fs::File::options().write(true).open(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - week)
        .unwrap();
    let young = bench.leave(&digest::of(b"young"), b"y");
    bench.pull(&registry).unwrap();
    assert!(!old.exists() && young.exists());
}
