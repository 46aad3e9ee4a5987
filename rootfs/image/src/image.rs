//! An image as the store knows it.

use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::image::{Digest, ImageConfiguration};

use crate::{Platform, Reference};

/// One image of a [`Store`](crate::Store).
///
/// Its layers stay in place as long as an [`ImageUse`](crate::ImageUse) of it lives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Image {
    /// Digest of the configuration: what docker calls the image id.
    pub id: Digest,
    /// Digest of the manifest under which the blobs are stored. For a docker archive, which has
    /// no manifest in this form, of one made when it was loaded.
    pub manifest_digest: Digest,
    /// The names, sorted. Empty for `<none>`.
    pub names: Vec<Reference>,
    /// What to run and how, as the image says.
    pub config: ImageConfiguration,
    /// Bytes of the unpacked regular files of all layers, shared layers included.
    pub size: u64,
    /// Bytes of the layer blobs as they were loaded, shared layers included.
    pub compressed_size: u64,
    /// When the image came to the store.
    pub loaded: SystemTime,
    /// Bytes of the unpacked regular files of each layer, bottom first.
    pub layer_sizes: Vec<u64>,
    pub(crate) layers: Vec<PathBuf>,
}

impl Image {
    /// The platform of its programs, as `linux/arm/v7`, and whether this machine runs them.
    pub fn platform(&self) -> (String, bool) {
        let os = self.config.os().to_string();
        let architecture = self.config.architecture().to_string();
        let runs = Platform::host().is(&os, &architecture);
        let variant = self.config.variant().iter();
        let variant: String = variant.map(|variant| format!("/{variant}")).collect();
        (format!("{os}/{architecture}{variant}"), runs)
    }

    /// Whether its programs are for `platform`, and for no other variant of it.
    pub fn is_for(&self, platform: &Platform) -> bool {
        let os = self.config.os().to_string();
        let architecture = self.config.architecture().to_string();
        platform.is_exactly(&os, &architecture, self.config.variant().as_deref())
    }

    /// The unpacked layers as overlayfs wants its lower directories: topmost first.
    ///
    /// Mount them read-only and never write there: other images share them. The directory that
    /// overlayfs shows as `/` is the *upper* one: give it the owner and mode of the first of these.
    ///
    /// Names are short (32 digits), but classic `mount(2)` takes one page of options: with many
    /// layers use `fsconfig(2)` and one `lowerdir+` for each.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }
}
