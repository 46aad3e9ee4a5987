//! Archives of `docker save` and its kin: `manifest.json` names a configuration and tar files.

use serde::Deserialize;

use super::{Candidate, LayerSource, Source, SourceError};
use crate::manifest::{self, Config, ManifestError};
use crate::progress::Notes;
use crate::{Reference, digest};

const MANIFEST: &str = "manifest.json";

/// One image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Source {
    pub(super) fn docker_images(
        &self,
        notes: &mut Notes<'_>,
    ) -> Result<Vec<Candidate>, SourceError> {
        let bytes = self.document(MANIFEST)?;
        let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(|source| {
            self.unusable(
                MANIFEST,
                ManifestError::Json {
                    document: "list of images",
                    source,
                },
            )
        })?;
        let mut others = Vec::new();
        let mut images = Vec::new();
        for item in items {
            let config_bytes = self.document(&item.config)?;
            let config = manifest::parse_config(&config_bytes)
                .map_err(|err| self.unusable(&item.config, err))?;
            // The name of the file is the digest of what is in it.
            let found = digest::of(&config_bytes);
            if let Some(stated) = stated_digest(&item.config)
                && stated != found.digest()
            {
                return Err(self.mismatch(&item.config, &found));
            }
            if !self.runs_here(&config, &mut others) {
                continue;
            }
            manifest::check_layer_count(item.layers.len(), &self.limits)
                .map_err(|err| self.unusable(MANIFEST, err))?;
            self.check_layers(&item.config, item.layers.len(), &config)?;
            let layers = item
                .layers
                .into_iter()
                .map(|file| LayerSource {
                    file,
                    expected: None,
                    compression: None,
                })
                .collect();
            let names = names(&item.repo_tags.unwrap_or_default(), notes);
            images.push(Candidate {
                names,
                manifest: None,
                index: None,
                config_bytes,
                config,
                layers,
            });
        }
        if images.is_empty() {
            let path = self.path.clone();
            if others.is_empty() {
                return Err(SourceError::Empty { path });
            }
            let wanted = self.platform.to_string();
            return Err(SourceError::Platform {
                path,
                wanted,
                found: others,
            });
        }
        Ok(images)
    }

    /// Whether the configuration is of an image for the platform that is wanted.
    pub(super) fn runs_here(&self, config: &Config, others: &mut Vec<String>) -> bool {
        let os = config.configuration.os().to_string();
        let architecture = config.configuration.architecture().to_string();
        let runs = self.platform.is(&os, &architecture);
        if !runs {
            others.push(format!("{os}/{architecture}"));
        }
        runs
    }

    /// Manifest and configuration must list the same number of layers.
    pub(super) fn check_layers(
        &self,
        config_file: &str,
        layers: usize,
        config: &Config,
    ) -> Result<(), SourceError> {
        let diff_ids = config.diff_ids.len();
        if layers == diff_ids {
            return Ok(());
        }
        Err(self.unusable(config_file, ManifestError::LayerCount { layers, diff_ids }))
    }
}

/// The digest in `HEX.json` or `blobs/sha256/HEX`.
fn stated_digest(file: &str) -> Option<&str> {
    let base = file.rsplit('/').next()?;
    let hex = base.strip_suffix(".json").unwrap_or(base);
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}

fn names(tags: &[String], notes: &mut Notes<'_>) -> Vec<Reference> {
    tags.iter()
        .filter_map(|tag| match tag.parse::<Reference>() {
            Ok(name) if name.digest().is_some() => {
                notes.add(|| format!("name left out: {name} has a digest"));
                None
            }
            Ok(name) => Some(name),
            Err(err) => {
                notes.add(|| format!("name left out: {err}"));
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_in_a_configuration_s_name_is_found() {
        let hex = "ab".repeat(32);
        assert_eq!(stated_digest(&format!("{hex}.json")), Some(hex.as_str()));
        assert_eq!(
            stated_digest(&format!("blobs/sha256/{hex}")),
            Some(hex.as_str())
        );
        assert_eq!(stated_digest("config.json"), None);
    }
}
