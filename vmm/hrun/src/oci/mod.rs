//! The OCI runtime specification: what a bundle asks for.

pub(crate) mod plan;
