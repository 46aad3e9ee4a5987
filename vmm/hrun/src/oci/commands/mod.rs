//! The commands of an OCI runtime, one file each.

mod create;
mod delete;
mod events;
mod exec;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod update;

use super::{
    cli::{Command, Global, OciCli},
    containers::{Containers, Seen},
    failure, features,
    record::Status,
    shim,
};
use crate::{
    commands::{print, print_json},
    dirs::Dirs,
    exit,
    timeline::Timeline,
};

/// The status of a command that failed, as runc has it.
const FAILED: u8 = 1;

/// What commands work with.
struct Runtime<'a> {
    dirs: Dirs,
    global: &'a Global,
    containers: Containers,
}

/// Carries a command out and gives hrun's exit status.
pub(crate) fn execute(cli: &OciCli, timeline: Timeline) -> u8 {
    match dispatch(cli, timeline) {
        Ok(status) => status,
        Err(error) => {
            let (text, _) = failure::describe(&error);
            cli.global.log().error(&text);
            exit::print_error(&format!("hrun: {text}\n"));
            FAILED
        }
    }
}

fn dispatch(cli: &OciCli, timeline: Timeline) -> anyhow::Result<u8> {
    let dirs = Dirs::from_env()?;
    let runtime = Runtime {
        containers: Containers::open(&dirs, cli.global.root.as_deref()),
        dirs,
        global: &cli.global,
    };
    match &cli.command {
        Command::Create(args) => create::execute(&runtime, args).map(|()| 0),
        Command::Start(args) => start::execute(&runtime, &args.id).map(|()| 0),
        Command::Run(args) => run::execute(&runtime, args),
        Command::State(args) => list::state(&runtime, &args.id).map(|()| 0),
        Command::Kill(args) => kill::execute(&runtime, args).map(|()| 0),
        Command::Delete(args) => delete::execute(&runtime, args).map(|()| 0),
        Command::Exec(args) => exec::execute(&runtime, args, timeline),
        Command::Ps(args) => ps::execute(&runtime, args).map(|()| 0),
        Command::List(args) => list::execute(&runtime, args).map(|()| 0),
        Command::Pause(args) => pause::execute(&runtime, &args.id, true).map(|()| 0),
        Command::Resume(args) => pause::execute(&runtime, &args.id, false).map(|()| 0),
        Command::Update(args) => update::execute(&runtime, args).map(|()| 0),
        Command::Events(args) => events::execute(&runtime, args).map(|()| 0),
        Command::Spec(args) => spec::execute(&args.bundle).map(|()| 0),
        Command::Features => print_json(&features::features()).map(|()| 0),
        Command::Shim(args) => shim::execute(&runtime.dirs, &runtime.containers, args, timeline),
        Command::ExecShim(args) => exec::shim(&runtime, args, timeline),
    }
}

impl Runtime<'_> {
    /// A container whose program runs.
    fn find_running(&self, id: &str) -> anyhow::Result<Seen> {
        let seen = self.containers.find(id)?;
        match seen.status() {
            Status::Running => Ok(seen),
            // containerd and docker look for these words.
            _ => anyhow::bail!("container not running: {id} is {}", seen.word()),
        }
    }
}
