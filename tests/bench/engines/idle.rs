//! Memory of containers that do nothing: of every process that is there for them, and what it costs
//! the machine.
//!
//! Private memory is that of pages that no other process has: what ends with the container. Kernel
//! memory is not in it, but in the fall of MemAvailable.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tests::{
    memory::PrivateMemory,
    processes::{self, Process},
    samples::median,
};

use crate::{bed::Bed, peer::Peer};

/// Nothing in a VMM but the guest's memory has mappings of this size, in bytes.
const GUEST_MAPPING: u64 = 32 << 20;

/// Until what a start has left to do is done.
const SETTLING: Duration = Duration::from_secs(5);

/// Parts of a container, in the order in which they are shown.
const PARTS: [&str; 5] = [
    "containerd's shim",
    "hrun's shim",
    "hrun-vmm",
    "guest",
    "program",
];

/// Memory of an idle container.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    /// Private memory of its parts in KiB, medians over the containers.
    private_kib: BTreeMap<&'static str, f64>,
    /// The same of all parts together.
    together_kib: f64,
    /// By how much MemAvailable fell for each, in KiB.
    available_kib: f64,
}

pub(crate) fn measure(bed: &Bed, peer: &Peer, containers: u32) -> Result<Idle> {
    let names: Vec<_> = (0..containers)
        .map(|number| format!("{}-idle{number}", peer.name))
        .collect();
    bed.fill_pool()?;
    thread::sleep(SETTLING);
    let before = available_kib()?;
    let measured = measure_all(bed, peer, &names, before);
    for name in &names {
        bed.remove(name)?;
    }
    measured
}

fn measure_all(bed: &Bed, peer: &Peer, names: &[String], before: f64) -> Result<Idle> {
    for name in names {
        bed.start_idle(peer, name)?;
    }
    bed.fill_pool()?;
    thread::sleep(SETTLING);
    let fell = before - available_kib()?;
    let each: Vec<_> = names
        .iter()
        .map(|name| parts(name))
        .collect::<Result<_>>()?;
    let median_of = |part: &dyn Fn(&Parts) -> f64| {
        let mut values: Vec<_> = each.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        median(&values).unwrap_or(0.0)
    };
    let private_kib = PARTS.map(|part| {
        let of = |parts: &Parts| parts.get(part).copied().unwrap_or(0.0);
        (part, median_of(&of))
    });
    Ok(Idle {
        private_kib: private_kib.into(),
        together_kib: median_of(&|parts| parts.values().sum()),
        available_kib: fell / names.len() as f64,
    })
}

/// Private memory of a container's parts in KiB.
type Parts = BTreeMap<&'static str, f64>;

fn parts(name: &str) -> Result<Parts> {
    let mut parts = Parts::new();
    for process in processes::all() {
        let Some(part) = part_of(&process, name) else {
            continue;
        };
        let Ok(memory) = PrivateMemory::of(process.pid, GUEST_MAPPING) else {
            continue;
        };
        let mut add = |part, bytes: u64| *parts.entry(part).or_default() += bytes as f64 / 1024.0;
        if part == "hrun-vmm" {
            add("guest", memory.guest);
            add(part, memory.own);
        } else {
            add(part, memory.own + memory.guest);
        }
    }
    ensure!(parts.len() >= 2, "of {name} only {parts:?} is there");
    Ok(parts)
}

/// What a process is for a container: containerd's shim names it on its command line, all others
/// are in its control groups.
fn part_of(process: &Process, name: &str) -> Option<&'static str> {
    if process.runs("containerd-shim-runc-v2") {
        let mut words = process.command.split(' ').skip_while(|word| *word != "-id");
        return (words.nth(1) == Some(name)).then_some("containerd's shim");
    }
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok()?;
    let ends = format!("/{name}");
    if !groups.lines().any(|line| line.ends_with(&ends)) {
        return None;
    }
    Some(match () {
        () if process.runs("hrun-vmm") => "hrun-vmm",
        () if process.runs("hrun") => "hrun's shim",
        () => "program",
    })
}

fn available_kib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    number.context("/proc/meminfo has no MemAvailable")
}

/// A table with a row for each runtime.
pub(crate) fn render(containers: u32, rows: &[(&'static str, &Idle)]) -> String {
    let mut text = format!(
        "Memory of an idle container (sleep) of {containers} in MiB: private memory, medians; fall of \
         MemAvailable\n{:<6}",
        ""
    );
    for part in PARTS {
        text.push_str(&format!(" {part:>18}"));
    }
    text.push_str(&format!(" {:>10} {:>14}\n", "together", "MemAvailable"));
    for (name, idle) in rows {
        text.push_str(&format!("{name:<6}"));
        for part in PARTS {
            let kib = idle.private_kib.get(part).copied().unwrap_or(0.0);
            text.push_str(&format!(" {:>18.2}", kib / 1024.0));
        }
        let (together, available) = (idle.together_kib / 1024.0, idle.available_kib / 1024.0);
        text.push_str(&format!(" {together:>10.2} {available:>14.2}\n"));
    }
    text
}
