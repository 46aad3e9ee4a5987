//! How much an archive may ask for.

/// Bounds on what one image may hold. The defaults are far beyond real images.
///
/// Those that a user may want otherwise have a variable in hrun's environment; errors name it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a manifest, an index or a configuration. Registries allow 4 MiB.
    pub manifest_bytes: u64,
    /// Bytes of all documents of one source, which are in memory at the same time.
    pub document_bytes: u64,
    /// Layers of an image: the kernel's `OVL_MAX_STACK`.
    pub layers: usize,
    /// Files and directories of one layer.
    pub entries: u64,
    /// Bytes of one unpacked layer, holes included.
    pub layer_bytes: u64,
    /// How many bytes one compressed byte may stand for, in what is larger than `free_bytes`.
    /// Layers of programs have less than 10; gzip makes 1000 of a file of zeros, and Zstandard
    /// several 10,000.
    pub ratio: u64,
    /// What decompresses to no more than this may have any ratio.
    pub free_bytes: u64,
    /// Bytes of one PAX header or GNU long name. An extended attribute is 64 KiB at most.
    pub extension_bytes: u64,
    /// Members of an archive that holds images (not of a layer).
    pub archive_members: usize,
}

impl Limits {
    /// Sets [`Self::entries`].
    pub const ENTRIES: &str = "HRUN_LIMIT_ENTRIES";
    /// Sets [`Self::layer_bytes`].
    pub const LAYER_SIZE: &str = "HRUN_LIMIT_LAYER_SIZE";
    /// Sets [`Self::layers`].
    pub const LAYERS: &str = "HRUN_LIMIT_LAYERS";
    /// Sets [`Self::manifest_bytes`].
    pub const MANIFEST_SIZE: &str = "HRUN_LIMIT_MANIFEST_SIZE";
    /// Sets [`Self::ratio`].
    pub const RATIO: &str = "HRUN_LIMIT_RATIO";

    /// The most that `compressed` bytes may become, by their ratio alone.
    pub(crate) fn expanded(&self, compressed: u64) -> u64 {
        self.free_bytes.max(self.ratio.saturating_mul(compressed))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            document_bytes: 64 << 20,
            layers: 500,
            entries: 10_000_000,
            layer_bytes: 256 << 30,
            ratio: 200,
            free_bytes: 1 << 30,
            extension_bytes: 1 << 20,
            archive_members: 100_000,
        }
    }
}
