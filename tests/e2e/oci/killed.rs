//! `kill -9` of everybody at every point of a container's life.

mod guest;
mod pool;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;
use tests::{Case, Test};

use super::{Bundle, PATIENT};

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        whoever_is_killed_at_create_leaves_nothing,
        whoever_is_killed_at_start_leaves_nothing,
        whoever_is_killed_at_exec_leaves_nothing,
        whoever_is_killed_at_the_end_leaves_nothing,
    ]
    .into_iter()
    .chain(guest::tests())
    .chain(pool::tests())
    .collect()
}

/// Removes a container that somebody's end left in whatever state; nothing of it may remain. Gives
/// how long that took.
fn removed(bundle: &Bundle<'_>) -> Result<Duration> {
    let started = Instant::now();
    bundle.delete()?.exits(0)?;
    bundle.is_gone()?;
    Ok(started.elapsed())
}

/// Points at which `hrun` itself is killed, and those of the shim's, where its VM may be as well.
struct Points {
    of_command: &'static [&'static str],
    of_shim: &'static [&'static str],
    of_vm: &'static [&'static str],
}

/// Somebody is killed at one point after the other of one step in a container's life; after that
/// `delete --force` has to leave nothing. `step` is given the point, and whether that is the
/// command's own.
fn kill_everywhere(
    bundle: &Bundle<'_>,
    points: &Points,
    step: impl Fn(&str, bool) -> Result<()>,
) -> Result<()> {
    let vm = points.of_vm.iter().map(|point| format!("{point}:vmm"));
    let shim = points.of_shim.iter().map(ToString::to_string);
    let command = points.of_command.iter().map(ToString::to_string);
    let all = command
        .map(|point| (point, true))
        .chain(shim.chain(vm).map(|point| (point, false)));
    let mut times = Vec::new();
    for (point, is_commands) in all {
        let tried = step(&point, is_commands).and_then(|()| removed(bundle));
        times.push(tried.with_context(|| format!("killed at {point}"))?);
    }
    tell(&times);
    Ok(())
}

/// Says how long it took: no machine that tests run on has promised anything.
fn tell(times: &[Duration]) {
    let slowest = times.iter().max().unwrap_or(&Duration::ZERO);
    eprintln!(
        "killed at {} points; the slowest was gone after {} ms",
        times.len(),
        slowest.as_millis()
    );
}

fn whoever_is_killed_at_create_leaves_nothing(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |config| {
        config["linux"]["resources"] = json!({"cpu": {"shares": 512}});
    })?;
    let points = Points {
        of_command: &[
            "create.made",
            "create.recorded",
            "create.groups",
            "create.limited",
            "create.spawned",
            "create.hooked",
            "create.done",
        ],
        of_shim: &[
            "shim.begun",
            "shim.grouped",
            "shim.entered",
            "shim.recorded",
            "shim.told",
            "shim.spawned",
            "shim.announced",
            "shim.claimed",
            "shim.prepared",
            "shim.created",
        ],
        of_vm: &["shim.spawned", "shim.announced", "shim.claimed"],
    };
    kill_everywhere(&bundle, &points, |point, is_commands| {
        let created = bundle.creating(&[]).env("HRUN_FAILPOINT", point).run()?;
        if is_commands {
            created.dies_of(Signal::KILL)?;
        } else {
            // It undoes by itself what it could not finish.
            created.exits(1)?;
            bundle.is_gone()?;
        }
        Ok(())
    })
}

fn whoever_is_killed_at_start_leaves_nothing(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    let points = Points {
        of_command: &["start.found", "start.ordered"],
        of_shim: &["shim.ordered", "shim.started", "shim.running"],
        of_vm: &[
            "shim.prepared",
            "shim.created",
            "shim.ordered",
            "shim.started",
            "shim.running",
        ],
    };
    kill_everywhere(&bundle, &points, |point, is_commands| {
        let created = bundle.creating(&[]).env("HRUN_FAILPOINT", point).run()?;
        created.exits(0)?;
        let start = bundle.hrun(&["start", "box"]).env("HRUN_FAILPOINT", point);
        let started = start.run()?;
        if is_commands {
            started.dies_of(Signal::KILL)?;
            return Ok(());
        }
        bundle.ends()
    })
}

fn whoever_is_killed_at_exec_leaves_nothing(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    let process = bundle.path.join("process.json");
    let json = json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["sh", "-c", "sleep 1000"],
        "env": ["PATH=/bin"],
        "cwd": "/",
    });
    fs::write(&process, json.to_string())?;
    let process = process.display().to_string();
    let script = format!(
        "exec \"$0\" exec --detach --process {process} box </dev/null >{0}/exec 2>&1",
        bundle.path.display()
    );
    let points = Points {
        of_command: &["exec.spawned", "exec.started"],
        of_shim: &["exec-shim.entered", "exec-shim.started"],
        of_vm: &["exec-shim.entered", "exec-shim.started"],
    };
    kill_everywhere(&bundle, &points, |point, is_commands| {
        bundle.ready()?;
        let hrun = case.built().hrun().display().to_string();
        let exec = case.with("/bin/sh", ["-c", &script, &hrun]);
        let outcome = exec.env("HRUN_FAILPOINT", point).run()?;
        if is_commands {
            outcome.dies_of(Signal::KILL)?;
        } else if point.ends_with(":vmm") {
            bundle.ends()?;
        } else {
            outcome.exits(1)?;
            // The container minds neither.
            bundle.hrun(&["exec", "box", "true"]).run()?.exits(0)?;
        }
        Ok(())
    })
}

fn whoever_is_killed_at_the_end_leaves_nothing(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    let points = Points {
        of_command: &[
            "kill.found",
            "kill.sent",
            "delete.ended",
            "delete.killed",
            "delete.ungrouped",
            "delete.removed",
        ],
        of_shim: &["shim.ended", "shim.stopped"],
        of_vm: &["shim.ended", "shim.stopped"],
    };
    kill_everywhere(&bundle, &points, |point, is_commands| {
        let create = bundle.creating(&[]).env("HRUN_FAILPOINT", point);
        create.run()?.exits(0)?;
        bundle.hrun(&["start", "box"]).run()?.exits(0)?;
        let words: &[&str] = match point.starts_with("delete.") {
            true => &["delete", "--force", "box"],
            false => &["kill", "box", "KILL"],
        };
        let outcome = bundle.hrun(words).env("HRUN_FAILPOINT", point).run()?;
        if is_commands {
            outcome.dies_of(Signal::KILL)?;
        } else {
            outcome.exits(0)?;
            bundle.ends()?;
        }
        Ok(())
    })
}
