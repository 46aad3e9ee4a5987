//! Pushing an index with those of its images that are here.

use serde_json::json;

use super::*;
use crate::testing::layout::INDEX_TYPE;

const PLATFORMS: [&str; 2] = ["amd64", "arm64"];

/// A registry's contents: an index of one image for each platform, and its digest.
fn layout() -> (Layout, Digest) {
    let mut layout = Layout::new();
    let data = layer("data");
    let manifests: Vec<_> = PLATFORMS
        .iter()
        .map(|architecture| {
            let mut config = config(&[&data]);
            config["architecture"] = (*architecture).into();
            let mut manifest = layout.manifest(&config, &[(&data, Compression::Gzip)]);
            manifest["platform"] = json!({"os": "linux", "architecture": architecture});
            manifest
        })
        .collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": manifests,
    });
    let index = layout.blob(INDEX_TYPE, index.to_string().as_bytes());
    let digest = digest::parse(index["digest"].as_str().unwrap()).unwrap();
    layout.list(index, Some("multi"));
    (layout, digest)
}

impl Bench {
    /// Pulls `app:test` for each of `platforms`; gives the name.
    fn pull(&self, from: &Registry, platforms: &[&str]) -> String {
        let name = format!("{}/app:test", from.name());
        for platform in platforms {
            let options = PullOptions {
                platform: platform.parse().unwrap(),
                credentials: AuthFiles::default(),
                ..PullOptions::default()
            };
            let reference = name.parse().unwrap();
            self.store().pull(&reference, &options, &()).unwrap();
        }
        name
    }

    fn push_all(&self, name: &str, to: &Registry) -> Result<PushedIndex, PushError> {
        let destination = format!("{}/app:test", to.name()).parse().unwrap();
        let options = PushOptions::default();
        self.store()
            .push_all_platforms(name, &destination, &options, &())
    }

    fn has_blob(&self, digest: &Digest) -> bool {
        self.store().blob_path(digest).exists()
    }
}

#[test]
fn an_index_is_pushed_with_all_its_images() {
    let (layout, index) = layout();
    let bench = Bench::new();
    let name = bench.pull(&Registry::serve(&layout, |_, reply| reply), &PLATFORMS);
    let registry = bench.registry(|_, reply| reply);
    let done = bench.push_all(&name, &registry).unwrap();
    assert_eq!((done.images, done.missing.len()), (2, 0));
    assert_eq!(done.pushed.digest, index);
    assert_eq!(done.pushed.sent, 3, "one layer, two configurations");
    let last = registry.requests().pop().unwrap();
    assert_eq!(last.path, "/v2/app/manifests/test");
    assert_eq!(last.header("content-type"), INDEX_TYPE);

    // What was pushed is an index like the first one.
    let other = Bench::new();
    for platform in PLATFORMS {
        let copied = other.pull(&registry, &[platform]);
        let image = other.store().find(&copied).unwrap();
        assert_eq!(image.platform().0, format!("linux/{platform}"));
    }
    assert!(other.has_blob(&index));
}

#[test]
fn what_the_store_does_not_have_is_named() {
    let (layout, _) = layout();
    let bench = Bench::new();
    let name = bench.pull(&Registry::serve(&layout, |_, reply| reply), &["amd64"]);
    let registry = bench.registry(|_, reply| reply);
    let done = bench.push_all(&name, &registry).unwrap();
    assert_eq!((done.images, done.missing.len()), (1, 1));
    assert!(done.missing[0].what.starts_with("linux/arm64 ("));
    assert!(!done.missing[0].is_there);
}

#[test]
fn what_the_registry_has_is_not_missed_and_what_it_wants_is_told() {
    let (layout, index) = layout();
    let bench = Bench::new();
    let from = Registry::serve(&layout, |_, reply| reply);
    let name = bench.pull(&from, &["amd64"]);
    let shelf = bench.shelf.clone();
    // As most registries: an index only of what they have.
    let registry = bench.registry(move |request, reply| {
        let is_index = request.header("content-type") == INDEX_TYPE;
        if !is_index {
            return reply;
        }
        let mut shelf = shelf.lock().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&request.bytes).unwrap();
        let listed = document["manifests"].as_array().unwrap();
        let has = |listed: &serde_json::Value| {
            let digest = listed["digest"].as_str().unwrap();
            shelf.contains_key(&format!("/v2/app/manifests/{digest}"))
        };
        if listed.iter().all(has) {
            return reply;
        }
        shelf.remove("/v2/app/manifests/test");
        Reply::new(400, r#"{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}"#)
    });
    let err = bench.push_all(&name, &registry).unwrap_err();
    let message = err.to_string();
    assert!(matches!(err, PushError::Incomplete { .. }), "{message}");
    assert!(message.contains("linux/arm64 ("), "{message}");
    assert!(message.contains("hrun pull --platform"), "{message}");

    // Somebody else brought it.
    let list = layout.document(&layout.manifests[0]);
    let arm = list["manifests"][1]["digest"].as_str().unwrap();
    let path = format!("/v2/app/manifests/{arm}");
    bench.shelf.lock().unwrap().insert(path, b"{}".to_vec());
    let done = bench.push_all(&name, &registry).unwrap();
    assert_eq!(done.pushed.digest, index);
    assert!(done.missing.len() == 1 && done.missing[0].is_there);
}

#[test]
fn an_image_without_an_index_is_pushed_otherwise() {
    let bench = Bench::new();
    let registry = bench.registry(|_, reply| reply);
    let err = bench.push_all("base:base", &registry).unwrap_err();
    assert!(matches!(err, PushError::NoIndex(_)), "{err}");
    assert!(registry.requests().is_empty());
}

#[test]
fn an_index_stays_and_goes_with_its_images() {
    let (layout, index) = layout();
    let bench = Bench::new();
    let path = bench.dir.path().join("multi");
    layout.write_dir(&path);
    let loaded = bench.store().load(&path, &()).unwrap().remove(0);
    assert!(bench.has_blob(&index));
    // Pulled by the digest of its manifest it is the same image.
    let from = Registry::serve(&layout, |_, reply| reply);
    let pinned = format!("{}/app@{}", from.name(), loaded.manifest_digest);
    let options = PullOptions {
        credentials: AuthFiles::default(),
        ..PullOptions::default()
    };
    let pulled = bench
        .store()
        .pull(&pinned.parse().unwrap(), &options, &())
        .unwrap();
    assert_eq!(pulled.image.id, loaded.id);
    assert!(bench.has_blob(&index));
    let registry = bench.registry(|_, reply| reply);
    let done = bench.push_all("multi:multi", &registry).unwrap();
    assert_eq!(done.pushed.digest, index);

    for name in ["multi:multi", &pinned] {
        bench.store().remove(name).unwrap();
    }
    assert!(!bench.has_blob(&index));
}
