//! What is wrong with a source, the store or the disk, and what becomes of it.

use super::*;

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
