//! `pause` and `resume`: the CPUs of the container's VM, or, in a pod, the container in the guest.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use agent_protocol::Action;
use anyhow::{Context, bail};
use vmm::api::{Client, Request};

use super::Runtime;
use crate::{agent::ask, oci::record::Record};

/// How long the VM may take to stop its CPUs.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(runtime: &Runtime<'_>, id: &str, pause: bool) -> anyhow::Result<()> {
    let seen = runtime.find_running(id)?;
    match (pause, seen.is_paused()) {
        (true, true) => bail!("container {id} is paused already"),
        (false, false) => bail!("container {id} is not paused"),
        _ => {}
    }
    let done = if seen.record.role.is_of_pod() {
        freeze(&seen.record, pause)
    } else {
        stop_cpus(&seen.record, pause)
    };
    done.with_context(|| {
        format!(
            "Failed to {} container {id}",
            if pause { "pause" } else { "resume" }
        )
    })
}

fn stop_cpus(record: &Record, pause: bool) -> anyhow::Result<()> {
    let request = if pause {
        Request::Pause
    } else {
        Request::Resume
    };
    Client::connect(&record.control_socket(), TIMEOUT).and_then(|mut vm| vm.request(request))?;
    Ok(())
}

/// The mark is there as long as anything may stand still.
fn freeze(record: &Record, frozen: bool) -> anyhow::Result<()> {
    let mark = record.frozen_mark();
    if frozen {
        fs::write(&mark, "").context("Failed to write it down")?;
    }
    let action = Action::Freeze {
        container: record.role.container(),
        frozen,
    };
    let done = ask(
        &record.vsock_socket(),
        action,
        Some(Instant::now() + TIMEOUT),
    );
    if frozen != done.is_ok() {
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("Failed to write it down");
            }
            _ => {}
        }
    }
    Ok(done?)
}
