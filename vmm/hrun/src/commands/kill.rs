//! `hrun kill` and `hrun stop`: containers that are told, or made, to end.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use agent_protocol::{Action, Failure, ProcessId};
use anyhow::bail;

use super::for_each;
use crate::{
    agent::{AskError, ControlError, ask},
    container::{Containers, Record, Waiting},
    dirs::Dirs,
    options::signal,
    translate::PROCESS,
};

/// How long a guest may take to carry a signal out. One that is ended needs no more than that: its
/// VM is.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(700);

/// How long the owner of a container may take to clear up after its VM.
const OWNER_TIMEOUT: Duration = Duration::from_secs(15);

/// How often is looked whether a container that was about to be started has been.
const POLL: Duration = Duration::from_millis(100);

/// Seconds between being asked to end and being ended, as docker has it.
const GRACE: i64 = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun kill web                  End it at once
  hrun kill -s HUP web           Have it read its configuration again
  hrun kill $(hrun ps -q)        End all of them")]
pub(crate) struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun stop web            Ask it to end, and end it after 10 seconds
  hrun stop -t 60 db       Give it a minute
  hrun stop -s INT job     Ask with another signal than its own")]
pub(crate) struct StopArgs {
    /// Seconds until it is ended by force; -1 for never [default: what it was started with, or 10]
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    time: Option<i64>,
    /// Signal that asks it to end [default: what it was started with, or the image's, or TERM]
    #[arg(short, long)]
    signal: Option<String>,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) fn kill(args: &KillArgs) -> anyhow::Result<()> {
    let number = signal::parse(&args.signal)?;
    let containers = Containers::open(&Dirs::from_env()?)?;
    for_each(&args.containers, |wanted| {
        // Between two runs there is no process; that none comes is what was asked for.
        let Some(record) = settled(&containers, containers.find(wanted)?)? else {
            return Ok(());
        };
        if !record.is_running() {
            bail!("Cannot kill container {wanted}: it is not running");
        }
        let own = containers.config(&record).ok();
        if own.is_some_and(|config| config.stop_signal == number) {
            record.forbid_restart();
        }
        record.tell("kill", &[("signal", &number.to_string())]);
        if number == i32::from(signal::KILL) {
            return end(&containers, &record);
        }
        if record.is_paused() {
            bail!(
                "Cannot kill container {wanted}: it is paused, unpause it before stopping or \
                 killing it"
            );
        }
        if send(&record.vsock_socket(), PROCESS, number, false, None)? {
            return Ok(());
        }
        bail!("Container {} is not running", record.name)
    })
}

pub(crate) fn stop(args: &StopArgs) -> anyhow::Result<()> {
    let signal = args.signal.as_deref().map(signal::parse).transpose()?;
    let containers = Containers::open(&Dirs::from_env()?)?;
    for_each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        stop_one(&containers, &record, args.time, signal)?;
        if !record.status.rests() {
            record.tell("stop", &[]);
        }
        Ok(())
    })
}

/// Asks a container to end, and ends it when its time is up. One that has ended is left alone.
pub(super) fn stop_one(
    containers: &Containers,
    record: &Record,
    time: Option<i64>,
    signal: Option<i32>,
) -> anyhow::Result<()> {
    let Some(record) = &settled(containers, record.clone())? else {
        return Ok(());
    };
    if !record.is_running() {
        return Ok(());
    }
    record.forbid_restart();
    let config = containers.config(record).ok();
    let own = config.as_ref();
    let signal = signal
        .or(own.map(|config| config.stop_signal))
        .unwrap_or(signal::TERM);
    let grace = time
        .or(own.and_then(|config| config.stop_timeout))
        .unwrap_or(GRACE);
    let deadline = u64::try_from(grace)
        .ok()
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    if grace == 0 {
        return end(containers, record);
    }
    if record.is_paused() {
        record.set_paused(false)?;
    }
    let mut waiting = containers.waiting(record)?;
    match send(&record.vsock_socket(), PROCESS, signal, false, deadline) {
        Ok(_) => {}
        // It has no time left, or nobody is there to be asked.
        Err(_) => return end(containers, record),
    }
    match waiting.wait(deadline)? {
        Some(_) => Ok(()),
        None => end(containers, record),
    }
}

/// Has a container that is between two runs not be started again, and then gives nothing; unless its
/// owner was faster. One that is not is given back as it is.
fn settled(containers: &Containers, record: Record) -> anyhow::Result<Option<Record>> {
    if !record.is_restarting() {
        return Ok(Some(record));
    }
    record.forbid_restart();
    let mut waiting = containers.waiting(&record)?;
    let deadline = Instant::now() + OWNER_TIMEOUT;
    while waiting.wait(Some(Instant::now() + POLL))?.is_none() {
        let now = containers.find(record.id.as_str())?;
        if now.is_running() {
            return Ok(Some(now));
        }
        if Instant::now() >= deadline {
            bail!(
                "Container {} does not end: its owner does nothing",
                record.name
            );
        }
    }
    Ok(None)
}

/// Ends a container at once: by the signal, so that everything in it ends as it should; and if the
/// guest does not answer, by ending its VM.
pub(super) fn end(containers: &Containers, record: &Record) -> anyhow::Result<()> {
    record.forbid_restart();
    let mut waiting = match containers.waiting(record) {
        Ok(waiting) => waiting,
        Err(crate::container::ContainerError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let asked = !record.is_paused()
        && send(
            &record.vsock_socket(),
            PROCESS,
            signal::KILL.into(),
            false,
            Some(deadline),
        )
        .is_ok();
    if asked && waiting.wait(Some(deadline))?.is_some() {
        return Ok(());
    }
    record.kill_vm()?;
    gone(&mut waiting, &record.name)
}

fn gone(waiting: &mut Waiting, name: &str) -> anyhow::Result<()> {
    match waiting.wait(Some(Instant::now() + OWNER_TIMEOUT))? {
        Some(_) => Ok(()),
        None => bail!("Container {name} did not end, though its VM has"),
    }
}

/// Sends a signal to a container's first process, or to all of its processes; false if the first has
/// ended.
pub(crate) fn send(
    vsock: &Path,
    process: ProcessId,
    signal: i32,
    all: bool,
    deadline: Option<Instant>,
) -> anyhow::Result<bool> {
    let action = Action::Signal {
        process,
        signal,
        all,
    };
    match ask(vsock, action, deadline) {
        Ok(()) => Ok(true),
        Err(
            AskError::Control(ControlError::Closed)
            | AskError::Refused {
                kind: Failure::NoSuchProcess,
                ..
            },
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
