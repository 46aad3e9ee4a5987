//! Registries that want to do harm.

use serde_json::{Value, json};

use super::*;
use crate::testing::layout::{CONFIG_TYPE, MANIFEST_TYPE};

#[test]
fn nothing_of_an_image_with_a_bad_manifest_is_fetched() {
    type Change = fn(&mut Value);
    let foreign: Change = |m| {
        m["layers"][1]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    };
    let huge: Change = |m| m["layers"][1]["size"] = json!(1u64 << 60);
    let ambiguous: Change = |m| m["manifests"] = json!([]);
    for change in [foreign, huge, ambiguous] {
        let (mut layout, _) = two_layers();
        let mut manifest = manifest_of(&layout);
        change(&mut manifest);
        layout.manifests.clear();
        let manifest = layout.blob(MANIFEST_TYPE, manifest.to_string().as_bytes());
        layout.list(manifest, None);
        let registry = Registry::serve(&layout, honest);
        let bench = Bench::new();
        bench.refused(&registry);
        assert_eq!(registry.take_blob_requests().len(), 0);
        assert!(bench.files("downloads").is_empty());
    }
}

#[test]
fn endless_documents_are_not_read() {
    let (layout, _) = two_layers();
    let more = "HRUN_LIMIT_MANIFEST_SIZE allows more";
    for (part, has_length, expected) in [
        ("/manifests/", true, more),
        ("/manifests/", false, more),
        ("/blobs/", false, "the most it may have"),
    ] {
        let registry = Registry::serve(&layout, move |request, mut reply| {
            if request.path.contains(part) {
                reply.body = vec![b' '; 5 << 20];
                reply.has_length = has_length;
            }
            reply
        });
        let err = Bench::new().refused(&registry);
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn a_blob_of_another_digest_or_size_is_refused_and_not_kept() {
    let (layout, digest) = two_layers();
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, bool, &str); 4] = [
        (|body| body[5000] ^= 1, true, "it was damaged or replaced"),
        (|body| body.push(0), true, "are declared"),
        (|body| body.push(0), false, "are declared"),
        (|body| body.truncate(10), true, "has 10 bytes where"),
    ];
    for (change, has_length, expected) in cases {
        let path = digest.to_string();
        let registry = Registry::serve(&layout, move |request, mut reply| {
            if request.path.ends_with(&path) {
                change(&mut reply.body);
                reply.has_length = has_length;
            }
            reply
        });
        let bench = Bench::new();
        let err = bench.refused(&registry);
        assert!(err.contains(expected), "{err}");
        let kept = bench.files("downloads");
        assert!(!kept.contains(&digest.digest().to_owned()), "{kept:?}");
    }
}

#[test]
fn a_manifest_of_another_digest_is_refused() {
    let (layout, _) = two_layers();
    let digest = layout.manifests[0]["digest"].as_str().unwrap().to_owned();
    let registry = Registry::serve(&layout, |request, mut reply| {
        if request.path.contains("/manifests/") {
            reply.body.push(b' ');
        }
        reply
    });
    let bench = Bench::new();
    // By its tag it is as good as any other.
    bench.pull(&registry).unwrap();
    let err = bench.pull_as(&registry, &format!("app@{digest}"));
    let err = chain(&err.unwrap_err());
    assert!(err.contains("it was damaged or replaced"), "{err}");
}

#[test]
fn a_manifest_that_is_not_what_the_registry_states_is_refused() {
    let (layout, _) = two_layers();
    let stated = layout.manifests[0]["digest"].as_str().unwrap().to_owned();
    let registry = Registry::serve(&layout, move |request, mut reply| {
        if request.path.contains("/manifests/") {
            reply.body.push(b' ');
            return reply.with("Docker-Content-Digest", &stated);
        }
        reply
    });
    let err = Bench::new().refused(&registry);
    assert!(err.contains("it was damaged or replaced"), "{err}");
}

#[test]
fn indexes_without_end_are_refused() {
    let entry = |media_type: &str, digest: &str, size: usize| json!({"mediaType": media_type, "digest": digest, "size": size});
    let nothing = format!("sha256:{:064}", 0);
    let long: Vec<_> = (0..1001)
        .map(|_| entry(MANIFEST_TYPE, &nothing, 1))
        .collect();
    let mut layout = Layout::new();
    let index = |manifests: &[Value]| {
        json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}).to_string()
    };
    let too_long = layout.blob(INDEX_TYPE, index(&long).as_bytes());
    layout.list(too_long, None);
    let err = Bench::new().refused(&Registry::serve(&layout, honest));
    assert!(err.contains("it lists too much"), "{err}");

    let mut layout = Layout::new();
    let mut nested = layout.blob(INDEX_TYPE, index(&[]).as_bytes());
    for _ in 0..20 {
        nested = layout.blob(INDEX_TYPE, index(&[nested]).as_bytes());
    }
    layout.list(nested, None);
    let err = Bench::new().refused(&Registry::serve(&layout, honest));
    assert!(err.contains("too many indexes in it"), "{err}");

    let mut layout = Layout::new();
    let empty = layout.blob(INDEX_TYPE, index(&[]).as_bytes());
    layout.list(empty, None);
    let err = Bench::new().refused(&Registry::serve(&layout, honest));
    assert!(err.contains("lists no image"), "{err}");
}

#[test]
fn what_is_no_manifest_is_named_by_its_type() {
    for (body, media_type, expected) in [
        (
            "{}",
            "application/vnd.docker.distribution.manifest.v1+json",
            "v1+json",
        ),
        ("<html>", "text/html; charset=utf-8", "text/html"),
        ("", "", "\"\""),
        ("{\"mediaType\": \"\\u001b[2J\"}", "", "u{1b}"),
        ("[1", MANIFEST_TYPE, "not valid JSON"),
        ("{}", CONFIG_TYPE, "config"),
    ] {
        let (layout, _) = two_layers();
        let registry = Registry::serve(&layout, move |request, reply| {
            if request.path.contains("/manifests/") {
                return Reply::new(200, body).with("Content-Type", media_type);
            }
            reply
        });
        let err = Bench::new().refused(&registry);
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn a_redirect_leads_to_no_other_machine_in_plain_text() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, |request, reply| {
        if request.is_blob() {
            return Reply::new(307, "").with("Location", "http://blobs.invalid/x?signature=s3cret");
        }
        reply
    });
    let err = Bench::new().refused(&registry);
    assert!(
        err.contains("not encrypted") && !err.contains("s3cret"),
        "{err}"
    );
}

#[test]
fn a_redirect_on_this_machine_is_followed() {
    let (layout, _) = two_layers();
    let elsewhere = Registry::serve(&layout, honest);
    let host = elsewhere.name();
    let registry = Registry::serve(&layout, move |request, reply| {
        if request.is_blob() {
            let location = format!("http://{host}{}", request.path);
            return Reply::new(307, "").with("Location", location);
        }
        reply
    });
    Bench::new().pull(&registry).unwrap();
    assert_eq!(elsewhere.take_blob_requests().len(), 3);
}
