//! `kill`: a signal to a container's first process, or to all of them. Nobody can hinder SIGKILL: a
//! guest that does not obey loses its VM.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::Runtime;
use crate::{
    commands::kill::send,
    failpoint::reach,
    oci::{
        cli::KillArgs,
        containers::Seen,
        orders::{self, Order},
        record::Status,
    },
    options::signal,
    signals,
};

/// How long the guest may take to act on SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_millis(700);

/// How long the guest may take to pass another signal on.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(runtime: &Runtime<'_>, args: &KillArgs) -> anyhow::Result<()> {
    let number = signal::parse(&args.signal)?;
    let seen = runtime.containers.find(&args.id)?;
    reach("kill.found", None);
    let is_kill = number == i32::from(signal::KILL);
    match seen.status() {
        // Engines make sure of the end in this way.
        Status::Stopped(_) if args.all && is_kill => Ok(()),
        // containerd and docker look for these words.
        Status::Stopped(_) => bail!("container not running: {} has stopped", args.id),
        Status::Created if is_kill || signals::is_ending(number) => {
            let order = Order::End(number);
            match orders::give(&seen.record.orders_socket(), order, Some(KILL_TIMEOUT)) {
                Ok(()) => Ok(()),
                Err(_) => end(&seen),
            }
        }
        // There is nobody yet who could catch it.
        Status::Created => Ok(()),
        Status::Creating => end(&seen),
        Status::Running if is_kill => kill(&seen, args.all),
        Status::Running => {
            if seen.is_paused() {
                bail!(
                    "container {} is paused: resume it, or it cannot take a signal",
                    args.id
                );
            }
            let deadline = Some(Instant::now() + SIGNAL_TIMEOUT);
            let vsock = seen.record.vsock_socket();
            let process = seen.record.role.process();
            match send(&vsock, process, number, args.all, deadline)? {
                true => Ok(()),
                false => bail!(
                    "container not running: the program of {} has ended",
                    args.id
                ),
            }
        }
    }
}

/// By the guest if it obeys at once, and by ending its VM if it does not.
fn kill(seen: &Seen, all: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let vsock = seen.record.vsock_socket();
    let process = seen.record.role.process();
    // Whose CPUs stand still does nothing.
    let asked = (seen.record.role.is_of_pod() || !seen.is_paused())
        && send(&vsock, process, signal::KILL.into(), all, Some(deadline)).is_ok_and(|sent| sent);
    reach("kill.sent", None);
    if asked && seen.own(deadline)?.is_some() {
        return Ok(());
    }
    end(seen)
}

/// Ends the VM, or the container in it if others are there. The shim takes that for the work of
/// SIGKILL.
pub(super) fn end(seen: &Seen) -> anyhow::Result<()> {
    let record = &seen.record;
    // If its owner just removed the directory, it has ended.
    let _ = fs::write(record.killed_mark(), "");
    if let Some(membership) = record.role.membership() {
        membership.end()?;
        if seen.status() == Status::Running {
            return Ok(());
        }
        // It waits for a start, which the guest knows nothing of.
        if let Some(shim) = record.shim {
            shim.kill().context("Failed to end the container's shim")?;
        }
    } else if let Some(vmm) = record.vmm {
        vmm.kill().context("Failed to end the container's VM")?;
    } else if let Some(shim) = record.shim {
        shim.kill().context("Failed to end the container's shim")?;
    }
    Ok(())
}
