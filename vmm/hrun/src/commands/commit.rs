//! `hrun commit`: an image of what a container has become.

use anyhow::bail;
use image::{Instruction, NewImage, Reference};

use super::{
    diff::{changes, image_of},
    image::{open_store, progress::Bars},
};
use crate::{container::Containers, dirs::Dirs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun run --name box debian sh -c 'apt-get update && apt-get install -y curl'
  hrun commit box curl:1
  hrun commit -m 'with curl' -c 'CMD [\"curl\", \"--help\"]' box curl:2
  hrun commit -c 'ENV LANG=C.UTF-8' -c 'WORKDIR /srv' box

The image runs what the container ran, unless --change says otherwise. What is in volumes is no part
of it. A running container is paused meanwhile.")]
pub(crate) struct CommitArgs {
    /// Who made it, such as \"Ada <ada@example.org>\"
    #[arg(short, long)]
    author: Option<String>,
    /// What there is to say about it; `hrun image history` shows it
    #[arg(short, long)]
    message: Option<String>,
    /// An instruction of a Dockerfile to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<Instruction>,
    /// Whether a running container is paused: without that, files may be caught half written
    #[arg(short, long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Name or identifier, which may be shortened
    container: String,
    /// Name of the image, with a tag if wanted
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

pub(crate) fn execute(args: &CommitArgs) -> anyhow::Result<()> {
    check_name(args.name.as_ref())?;
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let record = containers.find(&args.container)?;
    let store = open_store(&dirs)?;
    let base = image_of(&store, &record)?;
    let still = containers.still(&record, args.pause)?;
    let changes = changes(&store, &base, &still)?;
    let new = NewImage {
        name: args.name.clone(),
        author: args.author.clone(),
        comment: args.message.clone(),
        created_by: record.command.join(" "),
        instructions: [record.instructions.clone(), args.change.clone()].concat(),
    };
    let bars = Bars::new(!args.quiet);
    let image = store.build_from_changes(&base, &still.upper, &changes, &new, &bars);
    drop(still);
    bars.clear();
    let id = image?.id.to_string();
    record.tell("commit", &[("imageID", &id)]);
    super::print(&format!("{id}\n"))
}

/// A new image has no digest yet that its name could state.
pub(crate) fn check_name(name: Option<&Reference>) -> anyhow::Result<()> {
    match name {
        Some(name) if name.digest().is_some() => {
            bail!("{name} has a digest: a new image can be given a tag only")
        }
        _ => Ok(()),
    }
}
