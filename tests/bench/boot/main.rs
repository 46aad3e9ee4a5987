//! `bench-boot`: boots the same kernel, initramfs, memory and command line by hrun-vmm, by qemu's
//! microvm and by Firecracker in turns, and compares the times.
//!
//! What is measured is a whole life: from the start of the process to its end, which comes when
//! init asks for a reset, the first thing it does. Either VMM has nothing but a CPU and memory.
#![forbid(unsafe_code)]

mod initramfs;
mod peer;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use tests::{
    Built,
    samples::{Samples, Summary, milliseconds},
};

use peer::{Guest, Peer};

/// Compares cold boots of hrun-vmm, qemu's microvm and Firecracker.
#[derive(Debug, Parser)]
struct Options {
    /// How often each boots; they take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// The program of Firecracker, which Debian does not have.
    #[arg(long, value_name = "PATH", default_value = "firecracker")]
    firecracker: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The outcome, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    rounds: u32,
    memory_mib: u64,
    cmdline: String,
    results: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    peer: &'static str,
    #[serde(skip)]
    hint: &'static str,
    version: Option<String>,
    #[serde(flatten)]
    times: Summary,
    /// hrun-vmm's median by its own.
    ratio: Option<f64>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let built = Built::find()?;
    let dir = tempfile::tempdir().context("Failed to make a directory")?;
    let guest = Guest {
        kernel: built.kernel(),
        initramfs: initramfs::with_bench_init(&built.initramfs(), dir.path())?,
        memory: options.memory << 20,
        cmdline: "rdinit=/bench-init".into(),
        kind: peer::host_kind(&built)?,
    };
    let peers = [
        Peer::HrunVmm(built.vmm()),
        Peer::Qemu("qemu-system-x86_64".into()),
        Peer::Firecracker(options.firecracker.clone()),
    ];
    let versions = peers.each_ref().map(Peer::version);
    let mut times: [Samples; 3] = Default::default();
    for round in 1..=options.rounds {
        for (index, peer) in peers.iter().enumerate() {
            if versions[index].is_none() {
                continue;
            }
            let took = peer.boot(&guest, dir.path())?;
            eprintln!(
                "round {round} of {}: {:<11} {:>8.1} ms",
                options.rounds,
                peer.name(),
                milliseconds(took)
            );
            times[index].push(took);
        }
    }
    let ours = times[0].summary().median_ms;
    let results: Vec<_> = peers
        .iter()
        .zip(versions)
        .zip(&times)
        .map(|((peer, version), times)| {
            let times = times.summary();
            Measured {
                peer: peer.name(),
                hint: peer.hint(),
                version,
                ratio: ours
                    .zip(times.median_ms)
                    .map(|(ours, theirs)| ours / theirs),
                times,
            }
        })
        .collect();
    let report = Report {
        rounds: options.rounds,
        memory_mib: options.memory,
        cmdline: guest.full_cmdline()?,
        results,
    };
    if options.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&report).context("plain data")?
        );
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    println!(
        "From start to reset, {} MiB, 1 CPU: {}",
        report.memory_mib, report.cmdline
    );
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>15}",
        "", "median ms", "min ms", "max ms", "hrun-vmm by it"
    );
    for result in &report.results {
        let times = &result.times;
        match (times.median_ms, times.min_ms, times.max_ms, result.ratio) {
            (Some(median), Some(min), Some(max), Some(ratio)) => println!(
                "{:<12} {median:>10.1} {min:>10.1} {max:>10.1} {ratio:>15.3}",
                result.peer
            ),
            _ => println!("{:<12} missing: {}", result.peer, result.hint),
        }
    }
}
