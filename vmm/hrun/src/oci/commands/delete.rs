//! `delete`: removes what is left of a container. With `--force` it ends it first, whatever hangs.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;

use super::{Runtime, kill};
use crate::{
    failpoint::reach,
    oci::{
        cli::DeleteArgs,
        containers::{Owned, StoreError},
        hooks,
        record::{Record, Status},
    },
    process::ProcessIdentity,
};

/// How long a container that has ended may take to be let go.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a shim whose VM was ended may take to say how.
const SHIM_TIMEOUT: Duration = Duration::from_millis(1000);

pub(super) fn execute(runtime: &Runtime<'_>, args: &DeleteArgs) -> anyhow::Result<()> {
    let seen = match runtime.containers.find(&args.id) {
        Err(StoreError::Missing(_)) if args.force => return Ok(()),
        seen => seen?,
    };
    let owned = match seen.status() {
        Status::Stopped(_) => seen.own(Instant::now() + SETTLE_TIMEOUT)?,
        // As in runc, what never ran needs no force.
        Status::Created | Status::Creating | Status::Running
            if args.force || seen.status() == Status::Created =>
        {
            kill::end(&seen)?;
            let end = Instant::now() + SHIM_TIMEOUT;
            seen.own(end)?
        }
        _ => bail!(
            "cannot delete container {} that is not stopped: {}",
            args.id,
            seen.word()
        ),
    };
    reach("delete.ended", None);
    let owned = match owned {
        Some(owned) => owned,
        None if args.force => {
            // The shim hangs, or is stopped: there is one signal that cannot be.
            if let Some(shim) = seen.record.shim {
                shim.kill().context("Failed to end the container's shim")?;
            }
            // One that was killed before it could write down its shim.
            end_all(&seen.record)?;
            seen.own(Instant::now() + SETTLE_TIMEOUT)?
                .context("Somebody else holds the container")?
        }
        None => bail!(
            "cannot delete container {}: its shim has not ended",
            args.id
        ),
    };
    let spec = owned.config().ok();
    clear(owned, spec.as_ref())
}

/// Removes everything of a container that nobody runs any more.
pub(super) fn clear(owned: Owned, spec: Option<&Spec>) -> anyhow::Result<()> {
    let record = &owned.record;
    if let Some(vmm) = record.vmm {
        vmm.kill().context("Failed to end the container's VM")?;
    }
    // Further processes' shims, that outlived the container.
    end_all(record)?;
    if let Some(membership) = record.role.membership() {
        membership.leave()?;
    }
    reach("delete.killed", None);
    record.groups.remove()?;
    reach("delete.ungrouped", None);
    let record = record.clone();
    owned.remove()?;
    reach("delete.removed", None);
    let hooks = spec.and_then(|spec| spec.hooks().as_ref());
    let hooks = hooks.and_then(|hooks| hooks.poststop().as_ref());
    hooks::run("poststop", hooks, &record.state("stopped"))?;
    Ok(())
}

/// Ends whoever is in the container's control groups.
fn end_all(record: &Record) -> anyhow::Result<()> {
    for pid in record.groups.pids()? {
        if let Some(process) = ProcessIdentity::of_number(pid) {
            process
                .kill()
                .with_context(|| format!("Failed to end process {pid} of the container"))?;
        }
    }
    Ok(())
}
