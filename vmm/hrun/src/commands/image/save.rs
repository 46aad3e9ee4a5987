//! `hrun image save`: writes images to an archive.

use std::path::PathBuf;

use super::{open_store, output};
use crate::dirs::Dirs;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun image save -o busybox.tar busybox
  hrun image save busybox debian:12 | zstd > images.tar.zst

The archive is an OCI layout that docker's tools know as well: `hrun image load`, `podman load`,
`docker load` and `skopeo copy oci-archive:FILE` read it.")]
pub(crate) struct SaveArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Names or identifiers
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) fn execute(args: &SaveArgs) -> anyhow::Result<()> {
    let store = open_store(&Dirs::from_env()?)?;
    output::write(args.output.as_deref(), |out| {
        Ok(store.save(&args.images, out)?)
    })
}
