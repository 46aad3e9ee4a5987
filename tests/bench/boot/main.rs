//! `bench-boot`: boots the same kernel, initramfs, memory and command line by hrun-vmm and by
//! qemu's microvm in turns, and compares the times.
//!
//! What is measured is a whole life: from the start of the process to its end, which comes when
//! init asks for a reset, the first thing it does. Either VMM has nothing but a CPU and memory.
#![forbid(unsafe_code)]

mod initramfs;
mod peer;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use tests::{
    Built,
    samples::{Samples, Summary, milliseconds},
};

use peer::{Guest, Peer};

/// Compares cold boots of hrun-vmm and qemu's microvm.
#[derive(Debug, Parser)]
struct Options {
    /// How often each boots; they take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
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
    /// hrun-vmm's median by that of qemu.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Measured {
    peer: &'static str,
    version: Option<String>,
    #[serde(flatten)]
    times: Summary,
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
    let peers = [Peer::hrun_vmm(&built), Peer::qemu()];
    let versions = peers.each_ref().map(Peer::version);
    let mut times: [Samples; 2] = Default::default();
    for round in 1..=options.rounds {
        for (index, peer) in peers.iter().enumerate() {
            if versions[index].is_none() {
                continue;
            }
            let took = peer.boot(&guest, dir.path())?;
            eprintln!(
                "round {round} of {}: {:<9} {:>8.1} ms",
                options.rounds,
                peer.name(),
                milliseconds(took)
            );
            times[index].push(took);
        }
    }
    let results: Vec<_> = peers
        .iter()
        .zip(versions)
        .zip(&times)
        .map(|((peer, version), times)| Measured {
            peer: peer.name(),
            version,
            times: times.summary(),
        })
        .collect();
    let ratio = results[0]
        .times
        .median_ms
        .zip(results[1].times.median_ms)
        .map(|(ours, theirs)| ours / theirs);
    let report = Report {
        rounds: options.rounds,
        memory_mib: options.memory,
        cmdline: guest.full_cmdline()?,
        results,
        ratio,
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
        "{:<10} {:>10} {:>10} {:>10}",
        "", "median ms", "min ms", "max ms"
    );
    for result in &report.results {
        let times = &result.times;
        match (times.median_ms, times.min_ms, times.max_ms) {
            (Some(median), Some(min), Some(max)) => {
                println!("{:<10} {median:>10.1} {min:>10.1} {max:>10.1}", result.peer);
            }
            _ => println!(
                "{:<10} missing: not installed here (make deps-bench-boot)",
                result.peer
            ),
        }
    }
    if let Some(ratio) = report.ratio {
        println!("ratio      {ratio:>10.3}");
    }
}
