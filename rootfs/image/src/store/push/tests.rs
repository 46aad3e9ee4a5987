//! Pushing to registries that take things, lamely, or not at all.

mod all;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::manifest::Compression;
use crate::testing::Tar;
use crate::testing::layout::{Layout, config};
use crate::testing::registry::{Registry, Reply, Request};
use crate::{PullOptions, digest};

/// What a registry was given, by address.
type Shelf = Arc<Mutex<HashMap<String, Vec<u8>>>>;

struct Bench {
    dir: tempfile::TempDir,
    shelf: Shelf,
}

impl Bench {
    /// A store with the image "base:base" of two layers.
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
            shelf: Shelf::default(),
        };
        let (a, b) = (layer("a"), layer("b"));
        let mut layout = Layout::new();
        let manifest = layout.manifest(
            &config(&[&a, &b]),
            &[(&a, Compression::Gzip), (&b, Compression::Zstd)],
        );
        layout.list(manifest, Some("base"));
        let path = bench.dir.path().join("base");
        layout.write_dir(&path);
        bench.store().load(&path, &()).unwrap();
        bench
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).unwrap()
    }

    /// A registry that takes everything; `change` may turn each reply into another.
    fn registry(
        &self,
        change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Registry {
        let shelf = self.shelf.clone();
        Registry::start(move |request| change(request, answer(&shelf, request)))
    }

    fn push(&self, registry: &Registry) -> Result<Pushed, PushError> {
        let destination = format!("{}/app:test", registry.name()).parse().unwrap();
        self.store()
            .push("base:base", &destination, &PushOptions::default(), &())
    }

    fn refused(&self, registry: &Registry) -> String {
        let err = self.push(registry).unwrap_err();
        let shelf = self.shelf.lock().unwrap();
        assert!(shelf.keys().all(|path| !path.contains("/manifests/")));
        err.to_string()
    }
}

fn layer(name: &str) -> Vec<u8> {
    Tar::new().file(name, name.repeat(5000).as_bytes()).finish()
}

/// What a registry does that is as it should be.
fn answer(shelf: &Shelf, request: &Request) -> Reply {
    let mut shelf = shelf.lock().unwrap();
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    match request.method.as_str() {
        "POST" => Reply::new(202, "").with("Location", format!("{path}session?state=1")),
        "PUT" if path.contains("/uploads/") => {
            let expected = query.split_once("digest=").unwrap().1.replace("%3A", ":");
            assert_eq!(digest::of(&request.bytes).as_ref(), expected);
            shelf.insert(format!("/v2/app/blobs/{expected}"), request.bytes.clone());
            Reply::new(201, "")
        }
        "PUT" => {
            shelf.insert(path.to_owned(), request.bytes.clone());
            Reply::new(201, "")
        }
        _ if path == "/v2/" => Reply::new(200, "{}"),
        method => match shelf.get(path) {
            Some(_) if method == "HEAD" => Reply::new(200, ""),
            Some(bytes) => Reply::new(200, bytes.as_slice()),
            None => Reply::new(404, ""),
        },
    }
}

fn methods(registry: &Registry, method: &str) -> usize {
    let requests = registry.requests();
    requests.iter().filter(|r| r.method == method).count()
}

#[test]
fn what_is_pushed_can_be_pulled_and_a_second_push_sends_nothing() {
    let bench = Bench::new();
    let registry = bench.registry(|_, reply| reply);
    let pushed = bench.push(&registry).unwrap();
    let image = bench.store().find("base:base").unwrap();
    assert_eq!(pushed.digest, image.manifest_digest);
    assert_eq!((pushed.sent, pushed.mounted), (3, 0));
    let puts = methods(&registry, "PUT");
    let again = bench.push(&registry).unwrap();
    assert_eq!((again.sent, again.sent_bytes), (0, 0));
    assert_eq!(methods(&registry, "PUT"), puts + 1, "the manifest alone");

    let other = tempfile::tempdir().unwrap();
    let store = Store::open(&other.path().join("store")).unwrap();
    let name = format!("{}/app:test", registry.name()).parse().unwrap();
    let options = PullOptions {
        platform: "linux/amd64".parse().unwrap(),
        credentials: AuthFiles::default(),
        ..PullOptions::default()
    };
    let pulled = store.pull(&name, &options, &()).unwrap();
    assert_eq!(pulled.image.id, image.id);
    assert_eq!(pulled.digest, image.manifest_digest);
}

#[test]
fn the_manifest_goes_last_with_its_media_type() {
    let bench = Bench::new();
    let registry = bench.registry(|_, reply| reply);
    bench.push(&registry).unwrap();
    let last = registry.requests().pop().unwrap();
    assert_eq!(last.path, "/v2/app/manifests/test");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(last.header("content-type"), media_type);
}

#[test]
fn layers_that_another_repository_has_are_taken_over() {
    for mounts in [true, false] {
        let bench = Bench::new();
        let registry = bench.registry(move |request, reply| {
            match mounts && request.path.contains("from=team%2Fbase") {
                true => Reply::new(201, ""),
                false => reply,
            }
        });
        let name = format!("{}/team/base:1", registry.name());
        bench.store().tag("base:base", &name).unwrap();
        let pushed = bench.push(&registry).unwrap();
        let expected = if mounts { (1, 2) } else { (3, 0) };
        assert_eq!((pushed.sent, pushed.mounted), expected);
    }
}

#[test]
fn tokens_are_asked_for_what_is_to_be_done() {
    let bench = Bench::new();
    let registry = bench.registry(|request, reply| {
        let host = request.header("host").to_owned();
        if request.path.starts_with("/token") {
            return Reply::new(200, r#"{"token": "t"}"#);
        }
        if request.header("authorization") == "Bearer t" {
            return reply;
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        Reply::new(401, "").with("WWW-Authenticate", challenge)
    });
    let name = format!("{}/base:1", registry.name());
    bench.store().tag("base:base", &name).unwrap();
    bench.push(&registry).unwrap();
    let requests = registry.requests();
    let token = requests.iter().find(|r| r.path.starts_with("/token"));
    let path = &token.unwrap().path;
    for scope in ["repository%3Aapp%3Apull%2Cpush", "repository%3Abase%3Apull"] {
        assert!(path.contains(&format!("scope={scope}")), "{path}");
    }
}

#[test]
fn uploads_that_fail_are_begun_anew() {
    type Fault = fn() -> Reply;
    let faults: [Fault; 3] = [
        || Reply::new(503, "").with("Retry-After", "0"),
        || Reply::new(404, ""),
        // No HTTP at all.
        || Reply::new(0, ""),
    ];
    for fault in faults {
        let bench = Bench::new();
        let failed = Mutex::new(false);
        let registry = bench.registry(move |request, reply| {
            let is_upload = request.method == "PUT" && request.path.contains("/uploads/");
            if is_upload && !std::mem::replace(&mut failed.lock().unwrap(), is_upload) {
                return fault();
            }
            reply
        });
        bench.push(&registry).unwrap();
        assert!(bench.shelf.lock().unwrap().len() == 4);
    }
}

#[test]
fn who_may_not_write_is_told_so() {
    let bench = Bench::new();
    let registry = bench.registry(|request, reply| match request.method.as_str() {
        "POST" => Reply::new(403, ""),
        _ => reply,
    });
    let message = bench.refused(&registry);
    assert!(
        message.contains("to everybody") && message.contains("hrun login"),
        "{message}"
    );
}

#[test]
fn blobs_are_sent_nowhere_in_plain_text() {
    let bench = Bench::new();
    let registry = bench.registry(|request, reply| match request.method.as_str() {
        "POST" => Reply::new(202, "").with("Location", "http://registry.example/up?secret=1"),
        _ => reply,
    });
    let message = bench.refused(&registry);
    assert!(message.contains("http://registry.example"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

#[test]
fn another_digest_than_was_sent_is_an_error() {
    let bench = Bench::new();
    let registry = bench.registry(|request, reply| {
        if request.method == "PUT" && request.path.contains("/manifests/") {
            let other = digest::of(b"other").to_string();
            return reply.with("Docker-Content-Digest", other);
        }
        reply
    });
    let err = bench.push(&registry).unwrap_err();
    assert!(matches!(
        err,
        PushError::Registry(RegistryError::Stated { .. })
    ));
}

#[test]
fn a_digest_is_no_destination() {
    let bench = Bench::new();
    let name = format!("localhost:1/app@{}", digest::of(b"x"));
    let pushed = bench.store().push(
        "base:base",
        &name.parse().unwrap(),
        &PushOptions::default(),
        &(),
    );
    assert!(matches!(pushed, Err(PushError::Digest(_))));
}
