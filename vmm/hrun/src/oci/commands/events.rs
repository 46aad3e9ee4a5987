//! `events`: what a container uses, as runc reports it. The figures are those of its control groups
//! on the host, VM included: it is what the container costs.

use std::{collections::BTreeMap, fs, path::Path, thread};

use anyhow::Context;
use serde_json::{Value, json};

use super::{Runtime, print};
use crate::{
    oci::{cgroup::Groups, cli::EventsArgs, record::Status},
    time,
};

pub(super) fn execute(runtime: &Runtime<'_>, args: &EventsArgs) -> anyhow::Result<()> {
    let interval = time::duration(&args.interval)
        .filter(|interval| !interval.is_zero())
        .with_context(|| format!("Invalid interval {:?}: give one such as 5s", args.interval))?;
    let seen = runtime.find_running(&args.id)?;
    loop {
        let data = stats(&seen.record.groups);
        let event = json!({"type": "stats", "id": args.id, "data": data});
        print(&format!("{event}\n"))?;
        if args.stats {
            return Ok(());
        }
        thread::sleep(interval);
        let gone = runtime.containers.find(&args.id);
        if !gone.is_ok_and(|seen| seen.status() == Status::Running) {
            return Ok(());
        }
    }
}

fn stats(groups: &Groups) -> Value {
    let mut data = json!({"cpu": {"usage": {}}, "memory": {"usage": {}}, "pids": {}});
    if let Some((dir, version2)) = groups.of("cpuacct") {
        let total = if version2 {
            table(dir, "cpu.stat").get("usage_usec").map(|us| us * 1000)
        } else {
            number(dir, "cpuacct.usage")
        };
        data["cpu"]["usage"]["total"] = total.into();
    }
    if let Some((dir, version2)) = groups.of("memory") {
        let (usage, peak, limit) = if version2 {
            ("memory.current", "memory.peak", "memory.max")
        } else {
            (
                "memory.usage_in_bytes",
                "memory.max_usage_in_bytes",
                "memory.limit_in_bytes",
            )
        };
        data["memory"]["usage"] = json!({
            "usage": number(dir, usage),
            "max": number(dir, peak),
            "limit": number(dir, limit),
        });
        data["memory"]["raw"] = json!(table(dir, "memory.stat"));
    }
    if let Some((dir, _)) = groups.of("pids") {
        data["pids"] =
            json!({"current": number(dir, "pids.current"), "limit": number(dir, "pids.max")});
    }
    data
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    text.trim().parse().ok()
}

/// A file of lines with a name and a number each.
fn table(dir: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}
