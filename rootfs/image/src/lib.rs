//! OCI images: from an archive to directories that overlayfs stacks to a root file system.
//!
//! A [`Store`] is a root-only directory of verified blobs and unpacked layers. [`Store::load`]
//! fills it from OCI archives and layouts and from `docker save` archives; [`Store::find`] gives
//! the [`Image`] for a name, and [`Image::layers`] its lower directories. Mounting them, and
//! everything else that makes a container, is the caller's.
//!
//! Archives are hostile until proven otherwise: nothing in them is named by path strings on the
//! host (module `tree`), nothing unverified becomes visible in the store ([`Store::load`]), and every
//! size has a limit ([`Limits`]).

#![forbid(unsafe_code)]

mod archive;
mod digest;
mod image;
mod index;
pub mod layer;
mod limits;
pub mod manifest;
mod progress;
mod reference;
mod source;
mod store;
#[cfg(test)]
mod testing;
mod trash;
mod tree;

pub use archive::ArchiveError;
pub use image::Image;
pub use limits::Limits;
pub use oci_spec;
pub use oci_spec::image::Digest;
pub use progress::Progress;
pub use reference::{Reference, ReferenceError};
pub use source::SourceError;
pub use store::find::FindError;
pub use store::load::LoadError;
pub use store::remove::{RemoveError, Removed};
pub use store::tag::TagError;
pub use store::{ImageUse, Store, StoreError, UseError};
