//! Nothing is left: after many starts, and after the worst that can happen to hrun and its VM.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::{Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        many_starts_leave_nothing,
        killing_hrun_ends_the_vm_and_the_next_hrun_clears_up,
        killing_the_vm_is_reported_and_leaves_nothing,
        a_panic_of_the_guest_is_reported,
        a_guest_that_powers_off_or_resets_is_reported,
        a_killed_container_gives_its_name_back,
    ]
    .into()
}

fn open_files() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

fn many_starts_leave_nothing(case: &Case) -> Result<()> {
    let rounds = if crate::full() { 100 } else { 20 };
    let files = open_files()?;
    for round in 0..rounds {
        case.run(["busybox", "true"]).run()?.exits(0)?;
        case.no_processes()?;
        let litter = case.litter();
        ensure!(litter.is_empty(), "after round {round}: {litter:?}");
    }
    // Another test may have some of its own open just now; twenty would be ours.
    let now = open_files()?;
    ensure!(now < files + 15, "{files} open files became {now}");
    Ok(())
}

/// Moments in the life of a container: fractions of a second before its VM runs, while the guest
/// boots, while the app runs.
const MOMENTS: [u64; 6] = [5, 20, 60, 200, 1000, 2500];

const APP: [&str; 4] = ["busybox", "sh", "-c", "echo ready; sleep 1000"];

fn killing_hrun_ends_the_vm_and_the_next_hrun_clears_up(case: &Case) -> Result<()> {
    for moment in MOMENTS {
        let running = case.run(APP).spawn()?;
        thread::sleep(Duration::from_millis(moment));
        running.signal(Signal::KILL)?;
        drop(running);
        // No hrun is needed for this.
        case.no_processes()?;
    }
    let running = case.run(APP).spawn()?;
    running.wait_for("ready")?;
    running.signal(Signal::KILL)?;
    drop(running);
    case.no_processes()?;

    case.run(["busybox", "echo", "next"])
        .run()?
        .prints("next\n")?;
    let litter = case.litter();
    ensure!(litter.is_empty(), "the next hrun left: {litter:?}");
    Ok(())
}

fn killing_the_vm_is_reported_and_leaves_nothing(case: &Case) -> Result<()> {
    for moment in [0, 10, 100, 1500] {
        let running = case.run(APP).spawn()?;
        let vmm = case.vmm()?;
        thread::sleep(Duration::from_millis(moment));
        vmm.signal(Signal::KILL);
        let outcome = running.wait()?.exits(125)?;
        ensure!(
            outcome.stderr.starts_with("hrun: "),
            "{}",
            outcome.describe()
        );
    }
    let running = case.run(APP).spawn()?;
    running.wait_for("ready")?;
    case.vmm()?.signal(Signal::KILL);
    let outcome = running.wait()?.exits(125)?;
    ensure!(outcome.stderr.contains("hrun: "), "{}", outcome.describe());
    Ok(())
}

fn a_panic_of_the_guest_is_reported(case: &Case) -> Result<()> {
    let outcome = case
        .shell("echo c > /proc/sysrq-trigger; sleep 1000")
        .timeout(Duration::from_secs(120))
        .run()?
        .exits(125)?;
    ensure!(outcome.stderr.contains("panic"), "{}", outcome.describe());
    Ok(())
}

fn a_guest_that_powers_off_or_resets_is_reported(case: &Case) -> Result<()> {
    for (key, word) in [("o", "powered off"), ("b", "reset")] {
        let outcome = case
            .shell(&format!("echo {key} > /proc/sysrq-trigger; sleep 1000"))
            .timeout(Duration::from_secs(120))
            .run()?
            .exits(125)?;
        ensure!(outcome.stderr.contains(word), "{}", outcome.describe());
    }
    Ok(())
}

fn a_killed_container_gives_its_name_back(case: &Case) -> Result<()> {
    let running = case.run(["--name", "box"]).args(APP).spawn()?;
    running.wait_for("ready")?;
    running.signal(Signal::KILL)?;
    drop(running);
    case.run(["--name", "box", "busybox", "echo", "mine"])
        .run()?
        .prints("mine\n")?;
    Ok(())
}
