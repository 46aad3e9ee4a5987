//! `hrun exec`: further processes in a container that runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::{Case, Outcome, Running, Terminal, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        a_further_process_is_in_the_container_and_keeps_its_streams_apart,
        it_inherits_from_the_container_unless_told_otherwise,
        its_status_is_its_own_and_dockers,
        a_terminal_works_and_resizes,
        signals_reach_it,
        many_at_once_do_not_get_mixed_up,
        one_in_the_background_goes_on_alone,
        the_end_of_the_container_is_its_end,
        a_container_that_is_not_there_or_does_not_run_is_named,
    ]
    .into()
}

/// A container called "box" that waits to be told to end.
pub(crate) fn started(case: &Case, options: &[&str]) -> Result<Running> {
    let command = ["busybox", "sh", "-c", crate::PATIENT];
    let args = ["--name", "box"].iter().chain(options).chain(&command);
    let running = case.run(args).spawn()?;
    running.wait_for("ready")?;
    Ok(running)
}

fn exec(case: &Case, args: &[&str]) -> Result<Outcome> {
    case.hrun(["exec"].iter().chain(args)).run()
}

fn a_further_process_is_in_the_container_and_keeps_its_streams_apart(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let outcome = case
        .hrun(["exec", "-i", "box", "sh", "-c"])
        .args(["cat; hostname > /tmp/name; echo oops >&2; exit 7"])
        .stdin(b"from here\n".to_vec())
        .run()?
        .exits(7)?;
    ensure!(
        outcome.text() == "from here\n" && outcome.stderr == "oops\n",
        "{}",
        outcome.describe()
    );
    // The same files, the same processes.
    let outcome = exec(
        case,
        &["box", "sh", "-c", "cat /tmp/name; cat /proc/1/cmdline"],
    )?
    .exits(0)?;
    ensure!(
        outcome.text().contains("echo ready"),
        "{}",
        outcome.describe()
    );
    crate::end(running)?;
    Ok(())
}

fn it_inherits_from_the_container_unless_told_otherwise(case: &Case) -> Result<()> {
    let running = started(case, &["-e", "A=1", "-e", "B=2", "-u", "7:8", "-w", "/tmp"])?;
    let script = "echo $A $B $C; id -u; id -g; pwd";
    exec(case, &["box", "sh", "-c", script])?.prints("1 2\n7\n8\n/tmp\n")?;
    let options = ["-e", "B=3", "-e", "C=4", "-u", "0", "-w", "/etc"];
    let args: Vec<_> = options
        .iter()
        .chain(&["box", "sh", "-c", script])
        .copied()
        .collect();
    exec(case, &args)?.prints("1 3 4\n0\n0\n/etc\n")?;
    crate::end(running)?;
    Ok(())
}

fn its_status_is_its_own_and_dockers(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    exec(case, &["box", "sh", "-c", "exit 200"])?.exits(200)?;
    exec(case, &["box", "sh", "-c", "kill -9 $$"])?.exits(137)?;
    let missing = exec(case, &["box", "no-such-program"])?.exits(127)?;
    ensure!(
        missing.stderr.contains("no-such-program"),
        "{}",
        missing.describe()
    );
    exec(case, &["box", "/etc"])?.exits(126)?;
    crate::end(running)?;
    Ok(())
}

fn a_terminal_works_and_resizes(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let mut terminal = Terminal::open(&case.hrun(["exec", "-it", "box", "sh"]), 24, 80)?;
    terminal.shows("# ")?;
    terminal.types("tty; stty size\r")?;
    let answer = terminal.shows("# ")?;
    ensure!(
        answer.contains("/dev/pts/") && answer.contains("\r\n24 80\r\n"),
        "{answer:?}"
    );
    terminal.resize(50, 132)?;
    terminal.types("until [ \"$(stty size)\" = '50 132' ]; do sleep 1; done; echo resized=$?\r")?;
    terminal.shows("resized=0")?;
    terminal.types("exit 3\r")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(3), "{status:?}");
    crate::end(running)?;
    Ok(())
}

fn signals_reach_it(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let script = "trap 'echo got it; exit 3' USR1; echo set; while :; do sleep 1; done";
    let process = case.hrun(["exec", "box", "sh", "-c", script]).spawn()?;
    process.wait_for("set")?;
    process.signal(Signal::USR1)?;
    let outcome = process.wait()?.exits(3)?;
    ensure!(outcome.text() == "set\ngot it\n", "{}", outcome.describe());
    crate::end(running)?;
    Ok(())
}

fn many_at_once_do_not_get_mixed_up(case: &Case) -> Result<()> {
    const COUNT: u8 = 12;
    let running = started(case, &[])?;
    let processes = (1..=COUNT)
        .map(|number| {
            let script = format!("cat; echo out {number}; echo err {number} >&2; exit {number}");
            case.hrun(["exec", "-i", "box", "sh", "-c", script.as_str()])
                .stdin(format!("in {number}\n"))
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    for (number, process) in (1..).zip(processes) {
        let outcome = process.wait()?.exits(number)?;
        ensure!(
            outcome.text() == format!("in {number}\nout {number}\n")
                && outcome.stderr == format!("err {number}\n"),
            "{}",
            outcome.describe()
        );
    }
    crate::end(running)?;
    Ok(())
}

fn one_in_the_background_goes_on_alone(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let script = "sleep 1; seq 100000; echo $WORD > /tmp/done";
    exec(case, &["-d", "-e", "WORD=here", "box", "sh", "-c", script])?.prints("")?;
    let look = "until [ -s /tmp/done ]; do sleep 1; done; cat /tmp/done";
    exec(case, &["box", "sh", "-c", look])?.prints("here\n")?;
    // What cannot be started is told.
    exec(case, &["-d", "box", "no-such-program"])?.exits(127)?;
    crate::end(running)?;
    case.no_processes()
}

fn the_end_of_the_container_is_its_end(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let process = case
        .hrun(["exec", "box", "sh", "-c", "echo here; sleep 1000"])
        .timeout(Duration::from_secs(60))
        .spawn()?;
    process.wait_for("here")?;
    crate::end(running)?;
    process.wait()?.exits(137)?;
    Ok(())
}

fn a_container_that_is_not_there_or_does_not_run_is_named(case: &Case) -> Result<()> {
    let outcome = exec(case, &["nobody", "true"])?.exits(1)?;
    ensure!(
        outcome.stderr.contains("No such container: nobody"),
        "{}",
        outcome.describe()
    );
    case.hrun(["run", "--name", "done", "busybox", "true"])
        .run()?
        .exits(0)?;
    for detach in [&["done", "true"][..], &["-d", "done", "true"]] {
        let outcome = exec(case, detach)?.exits(1)?;
        ensure!(
            outcome.stderr.contains("done is not running"),
            "{}",
            outcome.describe()
        );
    }
    case.hrun(["rm", "done"]).run()?.exits(0)?;
    Ok(())
}
