//! How a container's root file system gets into its guest, and who stacks its layers.

use std::path::PathBuf;

use clap::ValueEnum;
use image::{ErofsError, Image, ImageUse, Store};
use serde::{Deserialize, Serialize};

/// How the image gets into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Carrier {
    /// A directory of the host, by virtio-fs
    #[default]
    Fs,
    /// A read-only disk with an EROFS of the image, made when it is first needed
    Block,
}

/// Whose overlayfs puts the container's changes on top of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stacked {
    /// The host's
    Host,
    /// The guest's: they are in its memory, half of which they may fill
    Guest,
}

/// A container's way to its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Rootfs {
    /// One share: the host's overlayfs of layers and changes.
    #[default]
    Host,
    /// The guest's overlayfs of the layers, merged and shared read-only, and of memory for changes.
    GuestOverFs,
    /// The guest's overlayfs of a disk and of memory for changes.
    GuestOverBlock,
}

/// Options that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "--rootfs block (HRUN_ROOTFS) needs --rootfs-overlay guest (HRUN_ROOTFS_OVERLAY): \
     the host does not look into the disk"
)]
pub(crate) struct RootfsError;

impl Rootfs {
    /// The way that was asked for. Unless it was said, the host stacks what it can.
    pub(crate) fn choose(carrier: Carrier, stacked: Option<Stacked>) -> Result<Self, RootfsError> {
        match (carrier, stacked) {
            (Carrier::Fs, None | Some(Stacked::Host)) => Ok(Self::Host),
            (Carrier::Fs, Some(Stacked::Guest)) => Ok(Self::GuestOverFs),
            (Carrier::Block, None | Some(Stacked::Guest)) => Ok(Self::GuestOverBlock),
            (Carrier::Block, Some(Stacked::Host)) => Err(RootfsError),
        }
    }

    /// Whether the image is a disk.
    pub(crate) fn needs_disk(self) -> bool {
        self == Self::GuestOverBlock
    }

    /// The image's disk, made if need be; none if the image is not a disk.
    pub(crate) fn disk(
        self,
        store: &Store,
        image: &Image,
        in_use: &ImageUse,
    ) -> Result<Option<PathBuf>, ErofsError> {
        self.needs_disk()
            .then(|| store.erofs(image, in_use))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_stacks_what_it_can_unless_told_otherwise() {
        let (host, guest) = (Some(Stacked::Host), Some(Stacked::Guest));
        for (carrier, stacked, way) in [
            (Carrier::Fs, None, Ok(Rootfs::Host)),
            (Carrier::Fs, host, Ok(Rootfs::Host)),
            (Carrier::Fs, guest, Ok(Rootfs::GuestOverFs)),
            (Carrier::Block, None, Ok(Rootfs::GuestOverBlock)),
            (Carrier::Block, guest, Ok(Rootfs::GuestOverBlock)),
            (Carrier::Block, host, Err(RootfsError)),
        ] {
            assert_eq!(Rootfs::choose(carrier, stacked), way);
        }
    }
}
