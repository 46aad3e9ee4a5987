//! What describes an image: indexes, manifests, configurations and names, as any bytes.
#![no_main]

use image::manifest::{parse_config, parse_index, parse_manifest};
use image::{Limits, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let _ = parse_index(data);
    if let Ok(manifest) = parse_manifest(data, &limits) {
        assert!((1..=limits.layers).contains(&manifest.layers.len()));
        for (layer, _) in &manifest.layers {
            check_digest(layer.digest());
        }
        check_digest(manifest.config.digest());
    }
    if let Ok(config) = parse_config(data) {
        config.diff_ids.iter().for_each(check_digest);
    }
    if let Ok(name) = std::str::from_utf8(data)
        && let Ok(reference) = name.parse::<Reference>()
    {
        for form in [reference.to_string(), reference.full()] {
            assert_eq!(form.parse().as_ref(), Ok(&reference), "{form}");
        }
    }
});

/// Digests become file names: they must be what they look like.
fn check_digest(digest: &image::Digest) {
    let digits = digest.digest();
    assert!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
}
