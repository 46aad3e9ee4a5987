//! Signals to hrun reach the app.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tests::{Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        term_reaches_the_app,
        other_signals_reach_the_app_too,
        term_during_the_boot_ends_it,
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
    anyhow::ensure!(
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
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(Signal::TERM)?;
        running.wait()?.exits(128 + 15)?;
        case.no_processes()?;
    }
    Ok(())
}
