//! `hrun image import`: an image of one layer, from an archive of a root file system.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use image::{Instruction, NewImage, Reference};

use super::{open_store, progress::Bars};
use crate::{
    commands::{commit::check_name, print},
    dirs::Dirs,
    events,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun import rootfs.tar.gz mine:1
  hrun export box | hrun import -c 'CMD [\"sh\"]' - box:flat
  debootstrap --variant=minbase bookworm root && tar -C root -c . | hrun import - debian:mine")]
pub(crate) struct ImportArgs {
    /// What there is to say about it; `hrun image history` shows it
    #[arg(short, long)]
    message: Option<String>,
    /// An instruction of a Dockerfile to apply, such as CMD, ENV or WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<Instruction>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// A tar archive (plain, gzip or zstd); - is standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Name of the image, with a tag if wanted
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

pub(crate) fn execute(args: &ImportArgs) -> anyhow::Result<()> {
    check_name(args.name.as_ref())?;
    let store = open_store(&Dirs::from_env()?)?;
    let (mut archive, source): (Box<dyn Read>, String) = if args.file == Path::new("-") {
        if io::stdin().is_terminal() {
            bail!("A terminal gives no archive: name a file, or use a pipe");
        }
        (Box::new(io::stdin().lock()), "standard input".into())
    } else {
        let file = File::open(&args.file)
            .with_context(|| format!("Failed to open {}", args.file.display()))?;
        (Box::new(file), args.file.display().to_string())
    };
    let new = NewImage {
        name: args.name.clone(),
        author: None,
        comment: Some(
            args.message
                .clone()
                .unwrap_or_else(|| format!("Imported from {source}")),
        ),
        created_by: String::new(),
        instructions: args.change.clone(),
    };
    let bars = Bars::new(!args.quiet);
    let image = store.build_from_archive(&mut archive, &new, &bars);
    bars.clear();
    let image = image.with_context(|| format!("Failed to import {source}"))?;
    events::image("import", &image.id);
    print(&format!("{}\n", image.id))
}
