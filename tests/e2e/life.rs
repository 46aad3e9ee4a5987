//! The life of a container: in the background, told to end, paused, started again, read from.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{Case, Outcome, Test, eventually};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        one_in_the_background_says_who_it_is_and_keeps_what_it_said,
        a_start_that_fails_in_the_background_is_told,
        the_owner_outlives_its_caller_and_dies_alone,
        it_is_asked_to_end_and_ended,
        a_guest_that_does_not_answer_is_ended_within_a_second,
        it_is_waited_for_whatever_becomes_of_it,
        a_signal_is_sent_and_a_name_is_changed,
        it_is_started_again_with_what_it_wrote,
        logs_are_followed_and_chosen,
        logs_are_rotated,
        ps_shows_what_was_asked_for,
        inspect_and_top_look_inside,
        stats_tell_the_guests_memory_from_the_vmms,
        a_running_one_is_removed_by_force,
    ]
    .into()
}

pub(crate) fn hrun(case: &Case, args: &[&str]) -> Result<Outcome> {
    case.hrun(args).run()
}

/// Starts a container in the background and gives its identifier.
fn detached(case: &Case, args: &[&str]) -> Result<String> {
    let outcome = case
        .hrun(["run", "-d"].iter().chain(args))
        .run()?
        .exits(0)?;
    let id = outcome.text().trim().to_owned();
    ensure!(
        id.len() == 64 && outcome.stderr.is_empty(),
        "{}",
        outcome.describe()
    );
    Ok(id)
}

fn patient(case: &Case, options: &[&str]) -> Result<String> {
    let command = ["busybox", "sh", "-c", crate::PATIENT];
    let args: Vec<_> = options.iter().chain(&command).copied().collect();
    let id = detached(case, &args)?;
    says(case, &id, "ready")?;
    Ok(id)
}

/// Waits until a container has said something.
pub(crate) fn says(case: &Case, name: &str, text: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let outcome = hrun(case, &["logs", name])?.exits(0)?;
        if outcome.text().contains(text) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(120),
            "{name} did not say {text:?}: {}",
            outcome.describe()
        );
    }
}

pub(crate) fn inspect(case: &Case, name: &str, field: &str) -> Result<String> {
    let outcome = hrun(case, &["inspect", "-f", field, name])?.exits(0)?;
    Ok(outcome.text().trim().to_owned())
}

pub(crate) fn remove(case: &Case, name: &str) -> Result<()> {
    hrun(case, &["rm", "-f", name])?.exits(0)?;
    case.no_processes()
}

fn one_in_the_background_says_who_it_is_and_keeps_what_it_said(case: &Case) -> Result<()> {
    let script = "echo out; echo err >&2; printf end; exit 5";
    let id = detached(case, &["--name", "job", "busybox", "sh", "-c", script])?;
    hrun(case, &["wait", &id])?.prints("5\n")?;
    let outcome = hrun(case, &["logs", "job"])?.exits(0)?;
    ensure!(
        outcome.text() == "out\nend" && outcome.stderr == "err\n",
        "{}",
        outcome.describe()
    );
    let json = fs::read_to_string(inspect(case, "job", "{{.LogPath}}")?)?;
    let line = json
        .lines()
        .find(|line| line.contains("err"))
        .context("no err")?;
    ensure!(
        line.starts_with(r#"{"log":"err\n","stream":"stderr","time":"20"#)
            && line.ends_with("Z\"}"),
        "{line}"
    );
    remove(case, "job")
}

fn a_start_that_fails_in_the_background_is_told(case: &Case) -> Result<()> {
    let args = ["run", "-d", "--rm", "busybox", "no-such-program"];
    let outcome = hrun(case, &args)?.exits(127)?;
    ensure!(
        outcome.text().is_empty() && outcome.stderr.contains("no-such-program"),
        "{}",
        outcome.describe()
    );
    case.no_processes()?;
    hrun(case, &["ps", "-aq"])?.prints("")?;
    Ok(())
}

fn the_owner_outlives_its_caller_and_dies_alone(case: &Case) -> Result<()> {
    patient(case, &["--name", "box"])?;
    let owner: i32 = inspect(case, "box", "{{.State.OwnerPid}}")?.parse()?;
    let stat = fs::read_to_string(format!("/proc/{owner}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    ensure!(
        fields[3] == owner.to_string() && fields[4] == "0",
        "it has a terminal or a foreign session: {stat}"
    );
    for stream in 0..3 {
        let open = fs::read_link(format!("/proc/{owner}/fd/{stream}"))?;
        ensure!(
            open.as_os_str() == "/dev/null",
            "stream {stream} is {open:?}"
        );
    }
    let pid = Pid::from_raw(owner).context("no owner")?;
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        kill_process(pid, signal)?;
    }
    hrun(case, &["exec", "box", "true"])?.exits(0)?;

    kill_process(pid, Signal::KILL)?;
    case.no_processes()?;
    let outcome = hrun(case, &["ps", "-a"])?.exits(0)?;
    ensure!(
        outcome.text().contains("Exited (unknown)"),
        "{}",
        outcome.describe()
    );
    remove(case, "box")
}

fn it_is_asked_to_end_and_ended(case: &Case) -> Result<()> {
    patient(case, &["--name", "willing"])?;
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done";
    detached(
        case,
        &["--name", "stubborn", "busybox", "sh", "-c", stubborn],
    )?;
    says(case, "stubborn", "ready")?;
    hrun(case, &["stop", "-t", "120", "willing"])?.prints("willing\n")?;
    ensure!(inspect(case, "willing", "{{.State.ExitCode}}")? == "4");
    let started = Instant::now();
    hrun(case, &["stop", "-t", "1", "stubborn"])?.prints("stubborn\n")?;
    ensure!(
        started.elapsed() >= Duration::from_secs(1),
        "it had no second"
    );
    ensure!(inspect(case, "stubborn", "{{.State.ExitCode}}")? == "137");
    // Who has ended is left alone, who is unknown is named, and the others are done.
    let outcome = hrun(case, &["stop", "nobody", "willing"])?.exits(1)?;
    ensure!(
        outcome.text() == "willing\n" && outcome.stderr.contains("No such container: nobody"),
        "{}",
        outcome.describe()
    );
    let outcome = hrun(case, &["kill", "willing"])?.exits(1)?;
    ensure!(
        outcome.stderr.contains("not running"),
        "{}",
        outcome.describe()
    );
    hrun(case, &["rm", "willing", "stubborn"])?.prints("willing\nstubborn\n")?;
    case.no_processes()
}

fn a_guest_that_does_not_answer_is_ended_within_a_second(case: &Case) -> Result<()> {
    patient(case, &["--name", "box"])?;
    hrun(case, &["pause", "box"])?.prints("box\n")?;
    let outcome = hrun(case, &["pause", "box"])?.exits(1)?;
    ensure!(
        outcome.stderr.contains("already paused"),
        "{}",
        outcome.describe()
    );
    let outcome = hrun(case, &["exec", "box", "true"])?.exits(1)?;
    ensure!(outcome.stderr.contains("paused"), "{}", outcome.describe());
    ensure!(inspect(case, "box", "{{.State.Status}}")? == "paused");
    hrun(case, &["kill", "box"])?.prints("box\n")?;
    ensure!(inspect(case, "box", "{{.State.ExitCode}}")? == "137");
    remove(case, "box")?;

    patient(case, &["--name", "box"])?;
    hrun(case, &["pause", "box"])?.exits(0)?;
    hrun(case, &["unpause", "box"])?.prints("box\n")?;
    hrun(case, &["exec", "box", "true"])?.exits(0)?;
    let outcome = hrun(case, &["unpause", "box"])?.exits(1)?;
    ensure!(
        outcome.stderr.contains("not paused"),
        "{}",
        outcome.describe()
    );
    remove(case, "box")
}

fn it_is_waited_for_whatever_becomes_of_it(case: &Case) -> Result<()> {
    patient(case, &["--rm", "--name", "box"])?;
    let waiting = case.hrun(["wait", "box"]).spawn()?;
    let files = format!("/proc/{}/fd", waiting.pid());
    eventually("somebody to wait", Duration::from_secs(60), || {
        let mut files = fs::read_dir(&files).ok()?.flatten();
        files.find(|file| fs::read_link(file.path()).is_ok_and(|path| path.ends_with("lock")))
    })?;
    let follower = case.hrun(["logs", "-f", "box"]).spawn()?;
    follower.wait_for("ready")?;
    hrun(case, &["stop", "-t", "120", "box"])?.exits(0)?;
    waiting.wait()?.prints("4\n")?;
    follower.wait()?.exits(0)?;
    hrun(case, &["ps", "-aq"])?.prints("")?;
    Ok(())
}

fn a_signal_is_sent_and_a_name_is_changed(case: &Case) -> Result<()> {
    let script = "trap 'echo hup' HUP; trap 'exit 4' TERM; echo ready; while :; do sleep 1; done";
    detached(case, &["--name", "old", "busybox", "sh", "-c", script])?;
    says(case, "old", "ready")?;
    hrun(case, &["rename", "old", "new"])?.exits(0)?;
    hrun(case, &["kill", "-s", "SIGHUP", "new"])?.prints("new\n")?;
    says(case, "new", "hup")?;
    hrun(case, &["kill", "-s", "nonsense", "new"])?.exits(1)?;
    hrun(case, &["stop", "-t", "120", "new"])?.exits(0)?;
    // Its owner has kept the name that it was given.
    ensure!(inspect(case, "new", "{{.State.ExitCode}}")? == "4");
    hrun(case, &["inspect", "old"])?.exits(1)?;
    remove(case, "new")
}

fn it_is_started_again_with_what_it_wrote(case: &Case) -> Result<()> {
    let script = "echo run >> /runs; cat /runs; echo $WORD; echo --";
    let args = [
        "run",
        "-e",
        "WORD=kept",
        "--name",
        "job",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    hrun(case, &args)?.prints("run\nkept\n--\n")?;
    hrun(case, &["start", "job"])?.prints("job\n")?;
    hrun(case, &["wait", "job"])?.prints("0\n")?;
    hrun(case, &["logs", "job"])?.prints("run\nrun\nkept\n--\n")?;

    patient(case, &["--name", "box"])?;
    let first = inspect(case, "box", "{{.State.OwnerPid}}")?;
    hrun(case, &["start", "box"])?.prints("box\n")?;
    ensure!(
        inspect(case, "box", "{{.State.OwnerPid}}")? == first,
        "it was started twice"
    );
    hrun(case, &["restart", "-t", "120", "box"])?.prints("box\n")?;
    ensure!(
        inspect(case, "box", "{{.State.OwnerPid}}")? != first,
        "it was not restarted"
    );
    hrun(case, &["rm", "-f", "job", "box"])?.exits(0)?;
    case.no_processes()
}

fn logs_are_followed_and_chosen(case: &Case) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do echo line $i; done; \
                  until [ -e /go ]; do sleep 1; done; echo last; exit 6";
    detached(case, &["--name", "job", "busybox", "sh", "-c", script])?;
    says(case, "job", "line 5")?;
    hrun(case, &["logs", "-n", "2", "job"])?.prints("line 4\nline 5\n")?;
    hrun(case, &["logs", "--since", "2100-01-01", "job"])?.prints("")?;
    hrun(case, &["logs", "--until", "2000-01-01", "job"])?.prints("")?;
    let outcome = hrun(case, &["logs", "-t", "--tail", "1", "--since", "1h", "job"])?.exits(0)?;
    ensure!(
        outcome.text().starts_with("20") && outcome.text().ends_with("Z line 5\n"),
        "{}",
        outcome.describe()
    );
    let follower = case.hrun(["logs", "-f", "--tail", "1", "job"]).spawn()?;
    follower.wait_for("line 5")?;
    hrun(case, &["exec", "job", "touch", "/go"])?.exits(0)?;
    follower.wait()?.prints("line 5\nlast\n")?;
    hrun(case, &["wait", "job"])?.prints("6\n")?;
    remove(case, "job")
}

fn logs_are_rotated(case: &Case) -> Result<()> {
    let script = "seq 1 5000";
    let options = [
        "--log-opt",
        "max-size=20k",
        "--log-opt",
        "max-file=2",
        "--name",
        "job",
    ];
    let args: Vec<_> = options
        .iter()
        .chain(&["busybox", "sh", "-c", script])
        .copied()
        .collect();
    detached(case, &args)?;
    hrun(case, &["wait", "job"])?.prints("0\n")?;
    let path = inspect(case, "job", "{{.LogPath}}")?;
    for name in [path.clone(), format!("{path}.1")] {
        let size = fs::metadata(&name)?.len();
        ensure!(size > 0 && size <= 20 << 10, "{name} has {size} bytes");
    }
    ensure!(fs::metadata(format!("{path}.2")).is_err());
    let outcome = hrun(case, &["logs", "job"])?.exits(0)?;
    ensure!(
        outcome.text().ends_with("4999\n5000\n"),
        "{}",
        outcome.describe()
    );
    remove(case, "job")
}

fn ps_shows_what_was_asked_for(case: &Case) -> Result<()> {
    let id = patient(case, &["--name", "box"])?;
    hrun(
        case,
        &["run", "--name", "done", "busybox", "sh", "-c", "exit 3"],
    )?
    .exits(3)?;
    let table = hrun(case, &["ps"])?.exits(0)?.text();
    ensure!(
        table.starts_with("CONTAINER ID   IMAGE     COMMAND")
            && table.contains("Up ")
            && table.contains(&id[..12])
            && !table.contains("done"),
        "{table}"
    );
    hrun(case, &["ps", "-q", "--no-trunc"])?.prints(&format!("{id}\n"))?;
    let names = ["--format", "{{.Names}} {{.State}}"];
    for (filter, expected) in [
        ("status=exited", "done exited\n"),
        ("exited=3", "done exited\n"),
        ("exited=4", ""),
        ("name=bo", "box running\n"),
        ("ancestor=busybox", "box running\n"),
    ] {
        let args: Vec<_> = ["ps", "--filter", filter]
            .iter()
            .chain(&names)
            .copied()
            .collect();
        hrun(case, &args)?.prints(expected)?;
    }
    hrun(case, &["ps", "-l", "--format", "{{.Names}}"])?.prints("done\n")?;
    hrun(case, &["pause", "box"])?.exits(0)?;
    let table = hrun(case, &["ps"])?.exits(0)?.text();
    ensure!(table.contains("(Paused)"), "{table}");
    hrun(case, &["ps", "--filter", "color=red"])?.exits(2)?;
    hrun(case, &["rm", "-f", "box", "done"])?.exits(0)?;
    case.no_processes()
}

fn inspect_and_top_look_inside(case: &Case) -> Result<()> {
    let id = patient(case, &["--name", "box", "-e", "A=1", "-v", "data:/data:ro"])?;
    ensure!(inspect(case, &id[..6], "{{.Id}} {{.Name}}")? == format!("{id} box"));
    let json = hrun(case, &["inspect", "box"])?.exits(0)?.text();
    for part in ["\"A=1\"", "\"Destination\": \"/data\"", "\"Running\": true"] {
        ensure!(json.contains(part), "{part} is not in {json}");
    }
    let outcome = hrun(case, &["top", "box"])?.exits(0)?;
    ensure!(
        outcome.text().contains("sleep 1000") && outcome.text().contains("PID"),
        "{}",
        outcome.describe()
    );
    remove(case, "box")?;
    fs::remove_dir_all(case.store().join("volumes"))?;
    Ok(())
}

fn stats_tell_the_guests_memory_from_the_vmms(case: &Case) -> Result<()> {
    patient(case, &["--name", "idle"])?;
    let busy = "echo ready; while :; do :; done";
    let id = detached(case, &["--name", "busy", "busybox", "sh", "-c", busy])?;
    says(case, &id, "ready")?;
    let words = ["stats", "--no-stream", "--format", "json"];
    let text = hrun(case, &words)?.exits(0)?.text();
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let find = |name: &str| {
        let mut all = all.as_array().into_iter().flatten();
        all.find(|used| used["name"] == name)
            .context("it is not listed")
    };
    let number = |name: &str, what: &str| {
        let number = find(name)?[what].as_f64();
        number.with_context(|| format!("{what}: {text}"))
    };
    for name in ["idle", "busy"] {
        ensure!(number(name, "limit")? == f64::from(256 << 20), "{text}");
        ensure!(number(name, "guest")? > f64::from(1 << 20), "{text}");
        ensure!(number(name, "guest")? < number(name, "limit")?, "{text}");
        ensure!(number(name, "vmm")? > 0.0, "{text}");
        ensure!(
            number(name, "vmm")? < number(name, "guest")? * 4.0,
            "{text}"
        );
    }
    ensure!(number("busy", "cpu_percent")? > 5.0, "{text}");
    let table = hrun(case, &["stats", "--no-stream", "busy"])?
        .exits(0)?
        .text();
    ensure!(
        table.contains(&id[..12]) && !table.contains("idle"),
        "{table}"
    );
    hrun(case, &["stats", "--no-stream", "nobody"])?.exits(1)?;
    hrun(case, &["rm", "-f", "idle", "busy"])?.exits(0)?;
    Ok(())
}

fn a_running_one_is_removed_by_force(case: &Case) -> Result<()> {
    patient(case, &["--name", "box"])?;
    let outcome = hrun(case, &["rm", "box"])?.exits(1)?;
    ensure!(outcome.stderr.contains("running"), "{}", outcome.describe());
    remove(case, "box")?;
    // The one in the foreground ends as by the signal.
    let command = ["--name", "box", "busybox", "sh", "-c", crate::PATIENT];
    let running = case.run(command).spawn()?;
    running.wait_for("ready")?;
    hrun(case, &["rm", "-f", "box"])?.exits(0)?;
    running.wait()?.exits(137)?;
    case.no_processes()
}
