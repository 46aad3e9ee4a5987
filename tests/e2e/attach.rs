//! `hrun create`, `hrun start -a` and `hrun attach`: containers that are made before they run, and
//! watched while they do.

use std::{fs, io::Write, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::{Case, Terminal, Test, eventually};

use crate::life::{hrun, inspect, remove, says};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        one_that_was_created_waits_to_be_started,
        a_start_is_attached_to_from_its_first_word_on,
        a_start_that_fails_is_told_and_may_be_tried_again,
        what_is_said_and_typed_goes_both_ways,
        signals_are_passed_on_or_not,
        a_terminal_is_let_go_of_and_taken_again,
        who_cannot_be_attached_to_is_told_why,
    ]
    .into()
}

fn one_that_was_created_waits_to_be_started(case: &Case) -> Result<()> {
    let script = "echo $WORD; echo run >> /runs; wc -l < /runs; exit 3";
    let args = [
        "create",
        "--name",
        "job",
        "-e",
        "WORD=made",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    let outcome = hrun(case, &args)?.exits(0)?;
    let id = outcome.text().trim().to_owned();
    ensure!(id.len() == 64, "{}", outcome.describe());
    case.no_processes()?;

    hrun(case, &["ps", "-q"])?.prints("")?;
    let names = ["--format", "{{.Names}} {{.Status}}"];
    let all: Vec<_> = ["ps", "-a"].iter().chain(&names).collect();
    case.hrun(all).run()?.prints("job Created\n")?;
    let chosen = ["ps", "--filter", "status=created"];
    let chosen: Vec<_> = chosen.iter().chain(&names).collect();
    case.hrun(chosen).run()?.prints("job Created\n")?;
    ensure!(inspect(case, &id[..8], "{{.State.Status}}")? == "created");
    hrun(case, &["wait", "job"])?.prints("0\n")?;
    hrun(case, &["rmi", "busybox"])?.is_refused_saying(&["in use by container job"])?;
    hrun(case, &["exec", "job", "true"])?.is_refused_saying(&["not running"])?;

    for runs in ["1", "2"] {
        hrun(case, &["start", "job"])?.prints("job\n")?;
        hrun(case, &["wait", "job"])?.prints("3\n")?;
        let said = hrun(case, &["logs", "job"])?.exits(0)?.text();
        ensure!(said.ends_with(&format!("made\n{runs}\n")), "{said:?}");
    }
    remove(case, "job")?;

    let outcome = hrun(case, &["create", "--rm", "busybox", "true"])?.exits(0)?;
    hrun(case, &["rm", outcome.text().trim()])?.exits(0)?;
    hrun(case, &["create", "no-such-image"])?.is_refused_saying(&["no-such-image"])?;
    hrun(case, &["ps", "-aq"])?.prints("")?;
    Ok(())
}

fn a_start_is_attached_to_from_its_first_word_on(case: &Case) -> Result<()> {
    let script = "echo first; echo err >&2; cat; exit 6";
    let args = [
        "create", "-i", "--name", "sum", "busybox", "sh", "-c", script,
    ];
    hrun(case, &args)?.exits(0)?;
    // More than all buffers on the way hold, both ways at once.
    let typed = "0123456789abcde\n".repeat(64 << 10);
    let start = case.hrun(["start", "-a", "-i", "sum"]);
    let outcome = start.stdin(typed.as_bytes()).run()?.exits(6)?;
    ensure!(
        outcome.text() == format!("first\n{typed}") && outcome.stderr == "err\n",
        "it said {} bytes, and {:?}",
        outcome.stdout.len(),
        outcome.stderr
    );
    ensure!(inspect(case, "sum", "{{.State.ExitCode}}")? == "6");
    // What was seen here is in the log as well.
    let log = hrun(case, &["logs", "--tail", "1", "sum"])?.exits(0)?;
    ensure!(log.text() == "0123456789abcde\n", "{}", log.describe());
    remove(case, "sum")
}

fn a_start_that_fails_is_told_and_may_be_tried_again(case: &Case) -> Result<()> {
    let args = ["create", "--name", "bad", "busybox", "no-such-program"];
    hrun(case, &args)?.exits(0)?;
    let outcome = hrun(case, &["start", "-a", "bad"])?.exits(127)?;
    ensure!(
        outcome.text().is_empty() && outcome.stderr.contains("no-such-program"),
        "{}",
        outcome.describe()
    );
    hrun(case, &["start", "bad"])?.exits(127)?;
    ensure!(!inspect(case, "bad", "{{.State.Status}}")?.is_empty());
    hrun(case, &["start", "-a", "bad", "other"])?.is_refused_saying(&["several"])?;
    remove(case, "bad")
}

fn what_is_said_and_typed_goes_both_ways(case: &Case) -> Result<()> {
    let script = "echo ready; while read line; do echo got $line; \
                  case $line in end) echo bye >&2; exit 7;; esac; done; echo closed";
    let args = [
        "run", "-d", "-i", "--name", "box", "busybox", "sh", "-c", script,
    ];
    hrun(case, &args)?.exits(0)?;
    says(case, "box", "ready")?;

    let first = case.hrun(["attach", "box"]).stdin_open().spawn()?;
    let mut first = first;
    let mut keys = first.stdin.take().context("no standard input")?;
    keys.write_all(b"one\n")?;
    first.wait_for("got one")?;
    // A second one sees the same, and only what comes from now on.
    let second = case.hrun(["attach", "--no-stdin", "box"]).spawn()?;
    eventually("two watchers", Duration::from_secs(60), || {
        // Whoever writes sees it: that tells when the second is there.
        keys.write_all(b"more\n").ok()?;
        second.printed().contains("got more").then_some(())
    })?;
    ensure!(!second.printed().contains("got one"));
    // The first one's end of input is not the container's: it was made in the background.
    drop(keys);
    let third = case
        .hrun(["attach", "box"])
        .stdin("end\n")
        .run()?
        .exits(7)?;
    ensure!(
        third.text().contains("got end") && third.stderr == "bye\n",
        "{}",
        third.describe()
    );
    for watcher in [first, second] {
        let outcome = watcher.wait()?.exits(7)?;
        ensure!(
            outcome.text().ends_with("got end\n") && !outcome.text().contains("closed"),
            "{}",
            outcome.describe()
        );
    }
    remove(case, "box")
}

fn signals_are_passed_on_or_not(case: &Case) -> Result<()> {
    let script = "trap 'echo term; exit 4' TERM; echo ready; sleep 1000 & wait";
    let args = ["run", "-d", "--name", "box", "busybox", "sh", "-c", script];
    hrun(case, &args)?.exits(0)?;
    says(case, "box", "ready")?;
    let attached = |args: &[&str]| {
        let watcher = case.hrun(args).spawn()?;
        let files = format!("/proc/{}/status", watcher.pid());
        // Once TERM is caught it is either passed on or answered.
        eventually("TERM to be caught", Duration::from_secs(60), || {
            let status = fs::read_to_string(&files).ok()?;
            let caught = status
                .lines()
                .find_map(|line| line.strip_prefix("SigCgt:"))?;
            let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
            (caught & (1 << 14) != 0).then_some(())
        })?;
        anyhow::Ok(watcher)
    };
    let deaf = attached(&["attach", "--sig-proxy=false", "box"])?;
    deaf.signal(Signal::TERM)?;
    deaf.wait()?.exits(143)?;
    ensure!(inspect(case, "box", "{{.State.Running}}")? == "true");

    let watcher = attached(&["attach", "box"])?;
    watcher.signal(Signal::TERM)?;
    let outcome = watcher.wait()?.exits(4)?;
    ensure!(outcome.text() == "term\n", "{}", outcome.describe());
    remove(case, "box")
}

fn a_terminal_is_let_go_of_and_taken_again(case: &Case) -> Result<()> {
    hrun(
        case,
        &["run", "-d", "-it", "--name", "box", "busybox", "sh"],
    )?
    .exits(0)?;
    let mut terminal = Terminal::open(&case.hrun(["attach", "box"]), 30, 90)?;
    let before = terminal.attributes()?;
    terminal.types("echo 4$((1+1))\r")?;
    terminal.shows("42")?;
    terminal.types("until [ \"$(stty size)\" = '30 90' ]; do sleep 1; done; echo size=$?\r")?;
    terminal.shows("size=0")?;
    terminal.types("\u{10}\u{11}")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}; {:?}", terminal.screen());
    ensure!(
        terminal.attributes()? == before,
        "the terminal is not as it was"
    );
    ensure!(inspect(case, "box", "{{.State.Running}}")? == "true");
    // Without a terminal there is no way to be at the container's.
    hrun(case, &["attach", "box"])?.is_refused_saying(&["terminal"])?;

    let again = case.hrun(["attach", "--detach-keys", "ctrl-x", "box"]);
    let mut terminal = Terminal::open(&again, 24, 80)?;
    terminal.types("echo 5$((2+1))\r")?;
    terminal.shows("53")?;
    terminal.types("exit 9\r")?;
    let status = terminal.wait()?;
    ensure!(
        status.code() == Some(9),
        "{status}; {:?}",
        terminal.screen()
    );
    remove(case, "box")
}

fn who_cannot_be_attached_to_is_told_why(case: &Case) -> Result<()> {
    hrun(case, &["attach", "nobody"])?.is_refused_saying(&["No such container: nobody"])?;
    hrun(case, &["attach", "--detach-keys", "ctrl-", "nobody"])?.exits(2)?;
    hrun(case, &["create", "--name", "idle", "busybox", "true"])?.exits(0)?;
    hrun(case, &["attach", "idle"])?.is_refused_saying(&["not running", "hrun start -a"])?;

    let running = case
        .run(["--name", "here", "busybox", "sh", "-c", crate::PATIENT])
        .spawn()?;
    running.wait_for("ready")?;
    hrun(case, &["attach", "here"])?.is_refused_saying(&["foreground"])?;
    hrun(case, &["pause", "here"])?.exits(0)?;
    hrun(case, &["attach", "here"])?.is_refused_saying(&["paused"])?;
    hrun(case, &["unpause", "here"])?.exits(0)?;
    crate::end(running)?;
    remove(case, "idle")
}
