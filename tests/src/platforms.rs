//! An image for several kinds of machines: an OCI layout that lists variations of one image.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Makes a layout in `to`, called `latest`, of the one image of the layout `from`: an index of it
/// for each of `platforms`, which are as `linux/arm/v7`. All have the same files, and differ in
/// what they say they are for. Gives the digests of the manifests.
///
/// # Errors
///
/// `from` is no layout of one image, or `to` cannot be written.
pub fn layout(from: &Path, to: &Path, platforms: &[&str]) -> Result<Vec<String>> {
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("Failed to make a layout")?;
    for entry in fs::read_dir(from.join("blobs/sha256")).context("Failed to read a layout")? {
        let entry = entry.context("Failed to read a layout")?;
        fs::copy(entry.path(), blobs.join(entry.file_name())).context("Failed to copy a blob")?;
    }
    let read = |digest: &Value| -> Result<Value> {
        let digest = digest.as_str().context("a digest is text")?;
        let digits = digest.strip_prefix("sha256:").context("a digest")?;
        let bytes = fs::read(blobs.join(digits)).context("Failed to read a blob")?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    let write = |document: &Value, media_type: &str| -> Result<Value> {
        let bytes = document.to_string();
        let digits: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&digits), &bytes).context("Failed to write a blob")?;
        let digest = format!("sha256:{digits}");
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    };
    let index = fs::read(from.join("index.json")).context("Failed to read a layout")?;
    let index: Value = serde_json::from_slice(&index)?;
    let manifest = read(&index["manifests"][0]["digest"])?;
    let config = read(&manifest["config"]["digest"])?;
    let mut manifests = Vec::new();
    for text in platforms {
        let mut platform = json!({});
        for (key, part) in ["os", "architecture", "variant"]
            .iter()
            .zip(text.split('/'))
        {
            platform[key] = part.into();
        }
        let (mut config, mut manifest) = (config.clone(), manifest.clone());
        for (key, value) in platform.as_object().context("an object")? {
            config[key] = value.clone();
        }
        let media_type = manifest["config"]["mediaType"].clone();
        let media_type = media_type.as_str().context("a media type is text")?;
        manifest["config"] = write(&config, media_type)?;
        let mut descriptor = write(&manifest, MANIFEST)?;
        descriptor["platform"] = platform;
        manifests.push(descriptor);
    }
    let digests = manifests
        .iter()
        .map(|descriptor| Some(descriptor["digest"].as_str()?.to_owned()))
        .collect::<Option<Vec<_>>>()
        .context("a digest is text")?;
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut top = write(&list, INDEX)?;
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let top = json!({"schemaVersion": 2, "manifests": [top]});
    fs::write(to.join("index.json"), top.to_string()).context("Failed to write a layout")?;
    let version = r#"{"imageLayoutVersion": "1.0.0"}"#;
    fs::write(to.join("oci-layout"), version).context("Failed to write a layout")?;
    Ok(digests)
}
