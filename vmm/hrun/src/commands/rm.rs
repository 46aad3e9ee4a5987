//! `hrun rm`: removes containers with their writable layers.

use super::for_each;
use crate::{container::Containers, dirs::Dirs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun rm brisk_otter    Remove a stopped container
  hrun rm -f 4f2a        End a running one first")]
pub(crate) struct RmArgs {
    /// End containers that run
    #[arg(short, long)]
    force: bool,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) fn execute(args: &RmArgs) -> anyhow::Result<()> {
    let containers = Containers::open(&Dirs::from_env()?)?;
    for_each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        Ok(containers.remove(&record, args.force)?)
    })
}
