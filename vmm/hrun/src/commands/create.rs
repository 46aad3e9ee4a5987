//! `hrun create`: a container that is made, and started later.

use anyhow::Context;
use clap::ArgAction;

use super::run::{self, ContainerArgs};
use crate::{container::Containers, dirs::Dirs, host, log::LogOptions, spec::Process};

/// The options of `hrun run` that say what a container is, and not how it is run.
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  hrun create --name job -v ./data:/data busybox sh /data/job.sh
  hrun start -a job                       Run it here, as often as you like
  hrun create -i --name sum busybox wc -c && echo hello | hrun start -ai sum

`hrun create --bundle DIR ID` makes a container of an OCI bundle instead: see hrun create --bundle .
--help. Its identifier is printed.",
    override_usage = "hrun create [OPTIONS] IMAGE [CMD...]"
)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
    /// Print help
    #[arg(long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

pub(crate) fn execute(args: &CreateArgs) -> anyhow::Result<()> {
    let args = &args.container;
    let options = args.validate()?;
    let dirs = Dirs::from_env()?;
    host::require_root()?;
    let store = super::image::open_store_to_fill(&dirs)?;
    let image = run::find_image(&store, &options.image, None, args)?;
    let _in_use = store.use_image(&image)?;
    let process = Process::resolve(&options, image.config.config().as_ref())?;
    let stop_signal = args.stop_signal(image.config.config().as_ref())?;
    let log = LogOptions::parse(&args.log_opt)?;
    let top = image.layers().first().context("The image has no layers")?;

    let once = options.interactive;
    let (record, config) = args.describe(&image, options, process, stop_signal, log, once);
    let container = Containers::open(&dirs)?.create(record, args.name.as_deref())?;
    container.configure(&config)?;
    container.layer(top)?;
    let id = container.record().id.clone();
    container.rest()?;
    super::print(&format!("{id}\n"))
}
