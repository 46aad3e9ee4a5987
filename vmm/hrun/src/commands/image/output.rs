//! Where archives go: to a file, which appears when it is complete, or to standard output.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, bail};

/// Has `write` write an archive to `path`, or to standard output if there is none.
pub(crate) fn write(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(path) = path else {
        if io::stdout().is_terminal() {
            bail!("An archive is nothing for a terminal: use -o FILE, or a pipe");
        }
        return buffered(io::stdout().lock(), write);
    };
    to_file(path, write).with_context(|| format!("Failed to save to {}", path.display()))
}

/// What is no file, such as a pipe, is written to as it is.
fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return buffered(OpenOptions::new().write(true).open(path)?, write);
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
    buffered(new.as_file(), write)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

fn buffered(
    out: impl Write,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, out);
    write(&mut out)?;
    out.flush().context("Failed to write the archive")
}
