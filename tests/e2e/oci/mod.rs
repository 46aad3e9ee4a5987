//! hrun in the place of runc: the command line that engines use, without an engine.

mod bundle;
mod cves;
mod killed;
mod pods;

use std::{
    fs,
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, kill_process},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};
use tests::{Case, Test, eventually};

pub(crate) use bundle::Bundle;

pub(crate) fn tests() -> Vec<Test> {
    let with_vm = crate::tests![
        a_container_goes_through_its_life,
        what_an_engine_gets_wrong_is_told_in_known_words,
        streams_and_status_are_the_programs,
        further_processes_run_in_the_vm,
        a_terminal_goes_over_the_console_socket,
        the_shim_is_where_engines_look_for_it,
        hooks_run_at_their_points,
        a_hook_that_fails_undoes_everything,
        a_paused_container_is_told_from_a_running_one,
        nothing_hinders_the_end,
        who_dies_takes_the_container_along,
        a_configuration_to_begin_with_is_one,
    ];
    let without_vm = crate::tests![
        what_cannot_be_is_refused_before_there_is_a_container,
        features_and_lists_are_json,
    ];
    let without_vm = without_vm.map(Test::without_vm);
    let all = with_vm.into_iter().chain(without_vm);
    let all = all.chain(killed::tests()).chain(cves::tests());
    all.chain(pods::tests()).collect()
}

/// A script that says "ready" and waits for TERM.
const PATIENT: &str = "trap 'exit 4' TERM; echo ready; while :; do sleep 1; done";

fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(pid).context("no process")?, signal)?;
    Ok(())
}

fn a_container_goes_through_its_life(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |config| {
        config["annotations"] = json!({"org.example.key": "value"});
    })?;
    let pid_file = bundle.path.join("pid");
    bundle
        .create(&["--pid-file", &pid_file.display().to_string()])?
        .exits(0)?;
    let state = bundle.state()?;
    let pid: i64 = fs::read_to_string(&pid_file)?.parse()?;
    ensure!(
        state["status"] == "created"
            && state["pid"] == pid
            && state["id"] == "box"
            && state["bundle"] == bundle.path.display().to_string()
            && state["annotations"]["org.example.key"] == "value"
            && state["ociVersion"].is_string(),
        "{state}"
    );
    ensure!(bundle.said("out").is_empty(), "its program runs already");
    bundle.hrun(&["start", "box"]).run()?.exits(0)?;
    ensure!(bundle.status()? == "running");
    eventually("the script to be ready", Duration::from_secs(60), || {
        bundle.said("out").contains("ready").then_some(())
    })?;
    bundle.hrun(&["kill", "box", "TERM"]).run()?.exits(0)?;
    bundle.ends()?;
    ensure!(bundle.state()?.get("pid").is_none());
    bundle.hrun(&["delete", "box"]).run()?.exits(0)?;
    bundle.is_gone()
}

fn what_an_engine_gets_wrong_is_told_in_known_words(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    let refused = |words: &[&str], text: &str| -> Result<()> {
        let outcome = bundle.hrun(words).run()?.exits(1)?;
        ensure!(outcome.stderr.contains(text), "{}", outcome.describe());
        Ok(())
    };
    for command in ["state", "delete"] {
        refused(&[command, "box"], "does not exist")?;
    }
    bundle.hrun(&["delete", "--force", "box"]).run()?.exits(0)?;
    bundle.ready()?;
    let again = bundle.create(&[])?.exits(1)?;
    ensure!(
        bundle.said("err").contains("container with id exists"),
        "{}",
        again.describe()
    );
    refused(&["start", "box"], "already running")?;
    refused(&["delete", "box"], "not stopped")?;
    refused(&["resume", "box"], "not paused")?;
    let log = bundle.path.join("log");
    let log = log.display().to_string();
    let words = [
        "--log",
        &log,
        "--log-format",
        "json",
        "kill",
        "box",
        "NOSUCH",
    ];
    refused(&words, "NOSUCH")?;
    let line: Value = serde_json::from_str(bundle.said("log").trim())?;
    ensure!(
        line["level"] == "error" && line["msg"].as_str().is_some_and(|m| m.contains("NOSUCH")),
        "{line}"
    );
    bundle.hrun(&["kill", "box", "9"]).run()?.exits(0)?;
    bundle.ends()?;
    refused(&["kill", "box", "TERM"], "container not running")?;
    refused(&["exec", "box", "true"], "container not running")?;
    bundle
        .hrun(&["kill", "--all", "box", "9"])
        .run()?
        .exits(0)?;
    bundle.hrun(&["delete", "box"]).run()?.exits(0)?;
    bundle.is_gone()
}

fn streams_and_status_are_the_programs(case: &Case) -> Result<()> {
    let script = "uname -r; cat; echo oops >&2; exit 7";
    let bundle = Bundle::new(case, script, |_| {})?;
    let path = bundle.path.display().to_string();
    let outcome = bundle
        .hrun(&["run", "--bundle", &path, "box"])
        .stdin(b"from here\n".to_vec())
        .run()?
        .exits(7)?;
    ensure!(
        outcome.text().ends_with("-hrun\nfrom here\n") && outcome.stderr == "oops\n",
        "{}",
        outcome.describe()
    );
    bundle.is_gone()
}

fn further_processes_run_in_the_vm(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    bundle.ready()?;
    let process = bundle.path.join("process.json");
    let script = "cat; hostname; uname -r; exit 5";
    let json = json!({
        "user": {"uid": 7, "gid": 8},
        "args": ["sh", "-c", format!("id -u; {script}")],
        "env": ["PATH=/bin"],
        "cwd": "/bin",
    });
    fs::write(&process, json.to_string())?;
    let process = process.display().to_string();
    let outcome = bundle
        .hrun(&["exec", "--process", &process, "box"])
        .stdin(b"in\n".to_vec())
        .run()?
        .exits(5)?;
    let lines = outcome.lines();
    ensure!(
        lines.len() == 4 && lines[..3] == ["7", "in", "box"] && lines[3].ends_with("-hrun"),
        "{}",
        outcome.describe()
    );
    // As conmon does: it waits for the process of the pid file.
    let pid_file = bundle.path.join("pid").display().to_string();
    let words = [
        "exec",
        "--pid-file",
        &pid_file,
        "--process",
        &process,
        "--detach",
        "box",
    ];
    let left = bundle
        .hrun(&words)
        .stdin(b"later\n".to_vec())
        .run()?
        .exits(0)?;
    ensure!(left.text().contains("later\nbox\n"), "{}", left.describe());
    ensure!(bundle.said("pid").parse::<i32>().is_ok());
    let missing = bundle.hrun(&["exec", "box", "no-such-program"]).run()?;
    ensure!(
        missing
            .stderr
            .contains("executable file not found in $PATH"),
        "{}",
        missing.describe()
    );
    let words = [
        "exec", "--user", "3:4", "--cwd", "/bin", "--env", "A=1", "box",
    ];
    let script = ["sh", "-c", "id -u; echo $A; pwd"];
    let words: Vec<_> = words.iter().chain(&script).copied().collect();
    bundle.hrun(&words).run()?.prints("3\n1\n/bin\n")?;
    bundle.delete()?.exits(0)?;
    bundle.is_gone()
}

/// Takes the terminal that comes over a console socket.
fn receive_terminal(listener: &UnixListener) -> Result<fs::File> {
    let (stream, _) = listener.accept()?;
    let mut name = [0; 128];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut name)];
    recvmsg(
        &stream,
        &mut slices,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(fds.pop().context("no terminal came")?.into())
}

fn a_terminal_goes_over_the_console_socket(case: &Case) -> Result<()> {
    let script = "tty; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 1; done";
    let bundle = Bundle::new(case, script, |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 11, "width": 22});
    })?;
    let refused = bundle.create(&[])?.exits(1)?;
    ensure!(
        bundle.said("err").contains("--console-socket"),
        "{}",
        refused.describe()
    );
    let socket = bundle.path.join("console");
    let listener = UnixListener::bind(&socket)?;
    bundle
        .create(&["--console-socket", &socket.display().to_string()])?
        .exits(0)?;
    let mut terminal = receive_terminal(&listener)?;
    bundle.hrun(&["start", "box"]).run()?.exits(0)?;
    let mut shown = String::new();
    let mut until = |text: &str, terminal: &mut fs::File| -> Result<String> {
        while !shown.contains(text) {
            let mut chunk = [0; 256];
            let length = terminal.read(&mut chunk).unwrap_or(0);
            ensure!(length > 0, "the terminal ended with {shown:?}");
            shown.push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
        Ok(shown.clone())
    };
    let begin = until("ready", &mut terminal)?;
    ensure!(begin.contains("/dev/pts/0\r\n"), "{begin:?}");
    let size = Winsize {
        ws_row: 33,
        ws_col: 44,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size)?;
    until("33 44", &mut terminal)?;
    bundle.ends()?;
    terminal.write_all(b"x")?;
    bundle.delete()?.exits(0)?;
    bundle.is_gone()
}

fn the_shim_is_where_engines_look_for_it(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 256 << 20},
            "cpu": {"shares": 512},
        });
    })?;
    bundle.ready()?;
    let pid = bundle.pid()?;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    let own = namespace("self")?;
    let shims = namespace(&pid.to_string())?;
    ensure!(own != shims, "the shim has no network namespace of its own");
    let vmm = case.vmm()?.pid;
    ensure!(
        namespace(&vmm.to_string())? == shims,
        "the VMM is elsewhere"
    );
    let group = Bundle::group(case, "box");
    for pid in [pid, vmm] {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(
            groups.lines().all(|line| line.ends_with(&group)),
            "{groups}"
        );
    }
    let listed = bundle
        .hrun(&["ps", "--format", "json", "box"])
        .run()?
        .exits(0)?;
    let listed: Vec<i32> = serde_json::from_str(&listed.text())?;
    ensure!(listed.contains(&pid) && listed.contains(&vmm), "{listed:?}");
    let stats = bundle.hrun(&["events", "--stats", "box"]).run()?.exits(0)?;
    let stats: Value = serde_json::from_str(&stats.text())?;
    let limit = stats["data"]["memory"]["usage"]["limit"].as_u64();
    ensure!(
        limit.is_some_and(|limit| limit > 256 << 20 && limit < 512 << 20),
        "{stats}"
    );
    bundle
        .hrun(&["update", "--cpu-shares", "256", "box"])
        .run()?
        .exits(0)?;
    bundle.delete()?.exits(0)?;
    bundle.is_gone()
}

fn hook(bundle: &Path, name: &str, script: &str) -> Value {
    let file = bundle.join("hooks").display().to_string();
    json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {file}; {script}")],
        "env": ["PATH=/bin:/usr/bin"],
        "timeout": 60,
    }])
}

fn hooks_run_at_their_points(case: &Case) -> Result<()> {
    let path = case.path("bundle");
    let bundle = Bundle::new(case, "true", |config| {
        let points = [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ];
        for point in points {
            config["hooks"][point] = hook(&path, point, "true");
        }
    })?;
    bundle.create(&[])?.exits(0)?;
    let created = bundle.said("hooks");
    ensure!(created.lines().count() == 3, "{created}");
    bundle.hrun(&["start", "box"]).run()?.exits(0)?;
    bundle.ends()?;
    bundle.hrun(&["delete", "box"]).run()?.exits(0)?;
    let expected = "prestart \"status\":\"creating\"\n\
                    createRuntime \"status\":\"creating\"\n\
                    createContainer \"status\":\"creating\"\n\
                    poststart \"status\":\"running\"\n\
                    poststop \"status\":\"stopped\"\n";
    ensure!(bundle.said("hooks") == expected, "{}", bundle.said("hooks"));
    bundle.is_gone()
}

fn a_hook_that_fails_undoes_everything(case: &Case) -> Result<()> {
    let path = case.path("bundle");
    let bundle = Bundle::new(case, "true", |config| {
        config["hooks"]["createRuntime"] = hook(&path, "createRuntime", "echo no way >&2; exit 3");
    })?;
    bundle.create(&[])?.exits(1)?;
    let said = bundle.said("err");
    ensure!(
        said.contains("createRuntime") && said.contains("no way"),
        "{said}"
    );
    bundle.is_gone()
}

fn a_paused_container_is_told_from_a_running_one(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    bundle.ready()?;
    bundle.hrun(&["pause", "box"]).run()?.exits(0)?;
    ensure!(bundle.status()? == "paused");
    let outcome = bundle.hrun(&["exec", "box", "true"]).run()?.exits(1)?;
    ensure!(outcome.stderr.contains("paused"), "{}", outcome.describe());
    bundle.hrun(&["resume", "box"]).run()?.exits(0)?;
    ensure!(bundle.status()? == "running");
    bundle.hrun(&["exec", "box", "true"]).run()?.exits(0)?;
    bundle.hrun(&["pause", "box"]).run()?.exits(0)?;
    // Nobody asks a guest that stands still.
    bundle.hrun(&["kill", "box", "KILL"]).run()?.exits(0)?;
    bundle.ends()?;
    bundle.delete()?.exits(0)?;
    bundle.is_gone()
}

fn nothing_hinders_the_end(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    // Before its program runs.
    bundle.create(&[])?.exits(0)?;
    bundle.hrun(&["kill", "box", "TERM"]).run()?.exits(0)?;
    bundle.ends()?;
    bundle.hrun(&["delete", "box"]).run()?.exits(0)?;
    // With whoever could obey unable to.
    for stopped in ["shim", "vmm", "both"] {
        bundle.ready()?;
        let (shim, vmm) = (bundle.pid()?, case.vmm()?.pid);
        if stopped != "vmm" {
            signal(shim, Signal::STOP)?;
        }
        if stopped != "shim" {
            signal(vmm, Signal::STOP)?;
        }
        if stopped == "vmm" {
            bundle.hrun(&["kill", "box", "9"]).run()?.exits(0)?;
            bundle.ends()?;
        }
        bundle.delete()?.exits(0)?;
        bundle
            .is_gone()
            .with_context(|| format!("{stopped} stopped"))?;
    }
    Ok(())
}

fn who_dies_takes_the_container_along(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    for (victim, started) in [
        ("shim", false),
        ("vmm", false),
        ("shim", true),
        ("vmm", true),
    ] {
        if started {
            bundle.ready()?;
        } else {
            bundle.create(&[])?.exits(0)?;
        }
        let pid = match victim {
            "shim" => bundle.pid()?,
            _ => case.vmm()?.pid,
        };
        signal(pid, Signal::KILL)?;
        bundle.ends()?;
        let listed = bundle.hrun(&["list"]).run()?.exits(0)?;
        ensure!(listed.text().contains("stopped"), "{}", listed.describe());
        bundle.delete()?.exits(0)?;
        bundle
            .is_gone()
            .with_context(|| format!("{victim}, started: {started}"))?;
    }
    Ok(())
}

fn a_configuration_to_begin_with_is_one(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, "", |_| {})?;
    fs::remove_file(bundle.path.join("config.json"))?;
    let path = bundle.path.display().to_string();
    bundle.hrun(&["spec", "--bundle", &path]).run()?.exits(0)?;
    let file = bundle.path.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", "hostname; echo x > /file || exit 9"]);
    config["linux"]["cgroupsPath"] = json!(Bundle::group(case, "box"));
    fs::write(&file, config.to_string())?;
    let outcome = bundle
        .hrun(&["run", "--bundle", &path, "box"])
        .run()?
        .exits(9)?;
    ensure!(outcome.text() == "hrun\n", "{}", outcome.describe());
    bundle.is_gone()
}

fn what_cannot_be_is_refused_before_there_is_a_container(case: &Case) -> Result<()> {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 5] = [
        ("root", |config| config["root"]["path"] = json!("nowhere")),
        ("2.0.0", |config| config["ociVersion"] = json!("2.0.0")),
        ("executable file not found in $PATH", |config| {
            config["process"]["args"] = json!(["no-such-program"]);
        }),
        ("permission denied", |config| {
            config["process"]["args"] = json!(["/bin"]);
        }),
        ("..", |config| {
            config["linux"]["cgroupsPath"] = json!("/a/../b");
        }),
    ];
    for (text, edit) in edits {
        let bundle = Bundle::new(case, "true", edit)?;
        bundle.create(&[])?.exits(1)?;
        let said = bundle.said("err");
        ensure!(said.contains(text), "{text}: {said}");
        bundle.is_gone()?;
        fs::remove_dir_all(&bundle.path)?;
    }
    let bundle = Bundle::new(case, "true", |_| {})?;
    for id in ["..", "a/b", "a b"] {
        let path = bundle.path.display().to_string();
        let words = ["create", "--bundle", &path, id];
        let outcome = bundle.hrun(&words).run()?.exits(1)?;
        ensure!(
            outcome.stderr.contains("invalid container ID"),
            "{}",
            outcome.describe()
        );
    }
    let path = bundle.path.display().to_string();
    let words = ["create", "--bundle", &path, "--preserve-fds", "1", "box"];
    let outcome = bundle.hrun(&words).run()?.exits(1)?;
    ensure!(
        outcome.stderr.contains("--preserve-fds"),
        "{}",
        outcome.describe()
    );
    bundle.is_gone()
}

fn features_and_lists_are_json(case: &Case) -> Result<()> {
    let features = case.hrun(["features"]).run()?.exits(0)?;
    let features: Value = serde_json::from_str(&features.text())?;
    ensure!(
        features["ociVersionMin"] == "1.0.0" && features["linux"]["namespaces"].is_array(),
        "{features}"
    );
    case.hrun(["list", "--format", "json"])
        .run()?
        .prints("[]\n")?;
    case.hrun(["list", "--quiet"]).run()?.prints("")?;
    Ok(())
}
