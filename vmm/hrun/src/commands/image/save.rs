//! `hrun image save`: writes images to an archive.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use image::Store;

use super::open_store;
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
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            bail!("An archive is nothing for a terminal: use -o FILE, or a pipe");
        }
        return write(&store, &args.images, io::stdout().lock());
    };
    save_to(&store, &args.images, path)
        .with_context(|| format!("Failed to save to {}", path.display()))
}

/// A file appears when it is complete. What is no file, such as a pipe, is written to as it is.
fn save_to(store: &Store, images: &[String], path: &Path) -> anyhow::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let file = OpenOptions::new().write(true).open(path)?;
        return write(store, images, file);
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Images may hold secrets: others read what they are given.
    let new = tempfile::Builder::new()
        .prefix(".hrun-save")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    write(store, images, new.as_file())?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

fn write(store: &Store, images: &[String], out: impl Write) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, out);
    store.save(images, &mut out)?;
    out.flush().context("Failed to write the archive")
}
