//! `ps`: the processes of a container on the host, which are its shims and its VM. What runs in the
//! guest has no number here.

use std::process::Command;

use anyhow::{Context, bail};

use super::{Runtime, print, print_json};
use crate::oci::cli::{ListFormat, PsArgs};

pub(super) fn execute(runtime: &Runtime<'_>, args: &PsArgs) -> anyhow::Result<()> {
    let seen = runtime.containers.find(&args.id)?;
    let record = &seen.record;
    let mut pids = record.groups.pids()?;
    if pids.is_empty() && seen.alive {
        pids.extend(
            [record.shim, record.vmm]
                .into_iter()
                .flatten()
                .map(|process| process.pid),
        );
    }
    pids.sort_unstable();
    if args.format == ListFormat::Json {
        return print_json(&pids);
    }
    let options = match args.options.as_slice() {
        [] => vec!["-ef".to_owned()],
        options => options.to_vec(),
    };
    let output = Command::new("ps")
        .args(&options)
        .output()
        .context("Failed to run ps")?;
    if !output.status.success() {
        bail!(
            "ps {}: {}",
            options.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|word| word == "PID");
    let column = column.with_context(|| format!("ps {} shows no PID", options.join(" ")))?;
    let of_ours = lines.filter(|line| {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|word| word.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    });
    let shown: Vec<_> = [head].into_iter().chain(of_ours).collect();
    print(&format!("{}\n", shown.join("\n")))
}
