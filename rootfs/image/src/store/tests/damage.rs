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
