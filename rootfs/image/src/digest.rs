//! SHA-256 digests of what streams by.

use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};

/// The digest of bytes in memory.
pub(crate) fn of(bytes: &[u8]) -> Digest {
    finish(Sha256::new_with_prefix(bytes))
}

/// Parses `sha256:...` as manifests and configurations spell it.
pub(crate) fn parse(text: &str) -> Option<Digest> {
    text.parse().ok().filter(is_supported)
}

/// SHA-256 is all that real images use; other algorithms are refused where they appear.
pub(crate) fn is_supported(digest: &Digest) -> bool {
    *digest.algorithm() == DigestAlgorithm::Sha256
}

/// The chain id of a layer on top of `parent`, by the image specification.
pub(crate) fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => diff_id.clone(),
        Some(parent) => of(format!("{parent} {diff_id}").as_bytes()),
    }
}

/// Hashes what comes piece by piece.
#[derive(Clone)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        finish(self.0)
    }
}

fn finish(hasher: Sha256) -> Digest {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in hasher.finalize() {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    Digest::try_from(text).expect("64 hexadecimal digits are a SHA-256 digest")
}

/// Hashes and counts what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Bytes read so far.
    pub(crate) fn read_so_far(&self) -> u64 {
        self.bytes
    }

    /// The digest and the number of all bytes that were read.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (finish(self.hasher), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        const EMPTY: &str =
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b"").as_ref(), EMPTY);
        let mut hashing = Hashing::new(io::empty());
        io::copy(&mut hashing, &mut io::sink()).unwrap();
        assert_eq!(hashing.finish(), (parse(EMPTY).unwrap(), 0));
    }

    #[test]
    fn only_sha256_is_supported() {
        assert!(parse(&format!("sha512:{}", "0".repeat(128))).is_none());
        assert!(parse("sha256:abc").is_none());
    }
}
