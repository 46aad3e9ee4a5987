//! OCI images: from an archive to directories that overlayfs stacks to a root file system.
//!
//! A [`Store`] is a root-only directory of verified blobs and unpacked layers. [`Store::load`]
//! fills it from OCI archives and layouts and from `docker save` archives, [`Store::pull`] from
//! registries; [`Store::find`] gives the [`Image`] for a name, and [`Image::layers`] its lower
//! directories. What a container wrote on top of those becomes an image by
//! [`Store::build_from_changes`], and goes to others by [`Store::save`] and [`Store::push`].
//! Mounting layers, and everything else that makes a container, is the caller's.
//!
//! Archives and registries are hostile until proven otherwise: nothing in them is named by path strings on the
//! host (module `tree`), nothing unverified becomes visible in the store ([`Store::load`]), and every
//! size has a limit ([`Limits`]).

#![forbid(unsafe_code)]

#[cfg(test)]
mod corpus;
mod digest;
mod image;
mod index;
mod instruction;
pub mod layer;
mod limits;
pub mod manifest;
mod platform;
mod progress;
mod reference;
pub mod registry;
mod source;
mod store;
#[cfg(test)]
mod testing;
mod trash;
mod tree;

pub use archive::ArchiveError;
pub use image::Image;
pub use instruction::{Instruction, InstructionError};
pub use limits::Limits;
pub use oci_spec;
pub use oci_spec::image::Digest;
pub use platform::{Platform, PlatformError};
pub use progress::{Progress, Task};
pub use reference::{Reference, ReferenceError};
pub use source::SourceError;
pub use store::build::{BuildError, NewImage};
pub use store::erofs::ErofsError;
pub use store::find::FindError;
pub use store::load::LoadError;
pub use store::pull::{PullError, PullOptions, Pulled};
pub use store::push::{Missing, PushError, PushOptions, Pushed, PushedIndex};
pub use store::remove::{RemoveError, Removed};
pub use store::save::SaveError;
pub use store::tag::TagError;
pub use store::usage::{ImageSize, Usage};
pub use store::{ImageUse, Store, StoreError, UseError};
