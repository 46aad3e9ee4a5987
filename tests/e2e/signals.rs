//! Signals to hrun reach the app.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::{Case, Test, eventually};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        term_reaches_the_app,
        other_signals_reach_the_app_too,
        term_during_the_boot_ends_it,
        term_ends_the_wait_for_a_turn,
    ]
    .into()
}

fn trapping(signal: &str) -> String {
    format!("trap 'echo got it; exit 3' {signal}; echo ready; sleep 1000 & wait")
}

fn term_reaches_the_app(case: &Case) -> Result<()> {
    let running = case.shell(&trapping("TERM")).spawn()?;
    running.wait_for("ready")?;
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?.exits(3)?;
    ensure!(
        outcome.text() == "ready\ngot it\n",
        "{}",
        outcome.describe()
    );
    Ok(())
}

fn other_signals_reach_the_app_too(case: &Case) -> Result<()> {
    for (name, signal) in [
        ("HUP", Signal::HUP),
        ("USR1", Signal::USR1),
        ("QUIT", Signal::QUIT),
    ] {
        let running = case.shell(&trapping(name)).spawn()?;
        running.wait_for("ready")?;
        running.signal(signal)?;
        running.wait()?.exits(3)?;
    }
    Ok(())
}

fn term_during_the_boot_ends_it(case: &Case) -> Result<()> {
    for delay in [100, 600] {
        let running = case
            .run(["--start", "boot", "busybox", "sleep", "1000"])
            .timeout(Duration::from_secs(120))
            .spawn()?;
        case.vmm()?;
        thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::TERM)?;
        running.wait()?.exits(128 + 15)?;
        case.no_processes()?;
    }
    Ok(())
}

fn term_ends_the_wait_for_a_turn(case: &Case) -> Result<()> {
    let turns = case.state().join("turns");
    fs::create_dir_all(&turns)?;
    let others = thread::available_parallelism()?.get();
    let others = (0..others).map(|number| taken(&turns.join(format!("{number}.lock"))));
    let others = others.collect::<Result<Vec<File>>>()?;
    let running = case.run(["busybox", "echo", "on"]).spawn()?;
    let waits = || turns.join("wait-0.lock").exists().then_some(());
    eventually("a place in the queue", Duration::from_secs(30), waits)?;
    running.signal(Signal::TERM)?;
    running.wait()?.exits(128 + 15)?;
    ensure!(case.vmms().is_empty() && !turns.join("wait-0.lock").exists());

    let running = case.run(["busybox", "echo", "on"]).spawn()?;
    eventually("a place in the queue", Duration::from_secs(30), waits)?;
    drop(others);
    running.wait()?.prints("on\n")?;
    Ok(())
}

/// A turn of ours, just begun.
fn taken(path: &Path) -> Result<File> {
    let file = File::create(path)?;
    file.lock()?;
    file.set_modified(SystemTime::now())?;
    Ok(file)
}
