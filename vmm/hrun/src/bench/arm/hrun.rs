//! hrun's own arms: the way of a start is forced, so that no arm is ever another in disguise.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use clap::CommandFactory;

use super::{Common, Start};
use crate::{
    bench::{cgroup::Group, launch::Running, namespace},
    cli::Cli,
    host,
    parts::Parts,
};

/// `hrun run`, in one of its ways.
#[derive(Debug)]
pub(super) struct Hrun {
    program: PathBuf,
    image: String,
    store: PathBuf,
    state: PathBuf,
    /// The way that is asked for; none if this hrun knows but one.
    way: Option<&'static str>,
    tag: String,
    pool: Option<Pool>,
}

/// The daemon of the pool arm, and how many VMs it holds ready.
#[derive(Debug)]
struct Pool {
    daemon: Running,
    size: usize,
}

impl Hrun {
    /// Finds out whether hrun has this way here, and starts the pool if it is that.
    pub(super) fn find(
        arm: &'static str,
        common: &Common,
        group: Option<&Group>,
    ) -> Result<Self, String> {
        host::require_kvm().map_err(|error| error.to_string())?;
        Parts::find().map_err(|error| error.to_string())?;
        let program = env::current_exe().map_err(|error| error.to_string())?;
        let way = match (arm, knows_ways()) {
            ("cold", true) => Some("boot"),
            ("cold", false) => None,
            (way, true) => Some(way),
            (_, false) => return Err("this hrun has no such way of starting".into()),
        };
        let mut hrun = Self {
            program,
            image: common.image_name.clone(),
            store: common.store.clone(),
            state: common.state.join(arm),
            way,
            tag: format!("{}-{arm}", common.tag),
            pool: None,
        };
        if arm == "pool" {
            if !knows_command("pool") {
                return Err("this hrun has no pool".into());
            }
            hrun.pool = Some(hrun.serve(common.pool_size, group)?);
        }
        Ok(hrun)
    }

    fn hrun(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("HRUN_STORE", &self.store)
            .env("HRUN_STATE", &self.state)
            .env_remove("HRUN_START")
            .env_remove(namespace::INSIDE)
            .stdin(Stdio::null());
        command
    }

    fn serve(&self, size: usize, group: Option<&Group>) -> Result<Pool, String> {
        let mut command = self.hrun();
        command.args(["pool", "serve", "--size", &size.to_string()]);
        command.args(["--image", &self.image]);
        let mut start = || Running::start(&mut command);
        let daemon = match group {
            Some(group) => group.within(start).map_err(|error| error.to_string())?,
            None => start(),
        };
        Ok(Pool {
            daemon: daemon.map_err(|error| error.to_string())?,
            size,
        })
    }

    pub(super) fn command(&self, start: &Start<'_>) -> Command {
        let mut command = self.hrun();
        command.args(["run", "--rm"]);
        if let Some(way) = self.way {
            command.args(["--start", way]);
        }
        if start.stdin {
            command.arg("--interactive").stdin(Stdio::piped());
        }
        // Whoever ends by himself may still be taken apart when the next takes his slot.
        if start.lasting {
            command.args(["--name", &self.name(start.slot)]);
        }
        command
            .args(["--user", "0:0", "--workdir", "/", "--entrypoint", ""])
            .arg(&self.image)
            .args(start.words);
        command
    }

    fn name(&self, slot: usize) -> String {
        format!("{}-{slot}", self.tag)
    }

    /// Ends containers in the way of users, all with one command.
    pub(super) fn end(&self, count: usize) {
        let mut command = self.hrun();
        command
            .args(["rm", "--force"])
            .args((0..count).map(|slot| self.name(slot)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Who has ended already is not found; who cannot be ended is killed later.
        let _ = command.status();
    }

    pub(super) fn burst(&self) -> usize {
        self.pool.as_ref().map_or(usize::MAX, |pool| pool.size)
    }

    pub(super) fn daemon(&self) -> Option<i32> {
        self.pool.as_ref().map(|pool| pool.daemon.pid())
    }
}

impl Drop for Hrun {
    fn drop(&mut self) {
        // The daemon first: it takes its VMs along.
        self.pool = None;
        // Looking at the containers clears up after those that were killed.
        let mut command = self.hrun();
        command.args(["ps", "--quiet"]);
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Whether `hrun run` lets one choose how the VM starts.
fn knows_ways() -> bool {
    let cli = Cli::command();
    cli.find_subcommand("run").is_some_and(|run| {
        run.get_arguments()
            .any(|arg| arg.get_long() == Some("start"))
    })
}

fn knows_command(name: &str) -> bool {
    Cli::command().find_subcommand(name).is_some()
}
