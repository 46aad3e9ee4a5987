//! `hrun inspect`: all that is known about containers, in docker's words.

use serde_json::{Value, json};

use super::each;
use crate::{
    container::{Config, Containers, Record, Status},
    dirs::Dirs,
    options::{template::Template, volume::VolumeSource},
    time,
};

/// When nothing has happened yet, as docker has it.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun inspect web
  hrun inspect -f '{{.State.Status}}' web
  hrun inspect web | jq '.[].Config.Env'")]
pub(crate) struct InspectArgs {
    /// Show this of each, such as {{.State.Pid}} or {{json .Config}}
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) fn execute(args: &InspectArgs) -> anyhow::Result<()> {
    let format = args.format.as_deref().filter(|format| *format != "json");
    let template = format.map(Template::parse).transpose()?;
    let dirs = Dirs::from_env()?;
    let containers = Containers::open(&dirs)?;
    let mut all = Vec::new();
    let result = each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        let config = containers.config(&record).ok();
        all.push(value(&dirs, &record, config.as_ref(), record.is_paused()));
        Ok(())
    });
    match template {
        None => super::print_json(&all)?,
        Some(template) => {
            let lines = all.iter().map(|value| template.render(value) + "\n");
            super::print(&lines.collect::<String>())?;
        }
    }
    result
}

fn value(dirs: &Dirs, record: &Record, config: Option<&Config>, paused: bool) -> Value {
    let dir = dirs.store.join("containers").join(record.id.as_str());
    let mut value = json!({
        "Id": record.id.as_str(),
        "Name": record.name,
        "Created": time::format_seconds(record.created),
        "Path": record.command.first(),
        "Args": record.command.get(1..).unwrap_or_default(),
        "State": state(record, paused),
        "Image": record.image_id,
        "LogPath": dir.join(crate::log::FILE),
        "RestartCount": record.restarts,
        "GraphDriver": {
            "Name": "overlay",
            "Data": { "UpperDir": dir.join("upper"), "WorkDir": dir.join("work") },
        },
        "HostConfig": { "AutoRemove": record.auto_remove },
        "Config": { "Image": record.image },
    });
    let Some(config) = config else {
        return value;
    };
    let (options, process) = (&config.options, &config.process);
    let hostname = config.hostname(record);
    value["Config"] = json!({
        "Image": record.image,
        "Hostname": hostname,
        "Domainname": options.domainname,
        "User": process.user,
        "Tty": options.tty,
        "OpenStdin": options.interactive,
        "Env": process.environment(&hostname),
        "Cmd": process.args,
        "WorkingDir": process.cwd,
        "StopSignal": config.stop_signal,
        "StopTimeout": config.stop_timeout,
    });
    value["HostConfig"] = json!({
        "AutoRemove": record.auto_remove,
        "Memory": options.memory,
        "NanoCpus": u64::from(options.cpus) * 1_000_000_000,
        "ReadonlyRootfs": options.read_only,
        "GroupAdd": options.groups,
        "OomScoreAdj": options.oom_score_adj,
        "RestartPolicy": {
            "Name": config.restart.word(),
            "MaximumRetryCount": config.restart.max().unwrap_or(0),
        },
        "LogConfig": {
            "Type": "json-file",
            "Config": {
                "max-size": config.log.max_size.to_string(),
                "max-file": config.log.max_files.to_string(),
            },
        },
    });
    let mounts = options.volumes.iter().map(|volume| {
        let (kind, name, source) = match &volume.source {
            VolumeSource::Path(path) => ("bind", None, path.clone()),
            VolumeSource::Named(name) => ("volume", Some(name), dirs.volumes().join(name)),
        };
        json!({
            "Type": kind,
            "Name": name,
            "Source": source,
            "Destination": volume.target,
            "RW": !volume.read_only,
        })
    });
    value["Mounts"] = mounts.collect();
    value
}

fn state(record: &Record, paused: bool) -> Value {
    let started = record
        .started
        .map_or_else(|| NEVER.into(), time::format_seconds);
    let (pid, code, finished) = match &record.status {
        Status::Making | Status::Created => (0, Some(0), None),
        Status::Running { vmm } => (vmm.pid, Some(0), None),
        Status::Restarting { code, finished } => (0, Some(*code), Some(*finished)),
        Status::Exited { code, finished } => (0, *code, Some(*finished)),
    };
    json!({
        "Status": record.status.word(paused),
        "Running": record.is_running(),
        "Paused": paused,
        "Restarting": record.is_restarting(),
        // The process of its VM, and the one that owns both.
        "Pid": pid,
        "OwnerPid": record.owner.filter(|_| record.is_running() || record.is_restarting()).unwrap_or(0),
        "ExitCode": code,
        "Error": record.error.as_deref().unwrap_or_default(),
        "StartedAt": started,
        "FinishedAt": finished.map_or_else(|| NEVER.into(), time::format_seconds),
    })
}
