//! Arms: the ways to run a container that are compared. An arm is a name, a command for a start,
//! and a probe that tells whether it is there; the measurements know no more of it.

mod hrun;
mod oci;

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use image::Image;
use serde::Serialize;

use super::{
    cgroup::{Cgroups, Group},
    launch::{self, LaunchError, Running, Until},
    processes::{self, Footprint},
};
use crate::signals::Signals;

/// How long one start may take: a boot on a busy machine that interprets the guest's kernel.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(120);

/// How long the first start may take, before which there may be a template to make.
const FIRST_LIMIT: Duration = Duration::from_secs(240);

/// An arm is at rest when it has used less than a tenth of one CPU for this long.
const REST: Duration = Duration::from_millis(40);
/// The same where a daemon works in the background, which may take a breath in between.
const REST_OF_DAEMON: Duration = Duration::from_millis(200);
/// Longest wait for that.
const REST_LIMIT: Duration = Duration::from_secs(60);

/// How often containers are told to end, and how long they may take each time.
const END_ATTEMPTS: u32 = 10;
const END_LIMIT: Duration = Duration::from_secs(2);

/// How the arms are called, in the order of tables and plots.
pub(crate) const NAMES: [&str; 6] = ["pool", "image", "template", "cold", "crun", "runc"];

/// Something that is to run in a new container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    /// Which of the containers that run at the same time.
    pub(crate) slot: usize,
    pub(crate) words: &'a [&'a str],
    /// Whether it reads standard input, a pipe.
    pub(crate) stdin: bool,
    /// Whether it runs until [`Arm::end`].
    pub(crate) lasting: bool,
}

impl<'a> Start<'a> {
    /// A command that ends by itself.
    pub(crate) fn short(slot: usize, words: &'a [&'a str]) -> Self {
        Self {
            slot,
            words,
            stdin: false,
            lasting: false,
        }
    }
}

/// An arm could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArmError {
    /// Its command failed, or the benchmark is to end.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A bundle could not be made.
    #[error("Failed to make a bundle for {arm} in {path}")]
    Bundle {
        arm: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A cgroup refused the harness.
    #[error("Failed to work with the cgroup of {0}")]
    Cgroup(&'static str, #[source] io::Error),
}

impl ArmError {
    /// Whether the benchmark is to end, and not only what was being done.
    pub(crate) fn is_interrupt(&self) -> bool {
        matches!(self, Self::Launch(LaunchError::Interrupted(_)))
    }
}

/// What all arms have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) image: Image,
    /// The image as the user named it.
    pub(crate) image_name: String,
    pub(crate) store: PathBuf,
    /// A directory of the harness's own below the store, on the file system of writable layers.
    pub(crate) work: PathBuf,
    /// A directory with a short path, for sockets.
    pub(crate) state: PathBuf,
    /// What makes names of this run differ from those of another.
    pub(crate) tag: String,
    /// VMs that a pool holds ready.
    pub(crate) pool_size: usize,
}

/// A way to run a container.
#[derive(Debug)]
pub(crate) struct Arm {
    pub(crate) name: &'static str,
    runner: Runner,
    group: Option<Group>,
}

#[derive(Debug)]
enum Runner {
    Hrun(Box<hrun::Hrun>),
    Oci(Box<oci::Oci>),
}

/// What the output says of an arm.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Described {
    pub(crate) name: &'static str,
    /// What a start is, for people.
    pub(crate) command: String,
    pub(crate) version: Option<String>,
    /// Why it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<String>,
}

impl Arm {
    /// Finds an arm by its name and starts what it needs in the background. The reason is given
    /// if it is not there.
    pub(crate) fn find(
        name: &'static str,
        common: &Common,
        cgroups: Option<&Cgroups>,
    ) -> (Described, Result<Self, String>) {
        let group = cgroups.map(|cgroups| cgroups.group(name)).transpose();
        let group = match group {
            Ok(group) => group,
            Err(error) => {
                let reason = format!("its cgroup cannot be made: {error}");
                return (Described::new(name), Err(reason));
            }
        };
        let mut described = Described::new(name);
        let found = match name {
            "crun" | "runc" => oci::Oci::find(name, common, group.as_ref()).map(|oci| {
                described.version = Some(oci.version().into());
                Runner::Oci(Box::new(oci))
            }),
            _ => {
                described.version = Some(env!("CARGO_PKG_VERSION").into());
                hrun::Hrun::find(name, common, group.as_ref())
                    .map(|hrun| Runner::Hrun(Box::new(hrun)))
            }
        };
        let arm = found.map(|runner| Self {
            name,
            runner,
            group,
        });
        (described, arm)
    }

    /// Runs the first container, which may have to wait for what is made on first need.
    pub(crate) fn probe(&mut self, signals: &mut Signals) -> Result<(), ArmError> {
        let deadline = Instant::now() + FIRST_LIMIT;
        let start = Start::short(0, &["true"]);
        loop {
            self.rest(signals)?;
            let error = match self.run(&start, signals) {
                Ok(_) => return self.rest(signals),
                Err(error) => error,
            };
            // A pool that is not filled yet refuses; everybody else means it.
            let waits = matches!(&self.runner, Runner::Hrun(hrun) if hrun.daemon().is_some());
            if error.is_interrupt() || !waits || Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Most containers that can be started at the same moment.
    pub(crate) fn burst(&self) -> usize {
        match &self.runner {
            Runner::Hrun(hrun) => hrun.burst(),
            Runner::Oci(_) => usize::MAX,
        }
    }

    /// Whether a start takes as long as a boot.
    pub(crate) fn boots(&self) -> bool {
        self.name == "cold"
    }

    /// Whether its containers are VMs.
    pub(crate) fn is_vm(&self) -> bool {
        matches!(self.runner, Runner::Hrun(_))
    }

    /// Starts containers, all at the same moment. Whatever can be made ready beforehand is.
    pub(crate) fn launch(&mut self, starts: &[Start<'_>]) -> Result<Vec<Running>, ArmError> {
        let mut commands = starts
            .iter()
            .map(|start| self.command(start))
            .collect::<Result<Vec<Command>, _>>()?;
        let mut start_all = || commands.iter_mut().map(Running::start).collect();
        let started: Result<Vec<Running>, LaunchError> = match &self.group {
            Some(group) => group
                .within(start_all)
                .map_err(|error| ArmError::Cgroup(self.name, error))?,
            None => start_all(),
        };
        Ok(started?)
    }

    /// Runs one container to its end.
    pub(crate) fn run(
        &mut self,
        start: &Start<'_>,
        signals: &mut Signals,
    ) -> Result<launch::Times, ArmError> {
        let mut running = self.launch(std::slice::from_ref(start))?;
        launch::wait(&mut running, Until::Exit, START_LIMIT, signals)?;
        Ok(running[0].times()?)
    }

    fn command(&mut self, start: &Start<'_>) -> Result<Command, ArmError> {
        match &mut self.runner {
            Runner::Hrun(hrun) => Ok(hrun.command(start)),
            Runner::Oci(oci) => oci.command(start),
        }
    }

    /// Ends containers that would not end by themselves, all of slots 0 to `running.len()`. This
    /// is done in full even if a signal asks for haste: it takes a moment, the other ways more.
    pub(crate) fn end(&mut self, mut running: Vec<Running>) {
        // One that is only just being made is not there yet to be killed: it is the next time.
        for _ in 0..END_ATTEMPTS {
            match &self.runner {
                Runner::Hrun(hrun) => hrun.end(running.len()),
                Runner::Oci(oci) => oci.end(running.len()),
            }
            if launch::ended(&mut running, END_LIMIT) {
                return;
            }
        }
        // Who is left now is ended by force when it is dropped.
    }

    /// CPU time that the arm has used so far, in processes that have ended and in those that
    /// live, the pool's included.
    pub(crate) fn cpu(&self) -> Duration {
        let counted = self.group.as_ref().and_then(Group::cpu);
        counted.unwrap_or_else(|| {
            let daemon = self.daemon().map_or(Duration::ZERO, processes::cpu_of_tree);
            processes::cpu_of_waited() + daemon
        })
    }

    /// Memory charged to the arm's cgroup, if such a thing is counted here.
    pub(crate) fn charge(&self) -> Option<u64> {
        self.group.as_ref().and_then(Group::memory)
    }

    /// Memory of the arm's processes.
    pub(crate) fn footprint(&self, running: &[Running]) -> Footprint {
        let fronts: Vec<i32> = running.iter().map(Running::pid).collect();
        Footprint::of(&fronts, self.daemon())
    }

    fn daemon(&self) -> Option<i32> {
        match &self.runner {
            Runner::Hrun(hrun) => hrun.daemon(),
            Runner::Oci(_) => None,
        }
    }

    /// Waits until the arm has nothing left to do in the background: VMs to take apart, a pool to
    /// fill. Otherwise the next arm would pay for it, and nobody would count it.
    pub(crate) fn rest(&self, signals: &mut Signals) -> Result<(), ArmError> {
        self.rest_within(REST_LIMIT, signals)
    }

    /// The same, but no longer than this: idle containers may be at work for ever.
    pub(crate) fn rest_within(
        &self,
        limit: Duration,
        signals: &mut Signals,
    ) -> Result<(), ArmError> {
        let wanted = match self.daemon() {
            Some(_) => REST_OF_DAEMON,
            None => REST,
        };
        let step = REST / 2;
        let deadline = Instant::now() + limit;
        let mut before = self.cpu();
        let mut quiet = Duration::ZERO;
        while quiet < wanted && Instant::now() < deadline {
            launch::interrupted(signals)?;
            thread::sleep(step);
            let now = self.cpu();
            let busy = now.saturating_sub(before) * 10 >= step;
            quiet = if busy { Duration::ZERO } else { quiet + step };
            before = now;
        }
        Ok(())
    }
}

impl Described {
    fn new(name: &'static str) -> Self {
        let command = match name {
            "pool" => "hrun run --start pool: a clone that knows the image, from the pool",
            "image" => "hrun run --start image: a clone of the template for the image",
            "template" => "hrun run --start template: a clone of the template for any image",
            "cold" => "hrun run --start boot: a VM is booted",
            "crun" => "crun run: namespaces, the bundle is ready",
            _ => "runc run: namespaces, the bundle is ready",
        };
        Self {
            name,
            command: command.into(),
            version: None,
            missing: None,
        }
    }
}

/// The first line that a program prints when it is asked for its version.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    Some(line.rsplit(' ').next()?.to_owned())
}
