//! `state` and `list`: what is known about containers.

use std::path::Path;

use serde::Serialize;

use super::{Runtime, print, print_json};
use crate::{
    oci::{
        cli::{ListArgs, ListFormat},
        containers::Seen,
        record::OCI_VERSION,
    },
    table, time,
};

/// A container in the list, with runc's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    oci_version: &'static str,
    id: &'a str,
    pid: i32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: String,
    annotations: &'a std::collections::BTreeMap<String, String>,
    owner: &'static str,
}

impl<'a> Row<'a> {
    fn of(seen: &'a Seen) -> Self {
        let record = &seen.record;
        let status = seen.word();
        let pid = record.shim.filter(|_| status != "stopped");
        Self {
            oci_version: OCI_VERSION,
            id: &record.id,
            pid: pid.map_or(0, |shim| shim.pid),
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: time::format_ns(record.created_ns),
            annotations: &record.annotations,
            owner: "root",
        }
    }
}

pub(super) fn state(runtime: &Runtime<'_>, id: &str) -> anyhow::Result<()> {
    print_json(&runtime.containers.find(id)?.state())
}

pub(super) fn execute(runtime: &Runtime<'_>, args: &ListArgs) -> anyhow::Result<()> {
    let all = runtime.containers.list()?;
    let rows: Vec<_> = all.iter().map(Row::of).collect();
    if args.quiet {
        let ids: String = rows.iter().map(|row| format!("{}\n", row.id)).collect();
        return print(&ids);
    }
    if args.format == ListFormat::Json {
        return print_json(&rows);
    }
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
    let lines = rows.iter().map(|row| {
        vec![
            row.id.to_owned(),
            row.pid.to_string(),
            row.status.to_owned(),
            row.bundle.display().to_string(),
            row.created.clone(),
            row.owner.to_owned(),
        ]
    });
    print(&table::render(&head, &lines.collect::<Vec<_>>()))
}
