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
    fn started(&self, _what: &Digest, _total_bytes: u64) {}
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

/// Changes one file of a good layout; the load must fail and leave nothing.
fn fails(change: impl FnOnce(&mut Layout)) -> String {
    let bench = Bench::new();
    let mut layout = Layout::new();
    layout.image(&[&layer("a"), &layer("b")], Some("x"));
    change(&mut layout);
    let err = bench.load(&bench.layout("x", &layout)).unwrap_err();
    assert!(bench.store().images().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(bench.root().join("blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(bench.root().join("layers")).unwrap().count(),
        0
    );
    err.to_string()
}

fn largest_blob(layout: &Layout) -> String {
    let blobs = layout
        .files
        .iter()
        .filter(|(name, _)| name.starts_with("blobs"));
    // Layers compress to less than the JSON documents, and gzip has a magic number.
    let layers = blobs.filter(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b]));
    layers
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap()
        .0
        .clone()
}

#[test]
fn damaged_blobs_are_found_before_anything_is_visible() {
    let flipped = fails(|layout| {
        let name = largest_blob(layout);
        // The operating system in the gzip header: it decompresses all the same.
        layout.files.get_mut(&name).unwrap()[9] ^= 1;
    });
    assert!(flipped.contains("is damaged: it is sha256:"), "{flipped}");
    let garbled = fails(|layout| {
        let name = largest_blob(layout);
        let blob = layout.files.get_mut(&name).unwrap();
        let middle = blob.len() / 2;
        blob[middle] ^= 0xff;
    });
    assert!(garbled.contains("is damaged: it is sha256:"), "{garbled}");
    let cut = fails(|layout| {
        let name = largest_blob(layout);
        layout.files.get_mut(&name).unwrap().pop();
    });
    assert!(cut.contains("bytes long"), "{cut}");
    let missing = fails(|layout| {
        let name = largest_blob(layout);
        layout.files.remove(&name);
    });
    assert!(missing.contains("is missing"), "{missing}");
    for document in ["\"config\"", "\"architecture\""] {
        let changed = fails(|layout| {
            let (_, bytes) = layout
                .files
                .iter_mut()
                .find(|(_, bytes)| String::from_utf8_lossy(bytes).contains(document))
                .unwrap();
            let last = bytes.len() - 1;
            bytes.insert(last, b' ');
        });
        assert!(changed.contains("is damaged"), "{changed}");
    }
}

#[test]
fn manifests_that_do_not_fit_their_layers_are_refused() {
    let wrong_diff_id = fails(|layout| {
        let manifest = layout.manifest(
            &config(&[&layer("other")]),
            &[(&layer("a"), Compression::Gzip)],
        );
        *layout = Layout {
            files: layout.files.clone(),
            ..Layout::new()
        };
        layout.list(manifest, None);
    });
    assert!(
        wrong_diff_id.contains("as the configuration says"),
        "{wrong_diff_id}"
    );
    let wrong_count = fails(|layout| {
        let manifest = layout.manifest(&config(&[]), &[(&layer("a"), Compression::Gzip)]);
        *layout = Layout {
            files: layout.files.clone(),
            ..Layout::new()
        };
        layout.list(manifest, None);
    });
    assert!(wrong_count.contains("cannot be used"), "{wrong_count}");
    let hostile = fails(|layout| {
        *layout = Layout::new();
        let evil = Tar::new().file("../../evil", b"").finish();
        layout.image(&[&evil], None);
    });
    assert!(hostile.contains("cannot be unpacked"), "{hostile}");
    let nothing = fails(|layout| layout.files.retain(|name, _| name == "oci-layout"));
    assert!(nothing.contains("neither an OCI layout"), "{nothing}");
    let huge = fails(|layout| {
        layout
            .files
            .insert("index.json".into(), vec![b' '; 5 << 20]);
    });
    assert!(huge.contains("more than the limit"), "{huge}");
}

#[test]
fn a_docker_archive_names_no_files_outside_of_it() {
    let bench = Bench::new();
    bench.file("secret.json", config(&[&layer("a")]).to_string().as_bytes());
    let mut docker = Layout::docker(&[&layer("a")], &["x"]);
    let manifest = json!([{"Config": "../secret.json", "RepoTags": [], "Layers": ["0/layer.tar"]}]);
    docker
        .files
        .insert("manifest.json".into(), manifest.to_string().into_bytes());
    assert!(bench.load(&bench.layout("x", &docker)).is_err());
    assert!(bench.load(&bench.file("x.tar", &docker.tar())).is_err());
}

#[test]
fn what_is_no_archive_says_so() {
    let bench = Bench::new();
    for (name, bytes) in [
        (
            "text",
            b"hello, this is a file of text, longer than a tar header is".repeat(20),
        ),
        ("short", b"x".to_vec()),
        ("gzip", compress(b"not a tar", Compression::Gzip)),
        (
            "cut",
            compress(&[7; 10_000], Compression::Gzip)[..20].to_vec(),
        ),
    ] {
        let err = bench.load(&bench.file(name, &bytes)).unwrap_err();
        assert!(err.to_string().contains(name), "{err}");
    }
    let rootfs = layer("etc");
    let err = bench.load(&bench.file("rootfs.tar", &rootfs)).unwrap_err();
    assert!(err.to_string().contains("neither an OCI layout"), "{err}");
    assert!(matches!(
        bench.load(Path::new("/does/not/exist")),
        Err(LoadError::Source(SourceError::Open { .. }))
    ));
}

#[test]
fn removing_the_last_name_removes_the_image_but_not_shared_layers() {
    let bench = Bench::new();
    let base = layer("base");
    let docker = Layout::docker(&[&base, &layer("one")], &["one:1", "one:2"]);
    bench.load(&bench.file("a", &docker.tar())).unwrap();
    let docker = Layout::docker(&[&base, &layer("two")], &["two"]);
    let two = bench
        .load(&bench.file("b", &docker.tar()))
        .unwrap()
        .remove(0);
    let store = bench.store();

    let id = store.find("one:1").unwrap().id;
    assert!(matches!(
        store.remove(id.digest()),
        Err(RemoveError::SeveralNames { .. })
    ));
    let first = store.remove("one:1").unwrap();
    assert_eq!(
        (first.untagged.len(), &first.deleted, first.freed),
        (1, &None, 0)
    );
    let second = store.remove(&id.digest()[..12]).unwrap();
    assert_eq!(second.deleted.as_ref(), Some(&id));
    assert_eq!(second.untagged[0].to_string(), "one:2");
    assert!(second.freed > 3);
    bench.assert_consistent();
    assert!(matches!(
        store.find("one:2"),
        Err(FindError::NotFound { .. })
    ));
    assert!(two.layers().iter().all(|layer| layer.is_dir()));
    assert!(matches!(store.remove("one:2"), Err(RemoveError::Find(_))));
    store.remove("two").unwrap();
    bench.assert_consistent();
    assert_eq!(
        fs::read_dir(bench.root().join("layers")).unwrap().count(),
        0
    );
}

#[test]
fn an_image_in_use_is_not_removed() {
    let bench = Bench::new();
    let docker = Layout::docker(&[&layer("a")], &["a:1", "a:2"]);
    let image = bench
        .load(&bench.file("a", &docker.tar()))
        .unwrap()
        .remove(0);
    let store = bench.store();
    let first = store.use_image(&image).unwrap();
    let second = store.use_image(&image).unwrap();
    store.remove("a:1").unwrap();
    drop(first);
    let err = store.remove("a:2").unwrap_err();
    assert!(
        matches!(&err, RemoveError::InUse { name } if name == "a:2"),
        "{err}"
    );
    assert!(image.layers()[0].join("a").exists());
    drop(second);
    store.remove("a:2").unwrap();
    assert!(matches!(store.use_image(&image), Err(UseError::Removed(_))));
    assert!(!image.layers()[0].exists());
}

#[test]
fn the_use_of_an_image_ends_with_the_process_that_dies() {
    let bench = Bench::new();
    let docker = Layout::docker(&[&layer("a")], &["a"]);
    let image = bench
        .load(&bench.file("a", &docker.tar()))
        .unwrap()
        .remove(0);
    let store = bench.store();
    // A process of its own holds the lock, as hrun does, and is killed.
    let lock = store.use_path(&image.id);
    drop(store.use_image(&image).unwrap());
    let mut holder = Command::new("flock")
        .args(["--shared", "--no-fork"])
        .arg(&lock)
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    while store.use_image(&image).is_ok()
        && flock(
            open_lock(&lock).unwrap(),
            FlockOperation::NonBlockingLockExclusive,
        )
        .is_ok()
    {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(matches!(store.remove("a"), Err(RemoveError::InUse { .. })));
    holder.kill().unwrap();
    holder.wait().unwrap();
    store.remove("a").unwrap();
}

#[test]
fn tags_are_given_and_taken() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        let docker = Layout::docker(&[&layer(name)], &[name]);
        bench.load(&bench.file(name, &docker.tar())).unwrap();
    }
    let store = bench.store();
    store.tag("a", "quay.io/x/a:1").unwrap();
    assert_eq!(
        store.find("quay.io/x/a:1").unwrap().id,
        store.find("a").unwrap().id
    );
    store.tag("b", "a").unwrap();
    assert_eq!(names(&store.find("b").unwrap()), ["a:latest", "b:latest"]);
    assert!(store.tag("b", "Not a name").is_err());
    let digest = store.find("b").unwrap().manifest_digest;
    assert!(store.tag("b", &format!("b@{digest}")).is_err());
    assert!(store.tag("missing", "c").is_err());
}

#[test]
fn leftovers_of_a_crash_go_and_live_work_stays() {
    let bench = Bench::new();
    let docker = Layout::docker(&[&layer("a")], &["a"]);
    let image = bench
        .load(&bench.file("a", &docker.tar()))
        .unwrap()
        .remove(0);
    let store = bench.store();
    // A load that died between renaming and the index.
    let dead = store.tmp_path().join("wdead");
    fs::create_dir_all(dead.join("layer-x/deep/er")).unwrap();
    fs::write(dead.join("blob-x"), "half").unwrap();
    fs::create_dir_all(store.layers_path().join("0".repeat(32)).join("etc")).unwrap();
    fs::write(store.blobs_path().join("0".repeat(64)), "orphan").unwrap();
    // And one that lives.
    let live = store.new_workspace().unwrap();
    fs::write(live.path().join("blob"), "wanted").unwrap();

    Store::open(&bench.root()).unwrap();
    assert!(!dead.exists());
    assert!(live.path().join("blob").exists());
    assert!(image.layers()[0].join("a").exists());
    drop(live);
    bench.assert_consistent();
}

#[test]
fn several_processes_load_and_remove_at_once() {
    let bench = Bench::new();
    let base = layer("base");
    let sources: Vec<_> = (0..4)
        .map(|n| {
            let name = format!("image{n}");
            let docker = Layout::docker(&[&base, &layer(&name)], &[&name]);
            (name.clone(), bench.file(&name, &docker.tar()))
        })
        .collect();
    std::thread::scope(|scope| {
        for (name, source) in &sources {
            scope.spawn(|| {
                for _ in 0..5 {
                    // Each with a store of its own, as processes have.
                    let store = bench.store();
                    let image = store.load(source, &()).unwrap().remove(0);
                    let using = store.use_image(&image).unwrap();
                    assert!(image.layers().iter().all(|layer| layer.is_dir()));
                    drop(using);
                    store.remove(name).unwrap();
                }
            });
        }
    });
    bench.assert_consistent();
    assert!(bench.store().images().unwrap().is_empty());
}

#[test]
fn a_damaged_configuration_is_reported_and_the_image_can_be_removed() {
    let bench = Bench::new();
    let docker = Layout::docker(&[&layer("a")], &["a"]);
    let image = bench
        .load(&bench.file("a", &docker.tar()))
        .unwrap()
        .remove(0);
    let store = bench.store();
    fs::write(store.blob_path(&image.id), "{}").unwrap();
    assert!(matches!(
        store.find("a"),
        Err(FindError::Store(StoreError::DamagedImage { image: id, .. })) if id == image.id
    ));
    store.remove(image.id.digest()).unwrap();
    bench.assert_consistent();
}

#[test]
fn a_full_disk_is_reported_and_leaves_the_store_as_it_was() {
    let bench = Bench::new();
    let mount = bench.root();
    fs::create_dir(&mount).unwrap();
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "none"])
        .arg(&mount)
        .status()
        .unwrap();
    assert!(status.success(), "mounting a tmpfs needs root");
    let small = Layout::docker(&[&layer("small")], &["small"]).tar();
    bench.load(&bench.file("small", &small)).unwrap();
    // Full while the blob is copied, and while it is unpacked.
    let zeros = Tar::new().file("zeros", &vec![0; 4 << 20]).finish();
    let noise: Vec<u8> = (0..1u32 << 18)
        .scan(1u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(state.to_le_bytes())
        })
        .flatten()
        .collect();
    let mut unpacking = Layout::new();
    unpacking.image(&[&zeros], Some("zeros"));
    let mut copying = Layout::new();
    copying.image(&[&Tar::new().file("noise", &noise).finish()], Some("noise"));
    let results: Vec<_> = [unpacking, copying]
        .iter()
        .map(|layout| bench.load(&bench.layout("big", layout)))
        .collect();
    let space = rustix::fs::statvfs(&mount).unwrap();
    let used = (space.f_blocks - space.f_bfree) * space.f_frsize;
    // An image can be removed even if there is no room for a new index.
    let fill = fs::write(mount.join("fill"), vec![1; 2 << 20]);
    let found = bench.store().find("small").map(|image| names(&image));
    let removed = bench.store().remove("small");
    bench.assert_consistent();
    assert!(
        Command::new("umount")
            .arg(&mount)
            .status()
            .unwrap()
            .success()
    );
    for result in results {
        assert!(
            matches!(result, Err(LoadError::Store(StoreError::Full { .. }))),
            "{result:?}"
        );
    }
    assert!(fill.is_err());
    assert_eq!(found.unwrap(), ["small:latest"]);
    assert!(used < 200 << 10, "{used} bytes are in use");
    removed.unwrap();
}
