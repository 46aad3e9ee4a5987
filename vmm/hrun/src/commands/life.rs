//! The shorter commands on containers that exist: `wait`, `pause`, `unpause`, `rename`, `start`,
//! `restart` and `top`.

use anyhow::{Context, bail};

use super::{
    attach, attach::HoldArgs, diff::image_of, exec, exec::ExecArgs, for_each, image::open_store,
    kill, shim,
};
use crate::{
    container::{Containers, Record},
    dirs::Dirs,
    host,
    timeline::Timeline,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun start web
  hrun start $(hrun ps -aq)
  hrun start -a job                 See what it says; the exit status is its own
  echo hello | hrun start -ai sum   Give it something to read as well")]
pub(crate) struct StartArgs {
    /// Stay with the container, and show what it says
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on to it, if it was made with -i; stay as well
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    hold: HoldArgs,
    /// Start those that ended and whose restart policy is always, or unless-stopped and no user has
    /// stopped them: after a start of the host
    #[arg(long, conflicts_with_all = ["attach", "interactive", "containers"])]
    boot: bool,
    /// Names or identifiers, which may be shortened
    #[arg(required_unless_present = "boot", value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Containers, and nothing else to say.
#[derive(Debug, clap::Args)]
pub(crate) struct NamesArgs {
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun restart web
  hrun restart -t 1 web db")]
pub(crate) struct RestartArgs {
    /// Seconds until it is ended by force; -1 for never [default: what it was started with, or 10]
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    time: Option<i64>,
    /// Names or identifiers, which may be shortened
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun rename brisk_otter web")]
pub(crate) struct RenameArgs {
    /// Name or identifier, which may be shortened
    container: String,
    /// The new name
    name: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun top web
  hrun top web -o pid,comm

It is the ps of the container's image that answers, in the container.")]
pub(crate) struct TopArgs {
    /// Name or identifier, which may be shortened
    container: String,
    /// Options of ps [default: -ef]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTION"
    )]
    options: Vec<String>,
}

fn open() -> anyhow::Result<Containers> {
    Ok(Containers::open(&Dirs::from_env()?)?)
}

/// Waits for the end of each and prints its status.
pub(crate) fn wait(args: &NamesArgs) -> anyhow::Result<()> {
    let containers = open()?;
    super::each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        let ended = containers.waiting(&record)?.wait(None)?;
        let code = ended.and_then(|ending| ending.code);
        let code = code.with_context(|| format!("Nobody saw how container {wanted} ended"))?;
        super::print(&format!("{code}\n"))
    })
}

pub(crate) fn pause(args: &NamesArgs, paused: bool) -> anyhow::Result<()> {
    let containers = open()?;
    for_each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        match (record.is_running(), record.is_paused(), paused) {
            (false, _, _) => bail!("Container {wanted} is not running"),
            (true, true, true) => bail!("Container {wanted} is already paused"),
            (true, false, false) => bail!("Container {wanted} is not paused"),
            _ => Ok(record.set_paused(paused)?),
        }
    })
}

pub(crate) fn rename(args: &RenameArgs) -> anyhow::Result<()> {
    Ok(open()?.rename(&args.container, &args.name)?)
}

/// Starts containers that wait or have ended, in the background. One that runs is left alone.
pub(crate) fn start(args: &StartArgs) -> anyhow::Result<u8> {
    host::require_root()?;
    let containers = open()?;
    if args.attach || args.interactive {
        return start_here(&containers, args);
    }
    let wanted = if args.boot {
        &at_boot(&containers)?
    } else {
        &args.containers
    };
    for_each(wanted, |wanted| {
        let record = containers.find(wanted)?;
        start_one(&containers, &record)
    })?;
    Ok(0)
}

/// The names of the containers that start with the host.
fn at_boot(containers: &Containers) -> anyhow::Result<Vec<String>> {
    let starts = |record: &Record| {
        let policy = containers.config(record).map(|config| config.restart);
        record.has_ended() && policy.is_ok_and(|policy| policy.starts_at_boot(record.stopped))
    };
    let all = containers.list()?.into_iter();
    Ok(all.filter(starts).map(|record| record.name).collect())
}

/// Starts a container in the background and attaches to it.
fn start_here(containers: &Containers, args: &StartArgs) -> anyhow::Result<u8> {
    let [wanted] = args.containers.as_slice() else {
        bail!("Nobody can attach to several containers at once: name one, or start without -a, -i");
    };
    let record = containers.find(wanted)?;
    let config = containers.config(&record)?;
    check_start(containers, &record)?;
    let Some(container) = containers.reopen(&record)? else {
        return attach::attach(containers, &record, wanted, args.interactive, &args.hold);
    };
    attach::attach_to_start(&record, &config, args.interactive, &args.hold, || {
        shim::begin(container, None, true)
    })
}

pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<()> {
    host::require_root()?;
    let containers = open()?;
    for_each(&args.containers, |wanted| {
        let record = containers.find(wanted)?;
        if record.auto_remove {
            bail!("Container {wanted} is removed when it ends: it cannot be restarted");
        }
        kill::stop_one(&containers, &record, args.time, None)?;
        let record = containers.find(record.id.as_str())?;
        start_one(&containers, &record)?;
        record.tell("restart", &[]);
        Ok(())
    })
}

fn start_one(containers: &Containers, record: &Record) -> anyhow::Result<()> {
    check_start(containers, record)?;
    match containers.reopen(record)? {
        Some(container) => shim::spawn(container, None),
        None => Ok(()),
    }
}

/// Tells what is missing here, not in the background.
fn check_start(containers: &Containers, record: &Record) -> anyhow::Result<()> {
    containers.config(record)?;
    host::require_kvm()?;
    let store = open_store(&Dirs::from_env()?)?;
    image_of(&store, record)?;
    Ok(())
}

/// Shows the processes of a container.
pub(crate) fn top(args: &TopArgs, timeline: Timeline) -> anyhow::Result<u8> {
    let options = if args.options.is_empty() {
        vec!["-ef".to_owned()]
    } else {
        args.options.clone()
    };
    let words = [args.container.clone(), "ps".into()];
    let exec = ExecArgs {
        interactive: false,
        tty: false,
        detach: false,
        env: Vec::new(),
        env_file: Vec::new(),
        user: Some("0".into()),
        workdir: Some("/".into()),
        privileged: false,
        background: false,
        words: words.into_iter().chain(options).collect(),
    };
    exec::execute(&exec, timeline)
}
