//! `hrun attach`: the standard streams of a container in the background, here.

use std::{
    io,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::ArgAction;

use crate::{
    attach::{Keys, Outcome, SOCKET, Watcher},
    background::Beginning,
    container::{Config, Containers, Record},
    dirs::Dirs,
    signals::Signals,
};

/// How long the owner of a container that is started may take to open its socket.
const OWNER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often that is tried.
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun attach web                  See what it says from now on, and send it signals
  hrun run -d -it --name box busybox sh && hrun attach box
  hrun attach --no-stdin --sig-proxy=false web

Keys go to containers that were made with -i. At a terminal ctrl-p ctrl-q lets go of the container,
which goes on. Otherwise the exit status is the container's.")]
pub(crate) struct AttachArgs {
    /// Keep standard input
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    hold: HoldArgs,
    /// Name or identifier, which may be shortened
    container: String,
}

/// How somebody holds on to a container.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct HoldArgs {
    /// Keys that let go of a container with a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: Keys,
    /// Pass signals sent to hrun on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
}

impl HoldArgs {
    /// With docker's keys.
    pub(super) fn new(sig_proxy: bool) -> Self {
        Self {
            detach_keys: Keys::default(),
            sig_proxy,
        }
    }
}

pub(crate) fn execute(args: &AttachArgs) -> anyhow::Result<u8> {
    let containers = Containers::open(&Dirs::from_env()?)?;
    let record = containers.find(&args.container)?;
    attach(
        &containers,
        &record,
        &args.container,
        !args.no_stdin,
        &args.hold,
    )
}

/// Attaches to a container that runs.
pub(super) fn attach(
    containers: &Containers,
    record: &Record,
    wanted: &str,
    wants_input: bool,
    hold: &HoldArgs,
) -> anyhow::Result<u8> {
    if record.is_restarting() {
        bail!("Container {wanted} is restarting: wait until it runs");
    }
    if !record.is_running() {
        bail!("Container {wanted} is not running: `hrun start -a {wanted}` starts and attaches");
    }
    if record.is_paused() {
        bail!("Container {wanted} is paused: unpause it before you attach");
    }
    let config = containers.config(record)?;
    let input = input(&config, wants_input)?;
    let mut waiting = containers.waiting(record)?;
    let owner = match UnixStream::connect(record.runtime_dir.join(SOCKET)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "Container {wanted} runs in the foreground of another hrun: only those of `hrun run \
             -d` and `hrun start` can be attached to"
        ),
        connected => connected.context("Failed to connect to the owner of the container")?,
    };
    record.tell("attach", &[]);
    let mut signals = Signals::catch().context("Failed to catch signals")?;
    let vsock = record.vsock_socket();
    let watcher = watcher(&vsock, true, &config, input, hold);
    match watcher.watch(owner, &mut signals)? {
        Outcome::Exited(code) => Ok(code),
        Outcome::Detached => Ok(0),
        Outcome::Lost => {
            // It ended just then, or its owner did.
            let deadline = Some(Instant::now() + OWNER_TIMEOUT);
            let ended = waiting.wait(deadline)?.and_then(|ending| ending.code);
            ended.with_context(|| format!("Nobody saw how container {wanted} ended"))
        }
    }
}

/// Attaches to a container that is being started, from its first word on.
pub(super) fn attach_to_start(
    record: &Record,
    config: &Config,
    wants_input: bool,
    hold: &HoldArgs,
    begin: impl FnOnce() -> anyhow::Result<Beginning>,
) -> anyhow::Result<u8> {
    let input = wants_input && input(config, true)?;
    let mut signals = Signals::catch().context("Failed to catch signals")?;
    let beginning = begin()?;
    let socket = record.runtime_dir.join(SOCKET);
    let deadline = Instant::now() + OWNER_TIMEOUT;
    let owner = loop {
        match UnixStream::connect(&socket) {
            Ok(owner) => break owner,
            Err(_) if beginning.has_ended()? => {
                beginning.wait()?;
                bail!("Container {} ended before it was attached to", record.name);
            }
            Err(_) if Instant::now() < deadline => thread::sleep(POLL),
            Err(error) => {
                return Err(error).context("Failed to connect to the owner of the container");
            }
        }
    };
    let vsock = record.vsock_socket();
    let watcher = watcher(&vsock, false, config, input, hold);
    match watcher.watch(owner, &mut signals)? {
        Outcome::Exited(code) => Ok(code),
        Outcome::Detached => Ok(0),
        Outcome::Lost => {
            beginning.wait()?;
            bail!("Nobody saw how container {} ended", record.name)
        }
    }
}

fn watcher<'a>(
    vsock: &'a Path,
    runs: bool,
    config: &Config,
    input: bool,
    hold: &HoldArgs,
) -> Watcher<'a> {
    Watcher {
        vsock,
        runs,
        tty: config.options.tty,
        input,
        proxy_signals: hold.sig_proxy,
        keys: hold.detach_keys.clone(),
    }
}

/// Whether our standard input goes to the container.
fn input(config: &Config, wanted: bool) -> anyhow::Result<bool> {
    let options = &config.options;
    if !(wanted && options.interactive) {
        return Ok(false);
    }
    Ok(super::run::input(true, options.tty)?)
}
