//! `bench-engines`: what a container costs under containerd with hrun in the place of its runtime,
//! beside runc and crun: the time of `ctr run --rm ... true`, and the memory of idle containers.
//!
//! containerd is one of our own with its state in a temporary directory, as is hrun's pool; both end
//! with the benchmark. `make bench-engines` gives it a mount and a network namespace.
#![forbid(unsafe_code)]

mod bed;
mod idle;
mod peer;

use std::{fs, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use tests::{
    Built,
    samples::{Samples, Summary, milliseconds},
};

use bed::Bed;
use idle::Idle;
use peer::Peer;

/// Compares containers of hrun, runc and crun under containerd.
#[derive(Debug, Parser)]
struct Options {
    /// How often each runs `true`; they take turns.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Of how many idle containers of each the memory is measured.
    #[arg(long, default_value_t = 5)]
    idle: u32,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

/// The outcome, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    rounds: u32,
    idle: u32,
    /// Runnable processes on average over the last minute, at the beginning and at the end.
    load: [String; 2],
    results: Vec<Measured>,
    left_out: Vec<LeftOut>,
}

/// A runtime that runs here.
#[derive(Debug, Serialize)]
struct Measured {
    runtime: &'static str,
    version: String,
    times: Summary,
    /// Median of hrun's by that of this one.
    ratio: Option<f64>,
    /// None if it was not asked for.
    memory: Option<Idle>,
}

/// A runtime that does not.
#[derive(Debug, Serialize)]
struct LeftOut {
    runtime: &'static str,
    why: String,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-engines: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let bed = Bed::start(&Built::find()?)?;
    let begin = load();
    let mut left_out = Vec::new();
    let mut running: Vec<(Peer, Samples)> = Vec::new();
    for peer in Peer::all(&bed) {
        match bed.run_true(&peer, "try") {
            Ok(_) => running.push((peer, Samples::default())),
            Err(error) if peer.is_hrun => return Err(error.context("hrun does not run")),
            Err(error) => left_out.push(LeftOut {
                runtime: peer.name,
                why: format!("{error:#}"),
            }),
        }
    }
    for round in 0..options.rounds {
        // Each is first, second and last equally often.
        let first = usize::try_from(round)? % running.len();
        for turn in 0..running.len() {
            let index = (first + turn) % running.len();
            let (peer, samples) = &mut running[index];
            let took = bed.run_true(peer, &format!("r{round}"))?;
            eprintln!(
                "round {} of {}: {:<5} {:>8.1} ms",
                round + 1,
                options.rounds,
                peer.name,
                milliseconds(took)
            );
            samples.push(took);
        }
    }
    let ours = running.first().and_then(|(_, it)| it.summary().median_ms);
    let mut results = Vec::new();
    for (peer, samples) in running {
        let times = samples.summary();
        results.push(Measured {
            runtime: peer.name,
            ratio: ours.zip(times.median_ms).map(|(ours, its)| ours / its),
            times,
            memory: (options.idle > 0)
                .then(|| idle::measure(&bed, &peer, options.idle))
                .transpose()
                .with_context(|| format!("Failed to measure idle containers of {}", peer.name))?,
            version: peer.version,
        });
    }
    let report = Report {
        rounds: options.rounds,
        idle: options.idle,
        load: [begin, load()],
        results,
        left_out,
    };
    if options.json {
        let json = serde_json::to_string_pretty(&report).context("plain data")?;
        println!("{json}");
    } else {
        print(&report);
    }
    Ok(())
}

/// The first number of proc_loadavg(5).
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn print(report: &Report) {
    println!(
        "ctr run --rm ... true, command to exit, {} rounds in turns; load {} at the beginning, {} at the end",
        report.rounds, report.load[0], report.load[1]
    );
    println!(
        "{:<6} {:>10} {:>10} {:>10} {:>12}",
        "", "median ms", "min ms", "max ms", "hrun / this"
    );
    for result in &report.results {
        let times = &result.times;
        if let (Some(median), Some(min), Some(max), Some(ratio)) =
            (times.median_ms, times.min_ms, times.max_ms, result.ratio)
        {
            println!(
                "{:<6} {median:>10.1} {min:>10.1} {max:>10.1} {ratio:>12.2}  {}",
                result.runtime, result.version
            );
        }
    }
    for LeftOut { runtime, why } in &report.left_out {
        println!("{runtime:<6} left out, it does not run here: {why}");
    }
    if report.idle > 0 {
        let idle = report.results.iter();
        let idle = idle.filter_map(|result| Some((result.runtime, result.memory.as_ref()?)));
        print!("\n{}", idle::render(report.idle, &idle.collect::<Vec<_>>()));
    }
}

/// For [`Bed::run_true`]: what `run` takes, in time.
fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, std::time::Duration)> {
    let start = Instant::now();
    let result = run()?;
    Ok((result, start.elapsed()))
}
