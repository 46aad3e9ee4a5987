//! `hrun export`: all files of a container, as a tar archive.

use std::path::PathBuf;

use super::{
    diff::image_of,
    image::{open_store, output, progress::Bars},
};
use crate::{container::Containers, dirs::Dirs, translate::RUNTIME_PATHS};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun export -o box.tar box
  hrun export box | tar -tv
  hrun export box | hrun import - box:flat

Volumes are no part of it. A running container is paused meanwhile.")]
pub(crate) struct ExportArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or identifier, which may be shortened
    container: String,
}

pub(crate) fn execute(args: &ExportArgs) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let record = containers.find(&args.container)?;
    let store = open_store(&dirs)?;
    let image = image_of(&store, &record)?;
    let _in_use = store.use_image(&image)?;
    output::write(args.output.as_deref(), |out| {
        let still = containers.still(&record, true)?;
        let bars = Bars::new(false);
        store.export(&image, &still.upper, &RUNTIME_PATHS, out, &bars)?;
        Ok(())
    })
}
