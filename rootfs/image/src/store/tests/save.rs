//! Saving, and what the store says that it takes.

use std::collections::BTreeSet;

use super::*;
use crate::store::pull::PullError;
use crate::store::save::SaveError;

fn save(bench: &Bench, names: &[&str]) -> Result<Vec<u8>, SaveError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut out = Vec::new();
    bench.store().save(&names, &mut out).map(|()| out)
}

/// A store with two images that share a layer.
fn two_images() -> Bench {
    let bench = Bench::new();
    let (base, a, b) = (layer("base"), layer("a"), layer("b"));
    for (name, top) in [("one", &a), ("two", &b)] {
        let mut layout = Layout::new();
        layout.image(&[&base, top], Some(&format!("{name}:1")));
        let path = bench.layout(name, &layout);
        bench.load(&path).unwrap();
    }
    bench
}

#[test]
fn what_is_saved_is_loaded_again_by_both_of_its_lists() {
    let bench = two_images();
    let archive = save(&bench, &["one:1", "two:1", "one:1"]).unwrap();
    assert_eq!(archive, save(&bench, &["one:1", "two:1"]).unwrap());
    let mut docker_only = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if path.to_str() != Some("oci-layout") {
            let mut header = entry.header().clone();
            docker_only
                .append_data(&mut header, path, &mut entry)
                .unwrap();
        }
    }
    for bytes in [archive, docker_only.into_inner().unwrap()] {
        let other = Bench::new();
        let images = other.load(&other.file("saved.tar", &bytes)).unwrap();
        for (image, name) in images.iter().zip(["one:1", "two:1"]) {
            let original = bench.store().find(name).unwrap();
            assert_eq!(
                (&image.id, names(image)),
                (&original.id, vec![name.to_owned()])
            );
            assert_eq!(image.layer_sizes, original.layer_sizes);
        }
    }
}

#[test]
fn an_image_that_is_named_by_its_id_is_saved_without_a_name() {
    let bench = two_images();
    let id = bench.store().find("one:1").unwrap().id;
    let archive = save(&bench, &[id.as_ref()]).unwrap();
    let other = Bench::new();
    let images = other.load(&other.file("saved.tar", &archive)).unwrap();
    assert_eq!((images.len(), &images[0].id), (1, &id));
    assert!(images[0].names.is_empty());
    assert!(matches!(save(&bench, &["three"]), Err(SaveError::Find(_))));
}

#[test]
fn a_damaged_blob_is_not_saved_in_silence() {
    let bench = two_images();
    let store = bench.store();
    let index = store.read_index().unwrap();
    let blob = &index.images[0].layers[0].blob.digest;
    let path = store.blob_path(blob);
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let err = save(&bench, &["one:1"]).unwrap_err();
    assert!(matches!(
        err,
        SaveError::Store(StoreError::DamagedImage { .. })
    ));
}

#[test]
fn a_writer_that_fails_is_named() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let bench = two_images();
    let err = bench.store().save(&["one:1".to_owned()], &mut Full);
    assert!(matches!(err, Err(SaveError::Write(_))));
}

#[test]
fn what_images_share_is_counted_once() {
    let bench = two_images();
    let store = bench.store();
    let usage = store.usage().unwrap();
    let index = store.read_index().unwrap();
    let blobs: u64 = index
        .blobs()
        .into_iter()
        .filter(|blob| {
            let is_layer = |image: &index::ImageRecord| {
                image.layers.iter().any(|l| l.blob.digest.digest() == *blob)
            };
            index.images.iter().any(is_layer)
        })
        .map(|blob| fs::metadata(store.blobs_path().join(blob)).unwrap().len())
        .sum();
    let unpacked = ("base".len() + "a".len() + "b".len()) as u64;
    assert_eq!(usage.bytes, blobs + unpacked);
    let unique: u64 = usage.images.iter().map(|image| image.unique).sum();
    assert_eq!(usage.bytes, unique + usage.images[0].shared);
    assert_eq!(usage.images[0].shared, usage.images[1].shared);

    let one = BTreeSet::from([usage.images[0].id.to_string()]);
    assert_eq!(store.reclaimable(&one).unwrap(), usage.images[1].unique);
    assert_eq!(store.reclaimable(&BTreeSet::new()).unwrap(), usage.bytes);
    let freed = store.remove("two:1").unwrap().freed;
    assert_eq!(freed, usage.images[1].unique);
}

#[test]
fn interrupted_downloads_are_counted_and_pruned_unless_somebody_is_at_them() {
    let bench = Bench::new();
    let store = bench.store();
    let (left, held) = (digest::of(b"left"), digest::of(b"held"));
    for (digest, size) in [(&left, 10), (&held, 5)] {
        let path = store.downloads_path().join(digest.digest());
        fs::write(path, vec![0; size]).unwrap();
    }
    let hold = async {
        store
            .hold_download(&held, &())
            .await
            .map_err(PullError::from)
    };
    let _held = crate::registry::run(hold).unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.downloads, usage.download_bytes), (2, 15));
    assert_eq!(store.prune_downloads().unwrap(), 10);
    assert_eq!(store.usage().unwrap().downloads, 1);
}
