//! `hrun rm`: removes containers with their writable layers.

use anyhow::bail;

use crate::{container::Containers, dirs::Dirs, exit};

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
    let mut failures = Vec::new();
    for wanted in &args.containers {
        let removed = containers
            .find(wanted)
            .and_then(|record| containers.remove(&record, args.force));
        match removed {
            Ok(()) => super::print(&format!("{wanted}\n"))?,
            Err(error) => failures.push(anyhow::Error::new(error)),
        }
    }
    // One that fails does not spare the others; the last of them is reported from the top.
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        exit::print_error(&format!("hrun: {failure:#}\n"));
    }
    bail!(last)
}
