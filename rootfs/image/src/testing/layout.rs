//! OCI layouts and docker archives for tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::manifest::Compression;
use crate::{Digest, digest};

/// The files of an image source, by name.
#[derive(Default, Clone)]
pub(crate) struct Layout {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: Vec<Value>,
}

pub(crate) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A configuration for these uncompressed layers.
pub(crate) fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest::of(layer)).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

pub(crate) fn compress(data: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => data.to_vec(),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(data, 1).unwrap(),
    }
}

impl Layout {
    pub(crate) fn new() -> Self {
        let mut layout = Self::default();
        layout.files.insert(
            "oci-layout".into(),
            br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec(),
        );
        layout
    }

    /// Adds a blob and gives its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest::of(bytes);
        self.files
            .insert(format!("blobs/sha256/{}", digest.digest()), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// The document that a descriptor stands for.
    pub(crate) fn document(&self, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap();
        let file = format!("blobs/{}", digest.replace(':', "/"));
        serde_json::from_slice(&self.files[&file]).unwrap()
    }

    /// Adds blobs and manifest of an image, unlisted.
    pub(crate) fn manifest(&mut self, config: &Value, layers: &[(&[u8], Compression)]) -> Value {
        let config = self.blob(CONFIG_TYPE, config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(layer, compression)| {
                let media_type = compression.media_type().to_string();
                self.blob(&media_type, &compress(layer, *compression))
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": layers,
        });
        self.blob(MANIFEST_TYPE, manifest.to_string().as_bytes())
    }

    /// Lists a descriptor in the index, under a name.
    pub(crate) fn list(&mut self, mut descriptor: Value, ref_name: Option<&str>) {
        if let Some(name) = ref_name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.files
            .insert("index.json".into(), index.to_string().into_bytes());
    }

    /// Adds an image of these layers, compressed with gzip; gives its id.
    pub(crate) fn image(&mut self, layers: &[&[u8]], ref_name: Option<&str>) -> Digest {
        let config = config(layers);
        let gzipped: Vec<_> = layers
            .iter()
            .map(|layer| (*layer, Compression::Gzip))
            .collect();
        let manifest = self.manifest(&config, &gzipped);
        self.list(manifest, ref_name);
        digest::of(config.to_string().as_bytes())
    }

    /// What `docker save` writes for an image of these layers.
    pub(crate) fn docker(layers: &[&[u8]], tags: &[&str]) -> Self {
        let config = config(layers).to_string().into_bytes();
        let config_name = format!("{}.json", digest::of(&config).digest());
        let mut files = BTreeMap::from([(config_name.clone(), config)]);
        let mut names = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            names.push(format!("{n}/layer.tar"));
            files.insert(format!("{n}/layer.tar"), layer.to_vec());
        }
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        files.insert("manifest.json".into(), manifest.to_string().into_bytes());
        Self {
            files,
            manifests: Vec::new(),
        }
    }

    pub(crate) fn write_dir(&self, path: &Path) {
        for (name, bytes) in &self.files {
            let path = path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = super::Tar::new();
        for (name, bytes) in &self.files {
            tar = tar.file(name, bytes);
        }
        tar.finish()
    }
}
