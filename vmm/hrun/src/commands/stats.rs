//! `hrun stats`: what containers use of the host, and of that what is the guest's own, what VMs share,
//! and what it costs to have a VM.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    thread,
    time::{Duration, Instant},
};

use rustix::param::clock_ticks_per_second;
use serde::Serialize;
use serde_json::json;

use crate::{
    container::{Containers, Record, Status},
    dirs::Dirs,
    options::{size, template::Template},
    table,
    usage::{self, Share},
};

/// Between two looks, over which the use of CPUs is averaged, as docker has it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Clears a terminal and begins at its top (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun stats                           All that run, once a second
  hrun stats --no-stream web db        These, once
  hrun stats --no-stream --format json
  hrun stats --no-stream --format '{{.Name}} {{.CPUPerc}}'

CPU % is that of the VM with its VMM, 100 for each CPU of the host. GUEST is what the guest has
written, kernel included, of the memory that it has. SHARED is what it uses of pages that all VMs of
a template have in common. VMM is what hrun-vmm and the process that owns the container have for
themselves.")]
pub(crate) struct StatsArgs {
    /// Show stopped containers as well
    #[arg(short, long)]
    all: bool,
    /// Look once
    #[arg(long)]
    no_stream: bool,
    /// table, json, or a template of ID, Name, CPUPerc, MemUsage, MemPerc, Shared and VMM, such as
    /// {{.Name}}
    #[arg(long, default_value = "table")]
    format: String,
    /// Names or identifiers, which may be shortened [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// What a container uses, as programs get to see it.
#[derive(Debug, Serialize)]
struct Used {
    id: String,
    name: String,
    /// Of one CPU of the host.
    cpu_percent: f64,
    /// Memory that the guest has written, in bytes.
    guest: u64,
    /// Memory that the guest has, in bytes.
    limit: u64,
    /// Memory that it has in common with other VMs, in bytes.
    shared: u64,
    /// Memory of the VMM and of the container's owner, in bytes.
    vmm: u64,
}

/// CPU time of a container's VMM at one time, in ticks.
type Ticks = HashMap<String, (u64, Instant)>;

pub(crate) fn execute(args: &StatsArgs) -> anyhow::Result<()> {
    let template = match args.format.as_str() {
        "table" | "json" => None,
        text => Some(Template::parse(text)?),
    };
    let containers = Containers::open(&Dirs::from_env()?)?;
    let mut before = Ticks::new();
    ticks(&chosen(&containers, args)?, &mut before);
    let clear = !args.no_stream && io::stdout().is_terminal();
    loop {
        thread::sleep(INTERVAL);
        let records = chosen(&containers, args)?;
        let mut used = Vec::new();
        for record in &records {
            used.push(look(&containers, record, &before));
        }
        ticks(&records, &mut before);
        let shown = match (&template, args.format.as_str()) {
            (Some(template), _) => used.iter().map(|used| line(template, used)).collect(),
            (None, "json") => format!("{}\n", serde_json::to_string(&used)?),
            (None, _) => render(&used),
        };
        super::print(&format!("{}{shown}", if clear { CLEAR } else { "" }))?;
        if args.no_stream {
            return Ok(());
        }
    }
}

fn chosen(containers: &Containers, args: &StatsArgs) -> anyhow::Result<Vec<Record>> {
    if args.containers.is_empty() {
        let all = containers.list()?.into_iter();
        return Ok(all.filter(|it| args.all || it.is_running()).collect());
    }
    let named = args.containers.iter();
    named.map(|name| Ok(containers.find(name)?)).collect()
}

fn vmm(record: &Record) -> Option<i32> {
    match &record.status {
        Status::Running { vmm } => Some(vmm.pid),
        _ => None,
    }
}

/// Takes down how much CPU time each has had by now.
fn ticks(records: &[Record], all: &mut Ticks) {
    all.clear();
    for record in records {
        if let Some((own, _)) = vmm(record).and_then(usage::cpu) {
            all.insert(record.id.to_string(), (own, Instant::now()));
        }
    }
}

/// One that has just ended, or does not run, uses nothing.
fn look(containers: &Containers, record: &Record, before: &Ticks) -> Used {
    let pid = vmm(record);
    let memory = |pid: Option<i32>| pid.and_then(|pid| usage::memory_of(pid).ok());
    let (own, guest) = memory(pid).unwrap_or_default();
    let owner = record.owner.filter(|_| pid.is_some());
    let (owner, _): (Share, Share) = memory(owner).unwrap_or_default();
    let config = containers.config(record).ok();
    Used {
        id: record.id.to_string(),
        name: record.name.clone(),
        cpu_percent: cpu_percent(pid, before.get(record.id.as_str())),
        guest: guest.private_dirty,
        limit: config.map_or(0, |config| config.options.class().memory),
        shared: guest.rss.saturating_sub(guest.private_dirty),
        vmm: own.pss + owner.pss,
    }
}

fn cpu_percent(pid: Option<i32>, before: Option<&(u64, Instant)>) -> f64 {
    let (Some((now, _)), Some((before, at))) = (pid.and_then(usage::cpu), before) else {
        return 0.0;
    };
    #[expect(clippy::cast_precision_loss, reason = "it is some ticks")]
    let ticks = now.saturating_sub(*before) as f64;
    #[expect(clippy::cast_precision_loss, reason = "it is 100")]
    let per_second = clock_ticks_per_second().max(1) as f64;
    100.0 * ticks / per_second / at.elapsed().as_secs_f64()
}

/// What tables and templates show.
fn cells(used: &Used) -> [String; 5] {
    #[expect(clippy::cast_precision_loss, reason = "it is shown with two digits")]
    let percent = 100.0 * used.guest as f64 / used.limit.max(1) as f64;
    [
        format!("{:.2}%", used.cpu_percent),
        format!(
            "{} / {}",
            size::format(used.guest),
            size::format(used.limit)
        ),
        format!("{percent:.2}%"),
        size::format(used.shared),
        size::format(used.vmm),
    ]
}

fn short(used: &Used) -> String {
    used.id.chars().take(12).collect()
}

fn line(template: &Template, used: &Used) -> String {
    let [cpu, memory, percent, shared, vmm] = cells(used);
    let value = json!({
        "ID": short(used),
        "Container": short(used),
        "Name": used.name,
        "CPUPerc": cpu,
        "MemUsage": memory,
        "MemPerc": percent,
        "Shared": shared,
        "VMM": vmm,
    });
    table::printable(&template.render(&value)) + "\n"
}

fn render(all: &[Used]) -> String {
    let head = [
        "CONTAINER ID",
        "NAME",
        "CPU %",
        "GUEST / LIMIT",
        "GUEST %",
        "SHARED",
        "VMM",
    ];
    let row = |used: &Used| {
        let mut row = vec![short(used), used.name.clone()];
        row.extend(cells(used));
        row
    };
    table::render(&head, &all.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used() -> Used {
        Used {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            cpu_percent: 12.345,
            guest: 64 << 20,
            limit: 256 << 20,
            shared: 9 << 20,
            vmm: 1 << 20,
        }
    }

    #[test]
    fn guest_shared_and_vmm_are_columns_of_their_own() {
        let text = render(&[used()]);
        let expected = "\
CONTAINER ID   NAME   CPU %    GUEST / LIMIT        GUEST %   SHARED    VMM
0123456789ab   web    12.35%   64.0 MiB / 256 MiB   25.00%    9.0 MiB   1.0 MiB
";
        assert_eq!(text, expected);
    }

    #[test]
    fn templates_have_dockers_fields() {
        let template = Template::parse("{{.Name}} {{.CPUPerc}} {{.MemPerc}} {{.VMM}}").unwrap();
        assert_eq!(line(&template, &used()), "web 12.35% 25.00% 1.0 MiB\n");
    }

    #[test]
    fn who_was_not_seen_before_has_used_nothing_yet() {
        assert!(cpu_percent(None, None) < f64::EPSILON);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(cpu_percent(Some(own), None) < f64::EPSILON);
        let before = (0, Instant::now());
        assert!(cpu_percent(Some(own), Some(&before)) >= 0.0);
    }
}
