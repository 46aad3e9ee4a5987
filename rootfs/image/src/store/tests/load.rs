//! Loading, from every form of source.

use super::*;

#[test]
fn the_same_image_loads_from_every_form_of_source() {
    let (base, top) = (layer("base"), layer("top"));
    let mut layout = Layout::new();
    let id = layout.image(&[&base, &top], Some("latest"));
    let docker = Layout::docker(&[&base, &top], &["busybox:latest"]);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for (name, tar) in [("busybox.tar", layout.tar()), ("saved", docker.tar())] {
            let bench = Bench::new();
            let images = bench
                .load(&bench.file(name, &compress(&tar, compression)))
                .unwrap();
            assert_eq!((images.len(), &images[0].id), (1, &id));
            assert_eq!(names(&images[0]), ["busybox:latest"]);
        }
    }
    for (name, layout) in [("busybox", &layout), ("saved", &docker)] {
        let bench = Bench::new();
        let images = bench.load(&bench.layout(name, layout)).unwrap();
        assert_eq!(
            (names(&images[0]), &images[0].id),
            (vec!["busybox:latest".to_owned()], &id)
        );
        let found = bench.store().find("busybox").unwrap();
        assert_eq!(found.id, id);
        let layers = found.layers();
        assert_eq!(fs::read_to_string(layers[0].join("top")).unwrap(), "top");
        assert_eq!(fs::read_to_string(layers[1].join("base")).unwrap(), "base");
        assert_eq!(found.size, 7);
        let process = found.config.config().as_ref().unwrap();
        assert_eq!(process.cmd().as_deref(), Some(&["sh".to_owned()][..]));
    }
}

#[test]
fn a_pipe_is_a_source_too() {
    let bench = Bench::new();
    let docker = Layout::docker(&[&layer("a")], &["piped:1"]).tar();
    let pipe = bench.dir.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let images = std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&pipe, docker));
        bench.load(&pipe).unwrap()
    });
    assert_eq!(names(&images[0]), ["piped:1"]);
}

#[test]
fn layers_of_every_compression_unpack() {
    let bench = Bench::new();
    let layers = [layer("plain"), layer("gzip"), layer("zstd")];
    let refs: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let mut layout = Layout::new();
    let manifest = layout.manifest(
        &config(&refs),
        &[
            (refs[0], Compression::None),
            (refs[1], Compression::Gzip),
            (refs[2], Compression::Zstd),
        ],
    );
    layout.list(manifest, None);
    let images = bench.load(&bench.layout("x", &layout)).unwrap();
    for (layer, name) in images[0].layers().iter().zip(["zstd", "gzip", "plain"]) {
        assert!(layer.join(name).exists());
    }
    assert!(images[0].names.is_empty());
}

#[test]
fn a_layer_is_what_it_is_not_what_its_media_type_says() {
    let bench = Bench::new();
    let (a, b) = (layer("a"), layer("b"));
    let mut layout = Layout::new();
    let descriptor = |layout: &mut Layout, bytes: &[u8], declared: Compression| {
        layout.blob(declared.media_type().as_ref(), bytes)
    };
    let layers = [
        descriptor(&mut layout, &a, Compression::Gzip),
        descriptor(
            &mut layout,
            &compress(&b, Compression::Gzip),
            Compression::None,
        ),
    ];
    let config = layout.blob(CONFIG_TYPE, config(&[&a, &b]).to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let manifest = layout.blob(MANIFEST_TYPE, manifest.as_bytes());
    layout.list(manifest, None);
    let images = bench.load(&bench.layout("x", &layout)).unwrap();
    assert!(images[0].layers()[0].join("b").exists());
    let notes = bench.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("declared to be gzip, but is not compressed"),
        "{notes}"
    );
    assert!(
        notes.contains("declared to be not compressed, but is gzip"),
        "{notes}"
    );
}

#[test]
fn names_come_from_annotations_and_move_to_the_newest_image() {
    let bench = Bench::new();
    let mut layout = Layout::new();
    layout.image(&[&layer("1")], Some("quay.io/me/app:v1"));
    layout.image(&[&layer("2")], Some("other:v2"));
    layout.image(&[&layer("3")], Some("v3"));
    layout.image(&[&layer("4")], Some("-no tag"));
    let manifest = layout.manifest(&config(&[&layer("5")]), &[(&layer("5"), Compression::Gzip)]);
    let mut named = manifest;
    named["annotations"] = json!({
        "io.containerd.image.name": "docker.io/library/five:latest",
        "org.opencontainers.image.ref.name": "latest",
    });
    layout.list(named, None);
    let loaded = bench.load(&bench.layout("app", &layout)).unwrap();
    let all: Vec<_> = loaded.iter().map(names).collect();
    assert_eq!(
        all,
        [
            vec!["quay.io/me/app:v1"],
            vec!["other:v2"],
            vec!["app:v3"],
            vec![],
            vec!["five:latest"]
        ]
    );
    assert!(
        bench
            .notes
            .lock()
            .unwrap()
            .join(" ")
            .contains("name left out")
    );

    let moved = Layout::docker(&[&layer("6")], &["other:v2", "five"]).tar();
    bench.load(&bench.file("moved", &moved)).unwrap();
    let images = bench.store().images().unwrap();
    let all: Vec<_> = images.iter().map(names).collect();
    assert_eq!(
        all,
        [
            vec!["app:v3"],
            vec!["five:latest", "other:v2"],
            vec!["quay.io/me/app:v1"],
            vec![],
            vec![],
            vec![]
        ]
    );
    assert_eq!(images.len(), 6, "images that lost their name stay");
}

#[test]
fn images_share_layers_and_load_only_what_is_missing() {
    let bench = Bench::new();
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let mut layout = Layout::new();
    layout.image(&[&base, &one], Some("one"));
    let first = bench.load(&bench.layout("a", &layout)).unwrap();
    bench.notes.lock().unwrap().clear();
    let docker = Layout::docker(&[&base, &two], &["two"]);
    let second = bench.load(&bench.file("b", &docker.tar())).unwrap();
    assert_eq!(first[0].layers()[1], second[0].layers()[1]);
    assert_eq!(
        fs::read_dir(bench.root().join("layers")).unwrap().count(),
        3
    );

    // Again, and now the layer in the source is damaged: nobody reads it.
    let mut damaged = docker;
    damaged
        .files
        .insert("0/layer.tar".into(), b"rubbish".to_vec());
    bench.load(&bench.file("c", &damaged.tar())).unwrap();
}

#[test]
fn a_layer_twice_in_an_image_is_one_lower_directory() {
    let bench = Bench::new();
    let (twice, between) = (layer("twice"), layer("between"));
    // One with an implied directory depends on its chain: two directories.
    let implied = Tar::new().file("no/entry", b"").finish();
    let mut layout = Layout::new();
    layout.image(&[&twice, &between, &twice, &implied, &implied], Some("x"));
    let images = bench.load(&bench.layout("x", &layout)).unwrap();
    let layers = images[0].layers();
    assert_eq!(layers.len(), 4);
    assert!(layers[2].join("twice").exists() && layers[3].join("between").exists());
}

#[test]
fn an_opaque_root_hides_the_layers_below() {
    let bench = Bench::new();
    let clean = Tar::new()
        .dir("./")
        .file(".wh..wh..opq", b"")
        .file("new", b"")
        .finish();
    let mut layout = Layout::new();
    layout.image(&[&layer("old"), &clean], Some("x"));
    let images = bench.load(&bench.layout("x", &layout)).unwrap();
    assert_eq!(images[0].layers().len(), 1);
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let bench = Bench::new();
    let (here, there) = (layer("here"), layer("there"));
    let mut layout = Layout::new();
    let mut foreign_config = config(&[&there]);
    foreign_config["architecture"] = json!("s390x");
    let mut foreign = layout.manifest(&foreign_config, &[(&there, Compression::Gzip)]);
    let unannotated = foreign.clone();
    foreign["platform"] = json!({"architecture": "s390x", "os": "linux"});
    let mut native = layout.manifest(&config(&[&here]), &[(&here, Compression::Gzip)]);
    native["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let mut attestation = foreign.clone();
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    let index = |manifests: &[&serde_json::Value]| {
        json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
            .to_string()
            .into_bytes()
    };

    let mut multi = layout.clone();
    let nested = multi.blob(INDEX_TYPE, &index(&[&foreign, &attestation, &native]));
    multi.list(nested, Some("latest"));
    let images = bench.load(&bench.layout("multi", &multi)).unwrap();
    assert!(images[0].layers()[0].join("here").exists());
    assert_eq!(names(&images[0]), ["multi:latest"]);

    for descriptor in [&foreign, &unannotated] {
        let mut other = layout.clone();
        let nested = other.blob(INDEX_TYPE, &index(&[descriptor, &attestation]));
        other.list(nested, Some("latest"));
        let err = bench.load(&bench.layout("other", &other)).unwrap_err();
        assert!(
            err.to_string()
                .ends_with("no image for linux/amd64, only for linux/s390x"),
            "{err}"
        );
    }

    let mut deep = layout.clone();
    let mut descriptor = native;
    for _ in 0..10 {
        descriptor = deep.blob(INDEX_TYPE, &index(&[&descriptor]));
    }
    deep.list(descriptor, None);
    assert!(matches!(
        bench.load(&bench.layout("deep", &deep)),
        Err(LoadError::Source(SourceError::Nested { .. }))
    ));
}
