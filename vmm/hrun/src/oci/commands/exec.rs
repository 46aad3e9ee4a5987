//! `exec`: a further process in a container, inside its VM. Detached, a process on the host stands
//! for it: the engine waits for that one.

use std::{
    fs,
    io::{Read, Seek},
    path::Path,
    sync::Arc,
};

use agent_protocol::Stdio;
use anyhow::{Context, bail};
use oci_spec::runtime::{Process, Spec};
use rustix::process::{chdir, setsid};
use serde_json::json;

use super::{Runtime, create::absolute};
use crate::{
    exit,
    failpoint::reach,
    oci::{
        bundle,
        cli::{ExecArgs, ExecShimArgs},
        console,
        containers::Seen,
        failure,
        orders::write_pid,
        plan,
        report::{self, Report, Reporter, option},
    },
    relay::Output,
    session::{self, Start},
    signals::Signals,
    terminal,
    timeline::Timeline,
    translate,
};

/// Longest process.json, in bytes.
const MAX_PROCESS: u64 = 16 << 20;

pub(super) fn execute(
    runtime: &Runtime<'_>,
    args: &ExecArgs,
    timeline: Timeline,
) -> anyhow::Result<u8> {
    if args.preserve_fds > 0 {
        bail!(
            "--preserve-fds {}: no descriptor of the host gets into a VM",
            args.preserve_fds
        );
    }
    let seen = find(runtime, &args.id)?;
    let process = process(args, &seen.config()?)?;
    if args.detach || args.console_socket.is_some() || args.pid_file.is_some() {
        return leave(runtime, args, &process);
    }
    let signals = Signals::catch().context("Failed to catch signals")?;
    attend(&seen, &process, signals, timeline, &mut || {})
}

fn find(runtime: &Runtime<'_>, id: &str) -> anyhow::Result<Seen> {
    let seen = runtime.find_running(id)?;
    if seen.is_paused() {
        bail!("cannot exec in a paused container: {id}");
    }
    Ok(seen)
}

/// Leaves a process behind that stands for the one in the guest.
fn leave(runtime: &Runtime<'_>, args: &ExecArgs, process: &Process) -> anyhow::Result<u8> {
    let terminal = process.terminal().unwrap_or(false);
    if terminal && args.console_socket.is_none() {
        bail!("The process is to have a terminal: give --console-socket for it");
    }
    let mut file = tempfile::tempfile().context("Failed to make a temporary file")?;
    serde_json::to_writer(&mut file, process).context("Failed to pass the process on")?;
    file.rewind().context("Failed to pass the process on")?;
    let mut words = vec!["oci-exec".into(), args.id.clone().into()];
    let root = runtime.global.root.as_deref();
    words.extend(root.map(|root| option("--root", absolute(root).as_os_str())));
    let socket = args.console_socket.as_deref();
    words.extend(socket.map(|socket| option("--console-socket", absolute(socket).as_os_str())));
    let mut left = report::spawn(words, file.into())?;
    reach("exec.spawned", None);
    match left.next()? {
        Report::Done => {}
        other => bail!("The process's shim said {other:?} in the place of Done"),
    }
    reach("exec.started", None);
    if let Some(path) = &args.pid_file {
        write_pid(path, left.pid())
            .with_context(|| format!("Failed to write the pid file {}", path.display()))?;
    }
    if args.detach {
        left.leave();
        return Ok(0);
    }
    left.wait().context("Failed to wait for the process")
}

/// The process that was left behind.
pub(super) fn shim(
    runtime: &Runtime<'_>,
    args: &ExecShimArgs,
    timeline: Timeline,
) -> anyhow::Result<u8> {
    let (mut reporter, process) = report::inherited().context("Nobody waits for this process")?;
    let result = run_shim(runtime, args, process, timeline, &mut reporter);
    if let Err(error) = &result {
        let (text, status) = failure::describe(error);
        // Nobody may be there any more to be told.
        let _ = reporter.tell(&Report::Failed { text, status });
    }
    Ok(result.unwrap_or(exit::HRUN_FAILED))
}

fn run_shim(
    runtime: &Runtime<'_>,
    args: &ExecShimArgs,
    process: fs::File,
    timeline: Timeline,
    reporter: &mut Reporter,
) -> anyhow::Result<u8> {
    setsid().context("Failed to make a session")?;
    let seen = find(runtime, &args.id)?;
    let process = serde_json::from_reader(process).context("There is no process to run")?;
    seen.record.groups.enter(std::process::id())?;
    if let Some(socket) = &args.console_socket {
        console::enter(socket, bundle::window_size(&process).map(console::winsize))?;
    }
    chdir("/").context("Failed to leave the directory")?;
    let signals = Signals::catch().context("Failed to catch signals")?;
    reach("exec-shim.entered", seen.record.vmm);
    let vmm = seen.record.vmm;
    attend(&seen, &process, signals, timeline, &mut || {
        reach("exec-shim.started", vmm);
        // Whoever started us has gone: the process runs all the same.
        let _ = reporter.tell(&Report::Done);
    })
}

fn attend(
    seen: &Seen,
    process: &Process,
    mut signals: Signals,
    timeline: Timeline,
    started: &mut dyn FnMut(),
) -> anyhow::Result<u8> {
    let id = translate::random_process().context("Failed to make a process number")?;
    let mut process = plan::exec_process(process, &seen.config()?, id)?;
    process.container = seen.record.role.container();
    if let Stdio::Terminal(size) = &mut process.stdio {
        *size = terminal::window_size();
    }
    let start = Start {
        process: id,
        cid: None,
        stdio: process.stdio,
        input: true,
        output: Output::Stdio,
        proxy_signals: true,
        actions: vec![agent_protocol::Action::Start(Box::new(process))],
    };
    let vsock = seen.record.vsock_socket();
    let (_, status) = session::run(&vsock, start, &mut signals, &Arc::new(timeline), started)?;
    Ok(status.code())
}

/// The process that was asked for, by file or by options on top of the container's own.
fn process(args: &ExecArgs, spec: &Spec) -> anyhow::Result<Process> {
    if let Some(path) = &args.process {
        let mut process = read(path)?;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    if args.command.is_empty() {
        bail!("exec needs a process: give --process FILE, or a command behind the container");
    }
    let own = spec
        .process()
        .as_ref()
        .context("The container has no process")?;
    let mut process =
        serde_json::to_value(own).context("Failed to take the container's process")?;
    process["args"] = json!(args.command);
    process["terminal"] = json!(args.tty);
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| {
            text.parse::<u32>()
                .with_context(|| format!("Invalid user {user:?}: give UID or UID:GID"))
        };
        process["user"] = json!({"uid": number(uid)?, "gid": number(gid)?});
    }
    if !args.additional_gids.is_empty() {
        process["user"]["additionalGids"] = json!(args.additional_gids);
    }
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(env) = process["env"].as_array_mut() {
        env.extend(args.env.iter().map(|variable| json!(variable)));
    } else {
        process["env"] = json!(args.env);
    }
    if args.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    for set in [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ] {
        if args.cap.is_empty() {
            break;
        }
        let wanted = args.cap.iter().map(|cap| json!(cap));
        match process["capabilities"][set].as_array_mut() {
            Some(caps) => caps.extend(wanted),
            None => process["capabilities"][set] = wanted.collect(),
        }
    }
    serde_json::from_value(process).context("The process cannot be")
}

fn read(path: &Path) -> anyhow::Result<Process> {
    let read = || {
        let mut json = Vec::new();
        fs::File::open(path)?
            .take(MAX_PROCESS)
            .read_to_end(&mut json)?;
        std::io::Result::Ok(json)
    };
    let json = read().with_context(|| format!("Failed to read {}", path.display()))?;
    plan::read::process(&json)
        .map(|(process, _)| process)
        .with_context(|| format!("{} is no process of the OCI specification", path.display()))
}
