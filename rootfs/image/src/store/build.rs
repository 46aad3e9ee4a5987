//! Making images: of a container's changes on top of another image, or of a root file system.
//!
//! The new layer, configuration and manifest become an OCI layout in a workspace, which is loaded
//! as any other layout: there is one way into the store.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::FlockOperation;
use serde_json::{Map, Value, json};

use super::find::find_record;
use super::load::LoadError;
use super::{FindError, ImageUse, Store, StoreError, UseError, Workspace, is_full};
use crate::digest::Hasher;
use crate::index::LayerUse;
use crate::instruction::{self, Instruction};
use crate::layer::{self, Changes, DiffError};
use crate::manifest::Compression;
use crate::progress::Notes;
use crate::source::{Files, Source};
use crate::{Digest, Image, Platform, Progress, Reference, digest};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOBS: &str = "blobs/sha256";
/// What docker wrote about the build of an image into its configuration; it is not that of ours.
const STALE: [&str; 5] = [
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
];

/// What a new image is to be.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// Its name, if it shall have one.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// What there is to say about the new layer.
    pub comment: Option<String>,
    /// The command that made it.
    pub created_by: String,
    /// What it says about running it, beyond what the image below says.
    pub instructions: Vec<Instruction>,
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The files of the container.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The image below was removed.
    #[error(transparent)]
    Use(#[from] UseError),
    /// The archive cannot be read.
    #[error("Failed to read the archive")]
    Read(#[source] io::Error),
    /// There is nothing in the archive.
    #[error("The archive is empty: an image needs files")]
    Empty,
    /// What was made cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A layer blob that was made.
struct Blob {
    digest: Digest,
    bytes: u64,
    diff_id: Digest,
}

/// What an image is made on top of.
struct Base {
    layers: Vec<LayerUse>,
    config: Value,
    _in_use: ImageUse,
}

impl Store {
    /// Makes an image of `base` and the changes that the overlayfs upper directory `upper` makes
    /// to it.
    pub fn build_from_changes(
        &self,
        base: &Image,
        upper: &Path,
        changes: &Changes,
        new: &NewImage,
        progress: &dyn Progress,
    ) -> Result<Image, BuildError> {
        let base = self.base(base)?;
        self.build(Some(&base), new, progress, |out| {
            Ok(layer::write(upper, changes, out, &self.limits, progress)?)
        })
    }

    /// Makes an image of one layer: the tar archive `archive`, which may be compressed.
    pub fn build_from_archive(
        &self,
        archive: &mut dyn Read,
        new: &NewImage,
        progress: &dyn Progress,
    ) -> Result<Image, BuildError> {
        let mut start = Vec::new();
        let mut archive = archive;
        (&mut archive)
            .take(4)
            .read_to_end(&mut start)
            .map_err(BuildError::Read)?;
        let compression = Compression::sniff(&start);
        let input = io::BufReader::new(io::Cursor::new(start).chain(archive));
        let mut input: Box<dyn Read + '_> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => {
                Box::new(zstd::Decoder::with_buffer(input).map_err(BuildError::Read)?)
            }
        };
        self.build(None, new, progress, |out| {
            if copy(&mut input, out, self.limits.layer_bytes)? == 0 {
                return Err(BuildError::Empty);
            }
            Ok(())
        })
    }

    /// The differences between a container's upper directory and its image.
    pub fn changes(
        &self,
        base: &Image,
        upper: &Path,
        ignored: &[&str],
    ) -> Result<Changes, DiffError> {
        layer::changes(upper, &base.layers, ignored, &self.limits)
    }

    /// Writes all files of a container as a tar archive.
    pub fn export(
        &self,
        base: &Image,
        upper: &Path,
        ignored: &[&str],
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<(), DiffError> {
        let layers = [&[upper.to_owned()], base.layers.as_slice()].concat();
        layer::write_merged(&layers, ignored, out, &self.limits, progress)
    }

    fn base(&self, image: &Image) -> Result<Base, BuildError> {
        let in_use = self.use_image(image)?;
        let removed = || UseError::Removed(image.id.clone());
        let record = {
            let _lock = self.lock(FlockOperation::LockShared)?;
            match find_record(&self.read_index()?, image.id.as_ref()) {
                Ok(record) => record.clone(),
                Err(FindError::Store(err)) => return Err(err.into()),
                Err(_) => return Err(removed().into()),
            }
        };
        let read = || {
            let bytes = fs::read(self.blob_path(&record.id))?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let config = read().map_err(|source| StoreError::DamagedImage {
            image: record.id.clone(),
            source,
        })?;
        Ok(Base {
            layers: record.layers,
            config,
            _in_use: in_use,
        })
    }

    fn build(
        &self,
        base: Option<&Base>,
        new: &NewImage,
        progress: &dyn Progress,
        layer: impl FnOnce(&mut dyn Write) -> Result<(), BuildError>,
    ) -> Result<Image, BuildError> {
        let workspace = {
            let _lock = self.lock(FlockOperation::LockExclusive)?;
            self.new_workspace()?
        };
        let layout = workspace.path().join("built");
        let failed = |err| self.failed("write to", &layout, err);
        let blobs = layout.join(BLOBS);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&blobs)
            .map_err(failed)?;
        let blob = self.make_blob(&workspace, &blobs, layer)?;

        let mut config = base.map_or(json!({}), |base| base.config.clone());
        describe(&mut config, &blob.diff_id, new);
        let below = base.map_or(&[][..], |base| &base.layers);
        let write = || {
            let config = document(&blobs, &config, CONFIG_TYPE)?;
            let manifest = manifest(&config, below, &blob);
            let manifest = document(&blobs, &manifest, MANIFEST_TYPE)?;
            let index = json!({"schemaVersion": 2, "manifests": [manifest]});
            fs::write(layout.join("index.json"), index.to_string())?;
            let version = r#"{"imageLayoutVersion": "1.0.0"}"#;
            fs::write(layout.join("oci-layout"), version)
        };
        write().map_err(failed)?;

        let files = Files::directory(&layout).map_err(failed)?;
        let source = Source::open(
            Path::new("the new image"),
            files,
            &self.limits,
            Platform::host(),
        );
        let mut candidates = source
            .images(&mut Notes::new(progress))
            .map_err(LoadError::from)?;
        let mut candidate = candidates.remove(0);
        candidate.names = new.name.iter().cloned().collect();
        Ok(self.load_image(&source, &candidate, &workspace, progress)?)
    }

    /// Writes a layer's archive, compressed, under its digest.
    fn make_blob(
        &self,
        workspace: &Workspace,
        blobs: &Path,
        layer: impl FnOnce(&mut dyn Write) -> Result<(), BuildError>,
    ) -> Result<Blob, BuildError> {
        let path = workspace.path().join("new-layer");
        let failed = |err| self.failed("write", &path, err);
        let file = File::create(&path).map_err(failed)?;
        let blob = Hashed::new(BufWriter::with_capacity(1 << 18, file));
        let compressed = GzEncoder::new(blob, flate2::Compression::default());
        let mut plain = Hashed::new(BufWriter::with_capacity(1 << 16, compressed));
        layer(&mut plain).map_err(|err| match err {
            BuildError::Diff(DiffError::Write(err)) if is_full(&err) => failed(err).into(),
            other => other,
        })?;
        let finish = || {
            let (compressed, diff_id, _) = plain.finish();
            let blob = compressed
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            let (mut file, digest, bytes) = blob.finish()?.finish();
            file.flush()?;
            fs::rename(&path, blobs.join(digest.digest()))?;
            Ok(Blob {
                digest,
                bytes,
                diff_id,
            })
        };
        Ok(finish().map_err(failed)?)
    }
}

fn copy(input: &mut dyn Read, out: &mut dyn Write, limit: u64) -> Result<u64, BuildError> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let n = match input.read(&mut buffer) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(BuildError::Read)?,
        };
        if n == 0 {
            return Ok(total);
        }
        total += n as u64;
        if total > limit {
            return Err(DiffError::TooLarge { limit }.into());
        }
        out.write_all(&buffer[..n]).map_err(DiffError::Write)?;
    }
}

/// Turns a configuration into that of the new image.
fn describe(config: &mut Value, diff_id: &Digest, new: &NewImage) {
    if !config.is_object() {
        *config = json!({});
    }
    let now = now();
    let root = config.as_object_mut().expect("it was made one");
    for key in STALE {
        root.remove(key);
    }
    let (architecture, os) = platform();
    root.entry("architecture").or_insert(json!(architecture));
    root.entry("os").or_insert(json!(os));
    root.insert("created".into(), json!(now));
    match &new.author {
        Some(author) => root.insert("author".into(), json!(author)),
        None => root.remove("author"),
    };
    let mut step = Map::from_iter([
        ("created".to_owned(), json!(now)),
        ("created_by".to_owned(), json!(new.created_by)),
    ]);
    for (key, text) in [("author", &new.author), ("comment", &new.comment)] {
        if let Some(text) = text {
            step.insert(key.to_owned(), json!(text));
        }
    }
    push(root, "history", Value::Object(step));
    let rootfs = child(root, "rootfs");
    rootfs.insert("type".into(), json!("layers"));
    push(rootfs, "diff_ids", json!(diff_id));
    instruction::apply(&new.instructions, child(root, "config"));
}

fn child<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

fn push(parent: &mut Map<String, Value>, key: &str, item: Value) {
    let value = parent.entry(key).or_insert(Value::Null);
    match value.as_array_mut() {
        Some(items) => items.push(item),
        None => *value = json!([item]),
    }
}

fn manifest(config: &Value, below: &[LayerUse], top: &Blob) -> Value {
    let descriptor = |digest: &Digest, bytes: u64, compression: Compression| json!({"mediaType": compression.media_type(), "digest": digest, "size": bytes});
    let layers: Vec<Value> = below
        .iter()
        .map(|LayerUse { blob, .. }| descriptor(&blob.digest, blob.bytes, blob.compression))
        .chain([descriptor(&top.digest, top.bytes, Compression::Gzip)])
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": layers,
    })
}

/// Writes a document under its digest; gives its descriptor.
fn document(blobs: &Path, document: &Value, media_type: &str) -> io::Result<Value> {
    let bytes = document.to_string().into_bytes();
    let digest = digest::of(&bytes);
    fs::write(blobs.join(digest.digest()), &bytes)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

/// Architecture and system of this machine, as configurations have them.
fn platform() -> (String, String) {
    let platform = Platform::host().to_string();
    let (os, architecture) = platform.split_once('/').unwrap_or(("linux", "amd64"));
    (architecture.to_owned(), os.to_owned())
}

fn now() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    timestamp(since.as_secs())
}

/// Seconds since the epoch as RFC 3339 has them, in UTC.
fn timestamp(seconds: u64) -> String {
    let (mut days, rest) = (seconds / 86400, seconds % 86400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = 365 + u64::from(is_leap(year));
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

/// Hashes and counts what is written through it.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            bytes: 0,
        }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_234_567_890, "2009-02-13T23:31:30Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
