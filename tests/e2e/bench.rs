//! `hrun bench`: it measures what is there, names what is not, and leaves nothing behind. How fast
//! anything is, no test asks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Case, Invocation, Outcome, Test};

/// How long the smallest of benchmarks may take on a busy machine: a few boots.
const TIMEOUT: Duration = Duration::from_secs(900);

pub(crate) fn tests() -> Vec<Test> {
    let anywhere = crate::tests![what_is_missing_is_named, what_is_unknown_is_refused];
    crate::tests![
        a_small_benchmark_measures_every_part,
        an_interrupted_benchmark_keeps_what_it_has_and_cleans_up,
        what_a_killed_benchmark_left_is_removed_by_the_next,
    ]
    .into_iter()
    .chain(anywhere.map(Test::without_vm))
    .collect()
}

fn bench(case: &Case, args: &[&str]) -> Invocation {
    case.hrun(["bench", "--output"])
        .args([output(case)])
        .args(args.iter().copied())
        .timeout(TIMEOUT)
}

fn output(case: &Case) -> PathBuf {
    case.path("results")
}

fn report(case: &Case, outcome: &Outcome) -> Result<Value> {
    let text =
        fs::read_to_string(output(case).join("report.json")).with_context(|| outcome.describe())?;
    serde_json::from_str(&text).with_context(|| outcome.describe())
}

/// The entries of a list that belong to an arm.
fn of<'a>(report: &'a Value, list: &str, arm: &str) -> Vec<&'a Value> {
    report[list]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["arm"] == arm)
        .collect()
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

fn a_small_benchmark_measures_every_part(case: &Case) -> Result<()> {
    let args = "--quick --arms cold,crun --samples 1 --cold-samples 1 --at-once 1 --idle 1 \
                --time-limit 800";
    let args: Vec<&str> = args.split_whitespace().collect();
    let outcome = bench(case, &args).run()?.exits(0)?;
    let report = report(case, &outcome)?;
    ensure!(report["failures"] == Value::Array(Vec::new()), "{report}");
    let notes = report["notes"].to_string();
    ensure!(!notes.contains("time was up"), "{notes}");
    ensure!(
        report["facts"]["kvm"].is_string() && positive(&report["facts"]["memory"]),
        "{report}"
    );
    let arms = report["arms"].as_array().context("arms are listed")?;
    let mut measured = Vec::new();
    for arm in arms {
        let name = arm["name"].as_str().context("arms have names")?;
        match arm["missing"].as_str() {
            None => measured.push(name),
            // Debian has it, but the tests do not demand it.
            Some(reason) => ensure!(name == "crun" && reason.contains("not installed"), "{arm}"),
        }
        ensure!(outcome.text().contains(name), "{}", outcome.describe());
    }
    ensure!(measured.contains(&"cold"), "{report}");
    for arm in measured {
        every_part_is_there(&report, arm).with_context(|| format!("{arm} in {report}"))?;
    }
    for plot in ["starts.svg", "bursts.svg", "memory.svg", "work.svg"] {
        let svg = fs::read_to_string(output(case).join(plot)).context(plot)?;
        ensure!(
            svg.starts_with("<svg") && svg.contains(">cold"),
            "{plot}: {svg}"
        );
    }
    Ok(())
}

fn every_part_is_there(report: &Value, arm: &str) -> Result<()> {
    let starts = of(report, "starts", arm);
    ensure!(starts.len() == 2, "one start with each command");
    for start in starts {
        let says = start["command"] == "echo";
        ensure!(positive(&start["exit_ms"]), "{start}");
        ensure!(positive(&start["first_byte_ms"]) == says, "{start}");
        let [first, exit] = ["first_byte_ms", "exit_ms"].map(|name| start[name].as_f64());
        ensure!(first <= exit, "{start}");
    }
    let bursts = of(report, "bursts", arm);
    ensure!(bursts.len() == 1 && positive(&bursts[0]["all_ms"]));
    let idle = of(report, "idle", arm);
    ensure!(idle.len() == 2 && idle[0]["count"] == 0 && idle[1]["count"] == 1);
    ensure!(idle[0]["memory"]["processes"] == 0, "nobody was there yet");
    let memory = &idle[1]["memory"];
    // A VM has its memory in the VMM; a namespace container is a process like others.
    for (part, in_vm) in [("vmm", true), ("guest", true), ("app", false)] {
        let there = positive(&memory[part]["pss"]);
        ensure!(there == (in_vm == (arm == "cold")), "{part} of {memory}");
    }
    ensure!(positive(&memory["front"]["private_dirty"]), "{memory}");
    let work = of(report, "work", arm);
    ensure!(work.len() == 8 && work.iter().all(|sample| positive(&sample["rate"])));
    Ok(())
}

fn an_interrupted_benchmark_keeps_what_it_has_and_cleans_up(case: &Case) -> Result<()> {
    let args = "--arms cold,crun --samples 1000 --cold-samples 1000 --parts starts";
    let args: Vec<&str> = args.split_whitespace().collect();
    let running = bench(case, &args).spawn()?;
    case.vmm()?;
    running.signal(Signal::INT)?;
    let outcome = running.wait()?.exits(130)?;
    let report = report(case, &outcome)?;
    ensure!(
        report["notes"].to_string().contains("interrupted"),
        "{report}"
    );
    ensure!(
        outcome.stderr.contains("cleaned up"),
        "{}",
        outcome.describe()
    );
    case.no_processes()
}

fn what_a_killed_benchmark_left_is_removed_by_the_next(case: &Case) -> Result<()> {
    let args = "--arms cold,crun --samples 1000 --cold-samples 1000 --parts starts";
    let args: Vec<&str> = args.split_whitespace().collect();
    let killed = bench(case, &args).spawn()?;
    case.vmm()?;
    let group = format!("hrun-bench-{}", killed.pid());
    killed.signal(Signal::KILL)?;
    killed.wait()?.dies_of(Signal::KILL)?;
    ensure!(!groups(&group)?.is_empty() && !directories(case)?.is_empty());

    // It finds nothing to measure.
    bench(case, &["--quiet", "--arms", "crun"])
        .env("PATH", case.path("nowhere").as_os_str())
        .run()?
        .exits(1)?;
    let left = [groups(&group)?, directories(case)?].concat();
    ensure!(left.is_empty(), "{left:?}");
    // The container itself is any hrun's to clear up.
    case.hrun(["ps"]).run()?.exits(0)?;
    case.no_processes()
}

/// The control groups of this name.
fn groups(name: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/fs/cgroup")? {
        found.push(entry?.path().join(name));
    }
    found.push(Path::new("/sys/fs/cgroup").join(name));
    found.retain(|group| group.is_dir());
    Ok(found)
}

/// What a benchmark works in.
fn directories(case: &Case) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for parent in [case.store(), case.state()] {
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("bench-") {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn what_is_missing_is_named(case: &Case) -> Result<()> {
    bench(case, &["--quiet", "--arms", "crun,runc"])
        .env("PATH", case.path("nowhere").as_os_str())
        .run()?
        .is_refused_saying(&["crun: not installed", "runc: not installed"])?;
    Ok(())
}

fn what_is_unknown_is_refused(case: &Case) -> Result<()> {
    bench(case, &["--arms", "docker"])
        .run()?
        .is_refused_saying(&["docker", "crun"])?;
    bench(case, &["--image", "nonexistent"])
        .run()?
        .is_refused_saying(&["nonexistent"])?;
    Ok(())
}
