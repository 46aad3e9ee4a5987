//! OCI image layouts, as a directory or an archive of one.

use std::ffi::OsStr;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndex};

use super::{Candidate, LayerSource, Source, SourceError};
use crate::manifest::{self, Kind};
use crate::progress::Notes;
use crate::{Reference, digest};

const INDEX: &str = "index.json";
/// Tag, or whole name, of an image in `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Whole name, as containerd and docker write it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Indexes within indexes. Real images have one.
const MAX_DEPTH: usize = 4;
/// The most that one index may list, so that nested ones cannot multiply.
const MAX_MANIFESTS: usize = 1000;

impl Source {
    pub(super) fn oci_images(&self, notes: &mut Notes<'_>) -> Result<Vec<Candidate>, SourceError> {
        let bytes = self.document(INDEX)?;
        let index = manifest::parse_index(&bytes).map_err(|err| self.unusable(INDEX, err))?;
        let mut others = Vec::new();
        let mut images = Vec::new();
        self.check_count(&index)?;
        for descriptor in index.manifests() {
            let names = self.names(descriptor, notes);
            if let Some(chosen) = self.select(descriptor, 0, &mut others)?
                && let Some(mut image) = self.oci_image(&chosen, names, &mut others)?
            {
                if Kind::of(descriptor.media_type()) == Kind::Index {
                    image.index = Some(self.verified(descriptor)?);
                }
                images.push(image);
            }
        }
        if images.is_empty() {
            let path = self.path.clone();
            if others.is_empty() {
                return Err(SourceError::Empty { path });
            }
            others.sort();
            others.dedup();
            let wanted = self.platform.to_string();
            return Err(SourceError::Platform {
                path,
                wanted,
                found: others,
            });
        }
        Ok(images)
    }

    /// The manifest for the platform that `descriptor` is, or that the index behind it lists.
    fn select(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        others: &mut Vec<String>,
    ) -> Result<Option<Descriptor>, SourceError> {
        if depth == MAX_DEPTH {
            return Err(SourceError::Nested {
                path: self.path.clone(),
            });
        }
        match Kind::of(descriptor.media_type()) {
            Kind::Manifest => Ok(self
                .platform
                .admits(descriptor, others)
                .then(|| descriptor.clone())),
            Kind::Index => {
                let index = self.nested_index(descriptor)?;
                self.check_count(&index)?;
                for manifest in self.platform.order(&index) {
                    if let Some(found) = self.select(manifest, depth + 1, others)? {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
            // What else tools put beside images: signatures, attestations.
            _ => Ok(None),
        }
    }

    fn check_count(&self, index: &ImageIndex) -> Result<(), SourceError> {
        let count = index.manifests().len();
        if count > MAX_MANIFESTS {
            let path = self.path.clone();
            return Err(SourceError::TooManyManifests {
                path,
                count,
                limit: MAX_MANIFESTS,
            });
        }
        Ok(())
    }

    fn nested_index(&self, descriptor: &Descriptor) -> Result<ImageIndex, SourceError> {
        let file = blob_file(descriptor);
        let bytes = self.verified(descriptor)?;
        manifest::parse_index(&bytes).map_err(|err| self.unusable(&file, err))
    }

    fn oci_image(
        &self,
        descriptor: &Descriptor,
        names: Vec<Reference>,
        others: &mut Vec<String>,
    ) -> Result<Option<Candidate>, SourceError> {
        let file = blob_file(descriptor);
        let bytes = self.verified(descriptor)?;
        let manifest = manifest::parse_manifest(&bytes, &self.limits)
            .map_err(|err| self.unusable(&file, err))?;
        let config_bytes = self.verified(&manifest.config)?;
        let config_file = blob_file(&manifest.config);
        let config = manifest::parse_config(&config_bytes)
            .map_err(|err| self.unusable(&config_file, err))?;
        if !self.runs_here(&config, others) {
            return Ok(None);
        }
        self.check_layers(&config_file, manifest.layers.len(), &config)?;
        let layers = manifest
            .layers
            .iter()
            .map(|(layer, compression)| LayerSource {
                file: blob_file(layer),
                expected: Some((layer.digest().clone(), layer.size())),
                compression: Some(*compression),
            })
            .collect();
        Ok(Some(Candidate {
            names,
            manifest: Some(bytes),
            index: None,
            config_bytes,
            config,
            layers,
        }))
    }

    /// Reads a document whose size and digest must be those of its descriptor.
    fn verified(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let file = blob_file(descriptor);
        if !digest::is_supported(descriptor.digest()) {
            let err = manifest::ManifestError::Digest(descriptor.digest().to_string());
            return Err(self.unusable(&file, err));
        }
        let bytes = self.document(&file)?;
        if bytes.len() as u64 != descriptor.size() {
            return Err(self.mismatch(&file, &format!("{} bytes long", bytes.len())));
        }
        let found = digest::of(&bytes);
        if found != *descriptor.digest() {
            return Err(self.mismatch(&file, &found));
        }
        Ok(bytes)
    }

    /// The names that the index gives an image.
    fn names(&self, descriptor: &Descriptor, notes: &mut Notes<'_>) -> Vec<Reference> {
        let Some(annotations) = descriptor.annotations() else {
            return Vec::new();
        };
        let Some(text) = annotations
            .get(IMAGE_NAME)
            .or_else(|| annotations.get(REF_NAME))
        else {
            return Vec::new();
        };
        let name = if text.contains(['/', ':', '@']) || annotations.contains_key(IMAGE_NAME) {
            text.parse::<Reference>()
        } else {
            // A bare tag: the name is that of the layout.
            Reference::with_tag(&stem(&self.path), text)
        };
        match name {
            // Digests are facts: only a pull, which has seen them, may give such names.
            Ok(name) if name.digest().is_some() => {
                notes.add(|| format!("name left out: {name} has a digest"));
                Vec::new()
            }
            Ok(name) => vec![name],
            Err(err) => {
                notes.add(|| format!("name left out: {err}"));
                Vec::new()
            }
        }
    }
}

/// Digests that come here were checked: the name has no slash and no dots.
fn blob_file(descriptor: &Descriptor) -> String {
    let digest = descriptor.digest();
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// `busybox` for `/tmp/busybox.tar.gz`.
fn stem(path: &Path) -> String {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = resolved
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default();
    let mut stem = name;
    for suffix in [".gz", ".zst", ".tgz", ".tar", ".oci"] {
        stem = stem.strip_suffix(suffix).unwrap_or(stem);
    }
    stem.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_layout_is_its_file_without_suffixes() {
        for (path, name) in [
            ("/x/busybox", "busybox"),
            ("/x/busybox.tar", "busybox"),
            ("/x/Busybox-1.36.tar.gz", "busybox-1.36"),
            ("/x/busybox.tgz", "busybox"),
            ("/x/busybox.oci.tar.zst", "busybox"),
        ] {
            assert_eq!(stem(Path::new(path)), name);
        }
    }
}
