//! Images that are made here.

use super::*;
use crate::store::build::{BuildError, NewImage};
use crate::{Instruction, Reference};

fn new_image(name: &str, instructions: &[&str]) -> NewImage {
    NewImage {
        name: Some(name.parse::<Reference>().unwrap()),
        author: Some("me".into()),
        comment: Some("why".into()),
        created_by: "sh -c x".into(),
        instructions: instructions
            .iter()
            .map(|text| text.parse::<Instruction>().unwrap())
            .collect(),
    }
}

/// An image whose configuration says what no structure of ours knows.
fn base(bench: &Bench) -> Image {
    let layer = Tar::new().dir("etc").file("etc/passwd", b"root").finish();
    let mut layout = Layout::new();
    let mut config = config(&[&layer]);
    config["config"]["Healthcheck"] = json!({"Test": ["NONE"]});
    config["history"] = json!([{"created_by": "ADD"}]);
    config["container_config"] = json!({"Cmd": ["stale"]});
    let manifest = layout.manifest(&config, &[(&layer, Compression::Zstd)]);
    layout.list(manifest, Some("base"));
    let path = bench.layout("base", &layout);
    bench.load(&path).unwrap().remove(0)
}

fn upper(bench: &Bench) -> PathBuf {
    let upper = bench.dir.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/passwd"), "me").unwrap();
    upper
}

fn json_of(bench: &Bench, digest: &Digest) -> serde_json::Value {
    let blob = bench.root().join("blobs/sha256").join(digest.digest());
    serde_json::from_slice(&fs::read(blob).unwrap()).unwrap()
}

#[test]
fn a_container_s_changes_become_a_layer_of_a_new_image() {
    let bench = Bench::new();
    let base = base(&bench);
    let upper = upper(&bench);
    let store = bench.store();
    let changes = store.changes(&base, &upper, &[]).unwrap();
    let new = new_image("new:1", &["CMD [\"ls\"]", "ENV A=b"]);
    let image = store
        .build_from_changes(&base, &upper, &changes, &new, &bench)
        .unwrap();
    bench.assert_consistent();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[1], base.layers[0], "layers are shared");
    let top = fs::read_to_string(image.layers[0].join("etc/passwd"));
    assert_eq!(top.unwrap(), "me");
    assert_eq!(store.find("new:1").unwrap().id, image.id);

    let config = json_of(&bench, &image.id);
    assert_eq!(config["config"]["Cmd"], json!(["ls"]));
    assert_eq!(config["config"]["Env"], json!(["PATH=/bin", "A=b"]));
    assert_eq!(config["config"]["Healthcheck"]["Test"], json!(["NONE"]));
    assert!(config.get("container_config").is_none());
    assert_eq!(config["author"], "me");
    let step = &config["history"][1];
    assert_eq!(step["created_by"], "sh -c x");
    assert_eq!(step["comment"], "why");
    let manifest = json_of(&bench, &image.manifest_digest);
    let types: Vec<&str> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["mediaType"].as_str().unwrap())
        .collect();
    assert!(
        types[0].ends_with("zstd") && types[1].ends_with("gzip"),
        "{types:?}"
    );

    store.remove("base:base").unwrap();
    bench.assert_consistent();
    assert!(image.layers[1].exists(), "the new image needs it");
}

#[test]
fn a_container_without_changes_makes_an_image_of_the_same_files() {
    let bench = Bench::new();
    let base = base(&bench);
    let upper = bench.dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let store = bench.store();
    let changes = store.changes(&base, &upper, &[]).unwrap();
    assert!(changes.is_empty());
    let image = store
        .build_from_changes(&base, &upper, &changes, &NewImage::default(), &bench)
        .unwrap();
    assert!(image.names.is_empty());
    assert_eq!(image.layer_sizes, [4, 0]);
    bench.assert_consistent();
}

#[test]
fn an_image_that_is_gone_is_no_base() {
    let bench = Bench::new();
    let base = base(&bench);
    let store = bench.store();
    store.remove("base:base").unwrap();
    let changes = crate::layer::Changes::default();
    let built = store.build_from_changes(
        &base,
        &upper(&bench),
        &changes,
        &NewImage::default(),
        &bench,
    );
    assert!(matches!(built, Err(BuildError::Use(UseError::Removed(_)))));
    bench.assert_consistent();
}

#[test]
fn an_archive_of_a_root_file_system_becomes_an_image() {
    let tar = Tar::new().dir("bin").file("bin/sh", b"#!").finish();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bench = Bench::new();
        let store = bench.store();
        let new = new_image("root", &["CMD [\"sh\"]"]);
        let archive = compress(&tar, compression);
        let image = store
            .build_from_archive(&mut archive.as_slice(), &new, &bench)
            .unwrap();
        bench.assert_consistent();
        assert_eq!(
            image.config.rootfs().diff_ids(),
            &[digest::of(&tar).to_string()]
        );
        assert!(image.platform().1, "it is for this machine");
        assert_eq!(fs::read(image.layers[0].join("bin/sh")).unwrap(), b"#!");
    }
}

#[test]
fn what_is_no_archive_of_files_makes_no_image() {
    let gzip = compress(&Tar::new().file("a", b"x").finish(), Compression::Gzip);
    let long = "no archive".repeat(100);
    for input in [&b""[..], long.as_bytes(), &gzip[..gzip.len() / 2]] {
        let bench = Bench::new();
        let store = bench.store();
        let built = store.build_from_archive(&mut &*input, &new_image("x", &[]), &bench);
        assert!(built.is_err(), "{} bytes", input.len());
        assert!(store.images().unwrap().is_empty());
        bench.assert_consistent();
    }
}
