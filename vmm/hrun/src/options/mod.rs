//! The values of command-line options, parsed once into what they mean, by docker's rules.

pub(crate) mod capability;
pub(crate) mod env;
pub(crate) mod filter;
pub(crate) mod limits;
pub(crate) mod security;
pub(crate) mod signal;
pub(crate) mod size;
pub(crate) mod template;
pub(crate) mod ulimit;
pub(crate) mod volume;
