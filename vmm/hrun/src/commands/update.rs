//! `hrun update`: another restart policy at once, another size of the VM from the next start on.

use anyhow::bail;

use super::{
    for_each,
    run::{cpus, memory},
};
use crate::{attach::SOCKET, container::Containers, dirs::Dirs, exit, restart::RestartPolicy};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun update --restart no job             Let it end
  hrun update --restart on-failure:3 web db
  hrun update -m 1g --cpus 2 web && hrun restart web

A VM has its memory and its CPUs from its start on: a container that runs gets others when it is
started again.")]
pub(crate) struct UpdateArgs {
    /// Start the command again when it ends: no, always, unless-stopped or on-failure[:NUMBER]
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// Memory that the container sees, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// CPUs that the container sees
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) fn execute(args: &UpdateArgs) -> anyhow::Result<()> {
    let memory = args.memory.as_deref().map(memory).transpose()?;
    let cpus = args.cpus.as_deref().map(cpus).transpose()?;
    if args.restart.is_none() && memory.is_none() && cpus.is_none() {
        bail!("Nothing is to be changed: give --restart, --memory or --cpus");
    }
    let containers = Containers::open(&Dirs::from_env()?)?;
    for_each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        if record.auto_remove
            && args
                .restart
                .is_some_and(|policy| policy != RestartPolicy::No)
        {
            bail!("Container {wanted} is removed when it ends: it cannot be started again");
        }
        let has_no_shim = record.is_running() && !record.runtime_dir.join(SOCKET).exists();
        if has_no_shim && args.restart.is_some() {
            bail!(
                "Container {wanted} runs in the foreground of another hrun, which starts nothing again"
            );
        }
        containers.reconfigure(&record, |config| {
            config.restart = args.restart.unwrap_or(config.restart);
            config.options.memory = memory.unwrap_or(config.options.memory);
            config.options.cpus = cpus.unwrap_or(config.options.cpus);
        })?;
        record.tell("update", &[]);
        if record.is_running() && (memory.is_some() || cpus.is_some()) {
            exit::print_error(&format!(
                "note: container {wanted} runs, and gets its other size by `hrun restart {wanted}`\n"
            ));
        }
        Ok(())
    })
}
