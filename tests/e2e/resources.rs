//! CPUs and memory: what the guest gets, and what the VMM takes for itself.

use anyhow::{Context, Result, ensure};
use tests::{Case, Test, memory::PrivateMemory};

/// Private memory of a VMM beyond the guest's own, after the boot: issue 2, acceptance 11.
const OWN_MEMORY: u64 = 5 << 20;

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        two_cpus_are_there_and_both_work,
        many_cpus_come_up,
        the_guest_sees_the_memory_it_was_given,
        little_memory_is_enough,
        the_vmm_takes_little_memory_for_itself,
        an_app_that_takes_too_much_memory_is_killed_alone,
    ]
    .into()
}

fn two_cpus_are_there_and_both_work(case: &Case) -> Result<()> {
    let script = r#"
        nproc
        spin() { i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; }
        spin & spin & wait
        grep '^cpu[01] ' /proc/stat
    "#;
    let outcome = case
        .run(["--cpus", "2", "busybox", "sh", "-c", script])
        .run()?
        .exits(0)?;
    let lines = outcome.lines();
    ensure!(
        lines.first().is_some_and(|line| line == "2"),
        "{}",
        outcome.describe()
    );
    ensure!(lines.len() == 3, "{}", outcome.describe());
    for line in &lines[1..] {
        let user: u64 = line
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|ticks| ticks.parse().ok())
            .with_context(|| format!("no user time in {line:?}"))?;
        ensure!(user > 0, "one CPU did nothing: {}", outcome.describe());
    }
    Ok(())
}

fn many_cpus_come_up(case: &Case) -> Result<()> {
    case.run(["--cpus", "6", "busybox", "nproc"])
        .run()?
        .prints("6\n")?;
    Ok(())
}

fn the_guest_sees_the_memory_it_was_given(case: &Case) -> Result<()> {
    for (size, mib) in [("512m", 512), ("0.25g", 256)] {
        let outcome = case
            .run([
                "--memory",
                size,
                "busybox",
                "sh",
                "-c",
                "free -m | grep ^Mem",
            ])
            .run()?
            .exits(0)?;
        let total: u64 = outcome
            .text()
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|total| total.parse().ok())
            .with_context(|| outcome.describe())?;
        // The kernel's own code and its page structures are not in the sum.
        ensure!(
            (mib - 32..=mib).contains(&total),
            "{mib} MiB: {}",
            outcome.describe()
        );
    }
    Ok(())
}

fn little_memory_is_enough(case: &Case) -> Result<()> {
    case.run(["--memory", "48m", "busybox", "echo", "fits"])
        .run()?
        .prints("fits\n")?;
    Ok(())
}

fn the_vmm_takes_little_memory_for_itself(case: &Case) -> Result<()> {
    let running = case
        .run(["--memory", "128m", "busybox", "sh", "-c", crate::PATIENT])
        .spawn()?;
    running.wait_for("ready")?;
    let memory = PrivateMemory::of(case.vmm()?.pid, 128 << 20)?;
    ensure!(
        memory.guest > 1 << 20,
        "the guest's memory was not found: {memory:?}"
    );
    ensure!(memory.own <= OWN_MEMORY, "too much: {memory:?}");
    eprintln!(
        "the VMM's own private memory: {} KiB, the guest's: {} KiB",
        memory.own >> 10,
        memory.guest >> 10
    );
    crate::end(running)?;
    Ok(())
}

fn an_app_that_takes_too_much_memory_is_killed_alone(case: &Case) -> Result<()> {
    // dd's buffer is one piece that it fills: it cannot be had.
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo status=$?";
    let outcome = case
        .run(["--memory", "64m", "busybox", "sh", "-c", script])
        .run()?
        .exits(0)?;
    let text = outcome.text();
    ensure!(
        text.starts_with("status=") && text != "status=0\n",
        "{}",
        outcome.describe()
    );
    Ok(())
}
