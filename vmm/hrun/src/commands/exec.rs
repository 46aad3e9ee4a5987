//! `hrun exec`: a further process in a container that runs, inside its VM.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_protocol::{ExitStatus, Stdio};
use anyhow::{Context, bail};

use crate::{
    background::{self, Background},
    container::{Containers, Record},
    dirs::Dirs,
    exit,
    options::{
        env::{self as environment, EnvEdit},
        signal,
    },
    relay::Output,
    session::{self, SessionError, Start},
    signals::Signals,
    terminal,
    timeline::Timeline,
    translate::{self, Exec},
};

/// How long the end of a container may take to be seen when the connection to its agent breaks.
const END_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(
    override_usage = "hrun exec [OPTIONS] CONTAINER CMD...",
    after_help = "\
Examples:
  hrun exec web ps
  hrun exec -it web sh
  echo hello | hrun exec -i web tee /tmp/greeting
  hrun exec -d -u nobody -w /tmp -e MODE=fast web sh -c 'sleep 10; touch done'

The process has the user, the directory and the environment of the container's own unless told
otherwise. The exit status is the process's; 126 if the command cannot be executed, 127 if it does
not exist, 1 if hrun failed, 137 if the container ended meanwhile."
)]
pub(crate) struct ExecArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Do not wait for the command; what it writes is lost
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Set an environment variable; without a value, take it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Set the environment variables of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run as this user: name or number, with :group if wanted
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Work in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Give the command all capabilities
    #[arg(long)]
    pub(crate) privileged: bool,
    /// This is the process in the background
    #[arg(long, hide = true)]
    pub(crate) background: bool,
    /// Name or identifier, which may be shortened, and what to run
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "CMD"], num_args = 2..)]
    pub(crate) words: Vec<String>,
}

pub(crate) fn execute(args: &ExecArgs, timeline: Timeline) -> anyhow::Result<u8> {
    if !args.background {
        return foreground(args, timeline);
    }
    let (mut background, _) = Background::enter()?;
    let signals = Signals::ignore().context("Failed to catch signals")?;
    let result = run(args, signals, Output::Discard, timeline, &mut || {
        background.started();
    });
    if let Err(error) = &result {
        background.failed(error, exit::status_of(error, false));
    }
    result
}

fn foreground(args: &ExecArgs, timeline: Timeline) -> anyhow::Result<u8> {
    if args.detach {
        // Told now, not by somebody in the background.
        let containers = Containers::open(&Dirs::from_env()?)?;
        find_running(&containers, args.words.first().map_or("", String::as_str))?;
        let own = env::args_os().skip(2);
        let words = [OsString::from("exec"), "--background".into()];
        // With the environment: -e takes variables from there.
        background::spawn(words.into_iter().chain(own), process::Stdio::null(), |_| {
            true
        })?;
        return Ok(0);
    }
    let signals = Signals::catch().context("Failed to catch signals")?;
    run(args, signals, Output::Stdio, timeline, &mut || {})
}

/// A container in which something can be started.
pub(super) fn find_running(containers: &Containers, wanted: &str) -> anyhow::Result<Record> {
    let record = containers.find(wanted)?;
    if !record.is_running() {
        bail!("Container {wanted} is not running");
    }
    if record.is_paused() {
        bail!("Container {wanted} is paused, unpause the container before exec");
    }
    Ok(record)
}

fn run(
    args: &ExecArgs,
    mut signals: Signals,
    output: Output,
    timeline: Timeline,
    started: &mut dyn FnMut(),
) -> anyhow::Result<u8> {
    let (wanted, command) = args.words.split_first().context("No container is named")?;
    let edits = edits(args)?;
    let containers = Containers::open(&Dirs::from_env()?)?;
    let record = find_running(&containers, wanted)?;
    let config = containers.config(&record)?;
    let input = matches!(output, Output::Stdio) && super::run::input(args.interactive, args.tty)?;
    let stdio = if args.tty {
        Stdio::Terminal(terminal::window_size())
    } else {
        Stdio::Pipes {
            stdin: args.interactive,
        }
    };
    let exec = Exec {
        args: command,
        env: &edits,
        user: args.user.as_deref(),
        cwd: args.workdir.as_deref(),
        privileged: args.privileged,
        stdio,
    };
    let process = translate::random_process().context("Failed to make a process number")?;
    let hostname = config.hostname(&record);
    let start = Start {
        actions: vec![translate::exec_action(process, &config, &hostname, &exec)],
        process,
        cid: None,
        stdio,
        input,
        output,
        proxy_signals: true,
    };
    let timeline = Arc::new(timeline);
    let vsock = record.vsock_socket();
    let mut started = || {
        record.tell(&format!("exec_start: {}", command.join(" ")), &[]);
        started();
    };
    match session::run(&vsock, start, &mut signals, &timeline, &mut started) {
        Ok((_, status)) => {
            let code = status.code();
            record.tell("exec_die", &[("exitCode", &code.to_string())]);
            Ok(code)
        }
        Err(SessionError::Connect(_) | SessionError::Control(_))
            if has_ended(&containers, &record) =>
        {
            Ok(ExitStatus::Signaled(signal::KILL).code())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the container ended, and with it all its processes.
fn has_ended(containers: &Containers, record: &Record) -> bool {
    let deadline = Some(Instant::now() + END_TIMEOUT);
    match containers.waiting(record) {
        Ok(mut waiting) => !matches!(waiting.wait(deadline), Ok(None)),
        Err(_) => true,
    }
}

fn edits(args: &ExecArgs) -> anyhow::Result<Vec<EnvEdit>> {
    let own = |name: &str| env::var(name).ok();
    let mut edits = Vec::new();
    for file in &args.env_file {
        edits.extend(environment::read_file(file, own)?);
    }
    for variable in &args.env {
        edits.push(environment::parse(variable, own)?);
    }
    Ok(edits)
}
