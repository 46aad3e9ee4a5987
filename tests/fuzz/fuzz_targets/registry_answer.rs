//! What a registry and its token server answer besides images, as any bytes.
#![no_main]

use image::Reference;
use image::registry::{parse_challenges, parse_token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(token) = parse_token(data) {
        assert!(!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for challenge in parse_challenges(text) {
        let names = challenge.parameters.iter().map(|(name, _)| name);
        for word in names.chain([&challenge.scheme]) {
            assert!(!word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic()));
            assert_eq!(*word, word.to_ascii_lowercase());
        }
        // Nothing is made up.
        for (_, value) in &challenge.parameters {
            assert!(value.len() <= text.len());
        }
    }
    if let Ok(registry) = Reference::registry_of(text) {
        assert_eq!(Reference::registry_of(&registry).as_ref(), Ok(&registry));
    }
});
