//! `pause` and `resume`: the CPUs of the container's VM.

use std::time::Duration;

use anyhow::{Context, bail};
use vmm::api::{Client, Request};

use super::Runtime;

/// How long the VM may take to stop its CPUs.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(runtime: &Runtime<'_>, id: &str, pause: bool) -> anyhow::Result<()> {
    let seen = runtime.find_running(id)?;
    match (pause, seen.is_paused()) {
        (true, true) => bail!("container {id} is paused already"),
        (false, false) => bail!("container {id} is not paused"),
        _ => {}
    }
    let request = if pause {
        Request::Pause
    } else {
        Request::Resume
    };
    Client::connect(&seen.record.control_socket(), TIMEOUT)
        .and_then(|mut vm| vm.request(request))
        .with_context(|| {
            format!(
                "Failed to {} container {id}",
                if pause { "pause" } else { "resume" }
            )
        })?;
    Ok(())
}
