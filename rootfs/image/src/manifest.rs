//! Indexes, manifests and configurations: parsed, and checked for what the rest relies on.
//!
//! Documents come as bytes whose digest was checked already; whoever wrote them may still mean
//! harm.

use std::fmt;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::{Digest, Limits, digest};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// The only version there is.
const SCHEMA_VERSION: u32 = 2;

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Zstd => "Zstandard",
        })
    }
}

impl Compression {
    /// What the first bytes of a blob look like.
    pub(crate) fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one that may be skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    pub(crate) fn media_type(self) -> MediaType {
        match self {
            Self::None => MediaType::ImageLayer,
            Self::Gzip => MediaType::ImageLayerGzip,
            Self::Zstd => MediaType::ImageLayerZstd,
        }
    }
}

/// What a descriptor's media type stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Index,
    Config,
    Layer(Compression),
    /// A layer that is to be fetched from somewhere else.
    ForeignLayer,
    Unknown,
}

impl Kind {
    pub(crate) fn of(media_type: &MediaType) -> Self {
        match media_type {
            MediaType::ImageManifest => Self::Manifest,
            MediaType::ImageIndex => Self::Index,
            MediaType::ImageConfig => Self::Config,
            MediaType::ImageLayer => Self::Layer(Compression::None),
            MediaType::ImageLayerGzip => Self::Layer(Compression::Gzip),
            MediaType::ImageLayerZstd => Self::Layer(Compression::Zstd),
            MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd => Self::ForeignLayer,
            MediaType::Other(other) => match other.as_str() {
                DOCKER_MANIFEST => Self::Manifest,
                DOCKER_INDEX => Self::Index,
                DOCKER_CONFIG => Self::Config,
                DOCKER_LAYER => Self::Layer(Compression::None),
                DOCKER_LAYER_GZIP => Self::Layer(Compression::Gzip),
                DOCKER_LAYER_ZSTD => Self::Layer(Compression::Zstd),
                DOCKER_FOREIGN_LAYER => Self::ForeignLayer,
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

/// Why a document is no part of an image that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("The {document} is not valid JSON of its kind")]
    Json {
        /// Which document.
        document: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Schema version 1, or one of the future.
    #[error("The {document} has schema version {version}; only version 2 is supported")]
    SchemaVersion {
        /// Which document.
        document: &'static str,
        /// Its version.
        version: u32,
    },
    /// It says it is something else than its descriptor says.
    #[error("The {document} calls itself {}", found.escape_debug())]
    MediaType {
        /// What it should be.
        document: &'static str,
        /// What it says.
        found: String,
    },
    /// Both `manifests` and `layers`: two readers would see two images.
    #[error("The {document} has both manifests and layers")]
    Ambiguous {
        /// Which document.
        document: &'static str,
    },
    /// Not a container image but an artifact that uses the same manifests.
    #[error(
        "The manifest is not of a container image: its configuration is {}",
        .0.escape_debug()
    )]
    Artifact(String),
    /// A layer of an unknown media type.
    #[error("Layer {digest} has the unsupported media type {}", media_type.escape_debug())]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer that is not in the image.
    #[error("Layer {0} is a foreign layer: its contents are not part of the image")]
    ForeignLayer(Digest),
    /// Nothing to run.
    #[error("The image has no layers")]
    NoLayers,
    /// More than the limit.
    #[error(
        "The image has {count} layers, more than the limit of {limit} ({} sets it)",
        Limits::LAYERS
    )]
    TooManyLayers {
        /// How many.
        count: usize,
        /// [`Limits::layers`].
        limit: usize,
    },
    /// A digest that is no SHA-256 one.
    #[error("{} is not a SHA-256 digest, the only kind supported", .0.escape_debug())]
    Digest(String),
    /// An unknown type of root file system.
    #[error("The image's root file system is of type {}, not layers", .0.escape_debug())]
    RootFsType(String),
    /// Manifest and configuration do not belong together.
    #[error("The manifest lists {layers} layers, the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

/// A checked image manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The configuration blob.
    pub config: Descriptor,
    /// The layer blobs, bottom first.
    pub layers: Vec<(Descriptor, Compression)>,
}

/// A checked image configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The document.
    pub configuration: ImageConfiguration,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// What tells the documents apart, before any of it is believed.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// Parses an image index or docker manifest list.
pub fn parse_index(bytes: &[u8]) -> Result<ImageIndex, ManifestError> {
    let index: ImageIndex = parse(bytes, "image index", Kind::Index)?;
    for descriptor in index.manifests() {
        check_digest(descriptor)?;
    }
    Ok(index)
}

/// Parses an image manifest, OCI or docker's version 2.
pub fn parse_manifest(bytes: &[u8], limits: &Limits) -> Result<Manifest, ManifestError> {
    let manifest: ImageManifest = parse(bytes, "image manifest", Kind::Manifest)?;
    if Kind::of(manifest.config().media_type()) != Kind::Config {
        return Err(ManifestError::Artifact(
            manifest.config().media_type().to_string(),
        ));
    }
    check_digest(manifest.config())?;
    check_layer_count(manifest.layers().len(), limits)?;
    let layers = manifest
        .layers()
        .iter()
        .map(|layer| {
            check_digest(layer)?;
            match Kind::of(layer.media_type()) {
                Kind::Layer(compression) => Ok((layer.clone(), compression)),
                Kind::ForeignLayer => Err(ManifestError::ForeignLayer(layer.digest().clone())),
                _ => Err(ManifestError::LayerType {
                    digest: layer.digest().clone(),
                    media_type: layer.media_type().to_string(),
                }),
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(Manifest {
        config: manifest.config().clone(),
        layers,
    })
}

/// Parses an image configuration.
pub fn parse_config(bytes: &[u8]) -> Result<Config, ManifestError> {
    let configuration: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            document: "image configuration",
            source,
        })?;
    let rootfs = configuration.rootfs();
    if rootfs.typ() != "layers" {
        return Err(ManifestError::RootFsType(rootfs.typ().clone()));
    }
    let diff_ids = rootfs
        .diff_ids()
        .iter()
        .map(|id| digest::parse(id).ok_or_else(|| ManifestError::Digest(id.clone())))
        .collect::<Result<_, _>>()?;
    Ok(Config {
        configuration,
        diff_ids,
    })
}

pub(crate) fn check_layer_count(count: usize, limits: &Limits) -> Result<(), ManifestError> {
    if count == 0 {
        return Err(ManifestError::NoLayers);
    }
    if count > limits.layers {
        return Err(ManifestError::TooManyLayers {
            count,
            limit: limits.layers,
        });
    }
    Ok(())
}

fn parse<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    document: &'static str,
    kind: Kind,
) -> Result<T, ManifestError> {
    let json = |source| ManifestError::Json { document, source };
    let head: Head = serde_json::from_slice(bytes).map_err(json)?;
    if head.schema_version != SCHEMA_VERSION {
        return Err(ManifestError::SchemaVersion {
            document,
            version: head.schema_version,
        });
    }
    if head.manifests.is_some() && head.layers.is_some() {
        return Err(ManifestError::Ambiguous { document });
    }
    // OCI documents may leave it out.
    if let Some(found) = head.media_type
        && Kind::of(&MediaType::from(found.as_str())) != kind
    {
        return Err(ManifestError::MediaType { document, found });
    }
    serde_json::from_slice(bytes).map_err(json)
}

fn check_digest(descriptor: &Descriptor) -> Result<(), ManifestError> {
    if digest::is_supported(descriptor.digest()) {
        Ok(())
    } else {
        Err(ManifestError::Digest(descriptor.digest().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(config_type: &str, layer_type: &str, extra: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, {extra}
                "config": {{"mediaType": "{config_type}", "digest": "{DIGEST}", "size": 0}},
                "layers": [{{"mediaType": "{layer_type}", "digest": "{DIGEST}", "size": 0}}]}}"#
        )
    }

    fn parsed(text: &str) -> Result<Manifest, ManifestError> {
        parse_manifest(text.as_bytes(), &Limits::default())
    }

    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    #[test]
    fn manifests_of_oci_and_docker_are_read() {
        let oci = parsed(&manifest(CONFIG, LAYER, "")).unwrap();
        assert_eq!(oci.layers[0].1, Compression::Zstd);
        let extra = format!(r#""mediaType": "{DOCKER_MANIFEST}","#);
        let docker = parsed(&manifest(DOCKER_CONFIG, DOCKER_LAYER_GZIP, &extra)).unwrap();
        assert_eq!(docker.layers[0].1, Compression::Gzip);
    }

    #[test]
    fn too_many_layers_are_refused() {
        let limits = Limits {
            layers: 0,
            ..Limits::default()
        };
        assert!(matches!(
            parse_manifest(manifest(CONFIG, LAYER, "").as_bytes(), &limits),
            Err(ManifestError::TooManyLayers { count: 1, limit: 0 })
        ));
    }

    #[test]
    fn a_configuration_needs_diff_ids_of_layers() {
        let config = |rootfs: &str| {
            parse_config(
                format!(r#"{{"architecture": "amd64", "os": "linux", "rootfs": {rootfs}}}"#)
                    .as_bytes(),
            )
        };
        let good = config(&format!(
            r#"{{"type": "layers", "diff_ids": ["{DIGEST}"]}}"#
        ))
        .unwrap();
        assert_eq!(good.diff_ids, [DIGEST.parse::<Digest>().unwrap()]);
        assert!(matches!(
            config(r#"{"type": "layers", "diff_ids": ["../../etc/passwd"]}"#),
            Err(ManifestError::Digest(_))
        ));
        assert!(matches!(
            config(r#"{"type": "squashfs", "diff_ids": []}"#),
            Err(ManifestError::RootFsType(_))
        ));
        assert!(matches!(config("7"), Err(ManifestError::Json { .. })));
    }
}
