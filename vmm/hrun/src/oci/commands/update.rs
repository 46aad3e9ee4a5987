//! `update`: what the container may use from now on, on the host and in the guest. The VM keeps the
//! CPUs and the memory that it was made with.

use std::{
    fs,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use agent_protocol::Action;
use anyhow::{Context, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::{Runtime, create};
use crate::{
    agent::ask,
    oci::{
        cli::UpdateArgs,
        plan,
        record::{Record, Status},
    },
};

/// How long the guest may take to set limits.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn execute(runtime: &Runtime<'_>, args: &UpdateArgs) -> anyhow::Result<()> {
    let seen = runtime.containers.find(&args.id)?;
    if let Status::Stopped(_) = seen.status() {
        bail!("container not running: {} has stopped", args.id);
    }
    let resources = resources(args)?;
    let mut warnings = Vec::new();
    let files = plan::changes(&resources, &seen.record.role, &mut warnings)?;
    for warning in warnings {
        runtime.global.log().warning(&warning);
    }
    if !files.is_empty() {
        // A frozen container of a pod is in a VM that runs.
        if seen.is_paused() && !seen.record.role.is_of_pod() {
            bail!(
                "container {} is paused: resume it before its limits are changed",
                args.id
            );
        }
        limit_in_guest(&seen.record, files)?;
    }
    seen.record.groups.limit(&resources, create::OVERHEAD)?;
    Ok(())
}

fn limit_in_guest(record: &Record, files: Vec<(String, String)>) -> anyhow::Result<()> {
    let action = Action::Limit {
        container: record.role.container(),
        files,
    };
    let deadline = Some(Instant::now() + TIMEOUT);
    ask(&record.vsock_socket(), action, deadline).with_context(|| {
        format!(
            "Failed to change the limits of container {} in its VM",
            record.id
        )
    })
}

fn resources(args: &UpdateArgs) -> anyhow::Result<LinuxResources> {
    let value = match &args.resources {
        Some(path) => read(path)?,
        None => from_options(args),
    };
    serde_json::from_value(value).context("The resources are none of the OCI specification")
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("Failed to read the resources from standard input")?;
        text
    } else {
        fs::read_to_string(path).with_context(|| format!("Failed to read {}", path.display()))?
    };
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn from_options(args: &UpdateArgs) -> Value {
    let group = |members: Vec<(&str, Option<Value>)>| {
        let given = members.into_iter();
        let given = given.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(given.collect::<Map<_, _>>())
    };
    let memory = group(vec![
        ("limit", args.memory.map(Into::into)),
        ("reservation", args.memory_reservation.map(Into::into)),
        ("swap", args.memory_swap.map(Into::into)),
    ]);
    let cpu = group(vec![
        ("shares", args.cpu_shares.map(Into::into)),
        ("quota", args.cpu_quota.map(Into::into)),
        ("period", args.cpu_period.map(Into::into)),
        ("cpus", args.cpuset_cpus.clone().map(Into::into)),
        ("mems", args.cpuset_mems.clone().map(Into::into)),
    ]);
    let block = group(vec![("weight", args.blkio_weight.map(Into::into))]);
    let pids = args
        .pids_limit
        .map_or(Value::Null, |limit| json!({"limit": limit}));
    let mut all = json!({"memory": memory, "cpu": cpu, "blockIO": block});
    if !pids.is_null() {
        all["pids"] = pids;
    }
    all
}
