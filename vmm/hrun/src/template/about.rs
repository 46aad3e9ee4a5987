//! What a template is made from: decides its name, and whether it is out of date.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Class, ForImage, TemplateError};
use crate::parts::Parts;

const FILE: &str = "about.json";

/// Digits of the digest that stand in a template's name.
const DIGITS: usize = 16;

/// What a template is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// What its VMs offer.
    pub(crate) class: Class,
    /// CPUs that clones may have.
    #[serde(default)]
    pub(crate) max_cpus: u8,
    /// Version of hrun.
    pub(crate) version: String,
    /// Kernel release of the host: with it KVM changes.
    pub(crate) host: String,
    /// Kernel, initramfs and VMM.
    pub(crate) parts: Vec<PartIdentity>,
    /// The image that its VMs have as their root file system, if they are for one.
    #[serde(default)]
    pub(crate) image: Option<ImageIdentity>,
    /// What the guest's monotonic clock showed when it was saved, in nanoseconds.
    pub(crate) monotonic_ns: u64,
    /// When it was made, in seconds since the Unix epoch.
    pub(crate) created: u64,
}

/// An image in the store: another one has other layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageIdentity {
    /// What it was called when the template was made.
    pub(crate) name: String,
    layers: Vec<PartIdentity>,
}

impl ImageIdentity {
    fn of(image: &ForImage) -> Result<Self, TemplateError> {
        Ok(Self {
            name: image.name.clone(),
            layers: identities(image.layers.iter())?,
        })
    }
}

fn identities<'a>(
    paths: impl Iterator<Item = &'a PathBuf>,
) -> Result<Vec<PartIdentity>, TemplateError> {
    let identity = |path: &PathBuf| {
        PartIdentity::of(path).map_err(|source| TemplateError::Part {
            path: path.clone(),
            source,
        })
    };
    paths.map(identity).collect()
}

/// A file or a directory, and what changes when it is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl PartIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            path: path.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl About {
    /// What a template would be made from today.
    pub(super) fn new(
        class: Class,
        parts: &Parts,
        image: Option<&ForImage>,
    ) -> Result<Self, TemplateError> {
        let parts = identities([&parts.kernel, &parts.initramfs, &parts.vmm].into_iter())?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            class,
            max_cpus: class.max_cpus(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            parts,
            image: image.map(ImageIdentity::of).transpose()?,
            monotonic_ns: 0,
            created: created.map_or(0, |since| since.as_secs()),
        })
    }

    /// The name of the template.
    pub(super) fn key(&self) -> String {
        let mut hash = Sha256::new();
        let Self {
            class, max_cpus, ..
        } = self;
        hash.update(format!(
            "{class:?} {max_cpus} {} {}",
            self.version, self.host
        ));
        let layers = self.image.iter().flat_map(|image| &image.layers);
        for part in self.parts.iter().chain(layers) {
            hash.update(format!("{part:?}"));
        }
        let digest: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let Class { cpus, memory } = self.class;
        format!("{cpus}cpu-{}m-{}", memory >> 20, &digest[..DIGITS])
    }

    /// Whether nobody will ask for it again.
    pub(crate) fn is_stale(&self) -> bool {
        let changed =
            |part: &PartIdentity| !PartIdentity::of(&part.path).is_ok_and(|now| now == *part);
        let layers = self.image.iter().flat_map(|image| &image.layers);
        self.parts.iter().chain(layers).any(changed) || self.version != env!("CARGO_PKG_VERSION")
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?)
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(FILE), serde_json::to_vec_pretty(self)?)
    }
}
