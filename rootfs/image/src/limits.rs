//! How much an archive may ask for.

/// Bounds on what one image may hold. The defaults are far beyond real images.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a manifest, an index or a configuration. Registries allow 4 MiB.
    pub manifest_bytes: u64,
    /// Layers of an image: the kernel's `OVL_MAX_STACK`.
    pub layers: usize,
    /// Files and directories of one layer.
    pub entries: u64,
    /// Bytes of one unpacked layer, holes included.
    pub layer_bytes: u64,
    /// Bytes of one PAX header or GNU long name. An extended attribute is 64 KiB at most.
    pub extension_bytes: u64,
    /// Members of an archive that holds images (not of a layer).
    pub archive_members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layers: 500,
            entries: 10_000_000,
            layer_bytes: 256 << 30,
            extension_bytes: 1 << 20,
            archive_members: 100_000,
        }
    }
}
