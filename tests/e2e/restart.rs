//! Restart policies: containers that are started again by the process that owns them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tests::{Case, Test, eventually};

use crate::{
    life::{hrun, inspect, says},
    pool,
};

/// Says how often it has run, and fails.
const FAILS: &str = "echo run >> /runs; wc -l < /runs; exit 3";

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![what_cannot_be_restarted_is_refused];
    let with_vm = crate::tests![
        one_that_fails_is_started_again_so_often,
        one_that_is_stopped_is_not_started_again,
        one_whose_owner_dies_is_not_started_again,
        with_the_host_starts_what_its_policy_says,
        it_is_looked_at_until_its_first_end,
        one_that_was_booted_is_booted_again,
        why_it_could_not_be_started_again_is_told,
    ];
    without_vm
        .map(Test::without_vm)
        .into_iter()
        .chain(with_vm)
        .collect()
}

fn restarting(case: &Case, name: &str, policy: &str, script: &str) -> Result<()> {
    let words = ["run", "-d", "--name", name, "--restart", policy];
    let command = ["busybox", "sh", "-c", script];
    let outcome = case.hrun(words.iter().chain(&command)).run()?.exits(0)?;
    ensure!(outcome.stderr.is_empty(), "{}", outcome.describe());
    Ok(())
}

fn restarts(case: &Case, name: &str) -> Result<u32> {
    let count = inspect(case, name, "{{.RestartCount}}")?;
    count
        .parse()
        .with_context(|| format!("RestartCount {count}"))
}

/// Waits until a container is between two runs.
fn wait_restarting(case: &Case, name: &str) -> Result<()> {
    eventually("a pause", Duration::from_secs(120), || {
        let state = inspect(case, name, "{{.State.Status}} {{.State.Restarting}}").ok()?;
        (state == "restarting true").then_some(())
    })
}

fn one_that_fails_is_started_again_so_often(case: &Case) -> Result<()> {
    restarting(case, "job", "on-failure:2", FAILS)?;
    let outcome = hrun(case, &["wait", "job"])?.exits(0)?;
    ensure!(outcome.text() == "3\n", "{}", outcome.describe());
    // Each run finds what the last one wrote.
    let outcome = hrun(case, &["logs", "job"])?.exits(0)?;
    ensure!(outcome.text() == "1\n2\n3\n", "{}", outcome.describe());
    ensure!(restarts(case, "job")? == 2);
    let state = inspect(case, "job", "{{.State.Status}} {{.State.ExitCode}}")?;
    ensure!(state == "exited 3", "{state}");
    // A start by hand begins to count anew, and a success is the end.
    hrun(case, &["update", "--restart", "on-failure:1", "job"])?.exits(0)?;
    hrun(case, &["start", "job"])?.exits(0)?;
    hrun(case, &["wait", "job"])?.exits(0)?;
    ensure!(restarts(case, "job")? == 1);
    hrun(case, &["rm", "job"])?.exits(0)?;

    restarting(case, "good", "on-failure", "true")?;
    hrun(case, &["wait", "good"])?.exits(0)?;
    ensure!(restarts(case, "good")? == 0);
    hrun(case, &["rm", "good"])?.exits(0)?;
    Ok(())
}

fn one_that_is_stopped_is_not_started_again(case: &Case) -> Result<()> {
    // While it runs, by each way to end it.
    for (name, end) in [
        ("stopped", ["stop", "-t", "1"].as_slice()),
        ("killed", &["kill"]),
    ] {
        restarting(case, name, "always", crate::PATIENT)?;
        says(case, name, "ready")?;
        hrun(case, &[end, &[name]].concat())?.exits(0)?;
        hrun(case, &["wait", name])?.exits(0)?;
        let state = inspect(case, name, "{{.State.Status}} {{.RestartCount}}")?;
        ensure!(state == "exited 0", "{name}: {state}");
        hrun(case, &["rm", name])?.exits(0)?;
    }
    // Between two runs, and by force.
    restarting(case, "job", "always", "exit 3")?;
    wait_restarting(case, "job")?;
    let listed = hrun(case, &["ps", "--filter", "status=restarting"])?.exits(0)?;
    ensure!(
        listed.text().contains("Restarting (3)"),
        "{}",
        listed.describe()
    );
    hrun(case, &["stop", "job"])?.exits(0)?;
    let state = inspect(case, "job", "{{.State.Status}} {{.State.ExitCode}}")?;
    ensure!(state == "exited 3", "{state}");
    case.no_processes()?;
    hrun(case, &["start", "job"])?.exits(0)?;
    wait_restarting(case, "job")?;
    hrun(case, &["rm", "-f", "job"])?.exits(0)?;
    case.no_processes()
}

fn one_whose_owner_dies_is_not_started_again(case: &Case) -> Result<()> {
    restarting(case, "job", "always", "exit 3")?;
    // The pauses grow: a later one is long enough to be met.
    eventually("some restarts", Duration::from_secs(240), || {
        (restarts(case, "job").ok()? >= 3).then_some(())
    })?;
    wait_restarting(case, "job")?;
    let owner: i32 = inspect(case, "job", "{{.State.OwnerPid}}")?.parse()?;
    let owner = Pid::from_raw(owner).context("it has no owner")?;
    kill_process(owner, Signal::KILL)?;
    eventually(
        "its owner's death to be seen",
        Duration::from_secs(30),
        || {
            let state = inspect(case, "job", "{{.State.Status}} {{.State.ExitCode}}").ok()?;
            (state == "exited 3").then_some(())
        },
    )?;
    case.no_processes()?;
    hrun(case, &["rm", "job"])?.exits(0)?;
    Ok(())
}

fn with_the_host_starts_what_its_policy_says(case: &Case) -> Result<()> {
    let boot = |expected: &str| -> Result<()> {
        let outcome = hrun(case, &["start", "--boot"])?.exits(0)?;
        ensure!(outcome.text() == expected, "{}", outcome.describe());
        Ok(())
    };
    let policies = [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("failure", "on-failure"),
    ];
    for (name, policy) in policies {
        restarting(case, name, policy, crate::PATIENT)?;
        says(case, name, "ready")?;
    }
    boot("")?;
    // As a host that fails leaves them.
    for (name, _) in policies {
        let owner: i32 = inspect(case, name, "{{.State.OwnerPid}}")?.parse()?;
        let owner = Pid::from_raw(owner).context("it has no owner")?;
        kill_process(owner, Signal::KILL)?;
    }
    case.no_processes()?;
    boot("unless\nalways\n")?;
    hrun(case, &["stop", "-t", "1", "always", "unless"])?.exits(0)?;
    boot("always\n")?;
    hrun(case, &["rm", "-f", "always", "unless", "failure"])?.exits(0)?;
    case.no_processes()
}

fn it_is_looked_at_until_its_first_end(case: &Case) -> Result<()> {
    let words = ["run", "--name", "job", "--restart", "on-failure:1"];
    let command = ["busybox", "sh", "-c", FAILS];
    let outcome = case.hrun(words.iter().chain(&command)).run()?.exits(3)?;
    ensure!(outcome.text() == "1\n", "{}", outcome.describe());
    hrun(case, &["wait", "job"])?.exits(0)?;
    let outcome = hrun(case, &["logs", "job"])?.exits(0)?;
    ensure!(outcome.text() == "1\n2\n", "{}", outcome.describe());
    hrun(case, &["rm", "job"])?.exits(0)?;
    Ok(())
}

fn one_that_was_booted_is_booted_again(case: &Case) -> Result<()> {
    let words = ["run", "-d", "--name", "job", "--restart", "on-failure:1"];
    let command = ["busybox", "sh", "-c", FAILS];
    case.hrun(words.iter().chain(&command))
        .env("HRUN_START", "boot")
        .run()?
        .exits(0)?;
    let outcome = hrun(case, &["wait", "job"])?.exits(0)?;
    ensure!(outcome.text() == "3\n", "{}", outcome.describe());
    let outcome = hrun(case, &["logs", "job"])?.exits(0)?;
    ensure!(outcome.text() == "1\n2\n", "{}", outcome.describe());
    ensure!(inspect(case, "job", "{{.State.Error}}")?.is_empty());
    hrun(case, &["rm", "job"])?.exits(0)?;
    Ok(())
}

fn why_it_could_not_be_started_again_is_told(case: &Case) -> Result<()> {
    let daemon = pool::serve(case, &["--size", "1"])?;
    pool::wait_ready(case, 1)?;
    let script = "trap 'exit 3' USR1; echo ready; while :; do sleep 0.1; done";
    let words = ["run", "-d", "--name", "job", "--restart", "on-failure"];
    let command = ["busybox", "sh", "-c", script];
    pool::of_own_pool(case.hrun(words.iter().chain(&command)))
        .run()?
        .exits(0)?;
    says(case, "job", "ready")?;
    // What it starts from is gone.
    pool::end(daemon)?;
    hrun(case, &["kill", "-s", "USR1", "job"])?.exits(0)?;
    wait_restarting(case, "job")?;
    eventually("a start that fails", Duration::from_secs(60), || {
        let error = inspect(case, "job", "{{.State.Error}}").ok()?;
        error.contains("pool").then_some(())
    })?;
    hrun(case, &["rm", "-f", "job"])?.exits(0)?;
    case.no_processes()
}

fn what_cannot_be_restarted_is_refused(case: &Case) -> Result<()> {
    let refused = |words: &[&str], status, text: &str| -> Result<()> {
        let outcome = hrun(case, words)?.exits(status)?;
        ensure!(outcome.stderr.contains(text), "{}", outcome.describe());
        Ok(())
    };
    let run = ["run", "--restart", "always"];
    let image = ["busybox", "true"];
    refused(&[&run[..], &["--rm"], &image].concat(), 125, "choose one")?;
    refused(
        &[&run[..], &["--timeline"], &image].concat(),
        125,
        "--restart",
    )?;
    refused(
        &["run", "--restart", "often", "busybox", "true"],
        125,
        "Invalid restart policy \"often\"",
    )?;
    hrun(case, &["create", "--name", "job", "busybox", "true"])?.exits(0)?;
    refused(&["update", "job"], 1, "Nothing is to be changed")?;
    refused(&["update", "--memory", "1k", "job"], 1, "Invalid memory")?;
    refused(
        &["update", "--restart", "no", "none"],
        1,
        "No such container",
    )?;
    hrun(case, &["update", "--memory", "512m", "--cpus", "2", "job"])?.exits(0)?;
    let size = inspect(
        case,
        "job",
        "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}",
    )?;
    ensure!(size == "536870912 2000000000", "{size}");
    hrun(case, &["rm", "job"])?.exits(0)?;
    Ok(())
}
