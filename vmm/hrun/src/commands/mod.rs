//! The commands, one file each.

pub(crate) mod attach;
pub(crate) mod bench;
pub(crate) mod commit;
mod completions;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod diff;
mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod life;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pool;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod shim;
pub(crate) mod stats;
pub(crate) mod system;
pub(crate) mod template;
pub(crate) mod update;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use crate::{
    cli::{Command, Invocation},
    exit,
    timeline::Timeline,
};

/// Carries a command out and gives hrun's exit status.
pub(crate) fn execute(invocation: Invocation, timeline: Timeline) -> anyhow::Result<u8> {
    match invocation.command {
        Command::Run(args) => run::execute(&args, invocation.implied_run.as_deref(), timeline),
        Command::Create(args) => done(create::execute(&args)),
        Command::Attach(args) => attach::execute(&args),
        Command::Exec(args) => exec::execute(&args, timeline),
        Command::Cp(args) => done(cp::execute(&args)),
        Command::Start(args) => life::start(&args),
        Command::Stop(args) => done(kill::stop(&args)),
        Command::Restart(args) => done(life::restart(&args)),
        Command::Kill(args) => done(kill::kill(&args)),
        Command::Wait(args) => done(life::wait(&args)),
        Command::Pause(args) => done(life::pause(&args, true)),
        Command::Unpause(args) => done(life::pause(&args, false)),
        Command::Rename(args) => done(life::rename(&args)),
        Command::Update(args) => done(update::execute(&args)),
        Command::Logs(args) => done(logs::execute(&args)),
        Command::Top(args) => life::top(&args, timeline),
        Command::Stats(args) => done(stats::execute(&args)),
        Command::Events(args) => done(events::execute(&args)),
        Command::Inspect(args) => done(inspect::execute(&args)),
        Command::Shim(args) => shim::execute(&args, timeline),
        Command::Ps(args) => done(ps::execute(&args)),
        Command::Rm(args) => done(rm::execute(&args)),
        Command::Diff(args) => done(diff::execute(&args)),
        Command::Commit(args) => done(commit::execute(&args)),
        Command::Export(args) => done(export::execute(&args)),
        Command::Image(command) => done(image::execute(&command)),
        Command::Images(args) => done(image::ls(&args)),
        Command::Load(args) => done(image::load(&args)),
        Command::Import(args) => done(image::import::execute(&args)),
        Command::Pull(args) => done(pull::execute(&args)),
        Command::Push(args) => done(push::execute(&args)),
        Command::Login(args) => done(login::login(&args)),
        Command::Logout(args) => done(login::logout(&args)),
        Command::Rmi(args) => done(image::rm(&args)),
        Command::System(command) => done(system::execute(&command)),
        Command::Bench(args) => done(bench::execute(&args)),
        Command::Pool(command) => done(pool::execute(&command)),
        Command::Template(command) => done(template::execute(&command)),
        Command::Doctor(args) => doctor::execute(args.format),
        Command::Completions { shell } => done(completions::execute(shell)),
        Command::Man(args) => done(man::execute(&args)),
        Command::Version => done(print(&format!("hrun {}\n", env!("CARGO_PKG_VERSION")))),
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<u8> {
    result.map(|()| 0)
}

/// Does something with each of several things that the user named and prints the names of those
/// with which it was done.
fn for_each(
    names: &[String],
    mut act: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each(names, |name| {
        act(name)?;
        print(&format!("{name}\n"))
    })
}

/// One that fails does not spare the others; the last failure is reported from the top.
fn each(names: &[String], mut act: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failures: Vec<_> = names.iter().filter_map(|name| act(name).err()).collect();
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        exit::print_error(&format!("hrun: {failure:#}\n"));
    }
    Err(last)
}

/// Writes a result to standard output. Who stopped reading has seen enough.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("Failed to write to standard output"),
    }
}

/// Writes a result for programs.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("Failed to make JSON")?;
    text.push('\n');
    print(&text)
}
