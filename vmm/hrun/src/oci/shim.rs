//! The process that engines take for a container: it lives as long as the container, ends with its
//! status, and has the container's VM, network namespace and control groups. When it dies, however
//! it dies, the VM ends as well.

use std::{
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
    sync::Arc,
};

use agent_protocol::{Action, ExitStatus, Stdio};
use anyhow::{Context, bail};
use oci_spec::runtime::Spec;
use rustix::{
    event::{PollFd, PollFlags},
    process::{chdir, setsid},
};

use super::{
    bundle,
    cli::ShimArgs,
    console,
    containers::{Containers, Owned},
    failure, hooks,
    orders::{self, Answer, Client, Order},
    plan::Plan,
    pod::{Guest, Peers},
    record::{Record, Status},
    report::{self, Report, Reporter},
    view,
};
use crate::{
    dirs::Dirs,
    exit,
    failpoint::reach,
    launch,
    options::signal,
    parts::Parts,
    poll,
    process::ProcessIdentity,
    relay::Output,
    sandbox::{Claim, Sandbox, Way},
    session::{self, SessionError, Start},
    signals::{self, Signals},
    template::Templates,
    terminal,
    timeline::Timeline,
    translate::{self, Places},
};

pub(super) fn execute(
    dirs: &Dirs,
    containers: &Containers,
    args: &ShimArgs,
    timeline: Timeline,
) -> anyhow::Result<u8> {
    let (mut reporter, lock) = report::inherited().context("Nobody waits for this process")?;
    let result = Shim::enter(dirs, containers, args, lock).and_then(|mut shim| {
        let result = shim.run(&mut reporter, timeline);
        let status = result.as_ref().map_or(exit::HRUN_FAILED, |status| *status);
        shim.owned.record.status = Status::Stopped(status);
        // Who cannot read it sees that the lock is free.
        let _ = shim.owned.write();
        result
    });
    match result {
        Ok(status) => Ok(status),
        Err(error) => {
            let (text, status) = failure::describe(&error);
            // Nobody may be there any more to be told.
            let _ = reporter.tell(&Report::Failed { text, status });
            Ok(status)
        }
    }
}

struct Shim<'a> {
    dirs: &'a Dirs,
    owned: Owned,
    spec: Spec,
    plan: Plan,
    signals: Signals,
}

/// What comes to a container that waits for its start.
enum Coming {
    Start(Client),
    End(i32),
}

impl<'a> Shim<'a> {
    /// Becomes what the engine expects to find: a process of its own session, in the container's
    /// control groups and network namespace, with its terminal.
    fn enter(
        dirs: &'a Dirs,
        containers: &Containers,
        args: &ShimArgs,
        lock: std::fs::File,
    ) -> anyhow::Result<Self> {
        if !args.foreground {
            setsid().context("Failed to make a session")?;
        }
        let mut owned = containers.take(&args.id, lock)?;
        let spec = owned.config()?;
        let role = &owned.record.role;
        let peers = Peers::of(role, containers)?;
        let plan = bundle::plan(&spec, &owned.record.bundle, &args.id, role, &peers)?;
        reach("shim.begun", None);
        // First of all: what is charged is charged to the container.
        owned.record.groups.enter(std::process::id())?;
        reach("shim.grouped", None);
        // Nobody else runs in this process yet.
        bundle::network(&spec).enter()?;
        if let Some(socket) = &args.console_socket {
            let size = spec.process().as_ref().and_then(bundle::window_size);
            console::enter(socket, size.map(console::winsize))?;
        }
        let signals = Signals::catch().context("Failed to catch signals")?;
        chdir("/").context("Failed to leave the directory")?;
        owned.record.shim = Some(ProcessIdentity::own().context("Failed to look at /proc")?);
        reach("shim.entered", None);
        owned.write()?;
        reach("shim.recorded", None);
        Ok(Self {
            dirs,
            owned,
            spec,
            plan,
            signals,
        })
    }

    /// The container's life.
    fn run(&mut self, reporter: &mut Reporter, timeline: Timeline) -> anyhow::Result<u8> {
        let timeline = Arc::new(timeline);
        reporter
            .tell(&Report::Entered)
            .context("Whoever made the container has gone")?;
        reach("shim.told", None);
        let vm = self.make_container(&timeline)?;
        let vmm = self.owned.record.vmm;
        reach("shim.prepared", vmm);
        let hooks = self.spec.hooks().as_ref();
        let hooks = hooks.and_then(|hooks| hooks.create_container().as_ref());
        hooks::run(
            "createContainer",
            hooks,
            &self.owned.record.state("creating"),
        )?;
        let record = &self.owned.record;
        let processes = [record.shim, record.vmm];
        let processes: Vec<_> = processes.iter().flatten().map(|it| it.pid).collect();
        let _host = view::show(&record.rootfs, &processes)
            .context("Failed to make a mount namespace for whoever looks into the container")?;
        let socket = self.owned.record.orders_socket();
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("Failed to listen on {}", socket.display()))?;
        self.owned.record.status = Status::Created;
        self.owned.write()?;
        reach("shim.created", vmm);
        // Otherwise nobody would ever start it, or know of it.
        reporter
            .tell(&Report::Done)
            .context("Whoever made the container has gone")?;
        let status = match self.wait(&listener, &vm)? {
            Coming::End(signal) => ended_by(signal),
            Coming::Start(client) => {
                // Who comes too late is told so by the record.
                drop(listener);
                reach("shim.ordered", vmm);
                self.start(&vm, client, &timeline)?
            }
        };
        reach("shim.ended", vmm);
        self.owned.record.status = Status::Stopped(status);
        self.owned.write()?;
        reach("shim.stopped", vmm);
        // The engine unmounts the root file system next: the VM must have let go of it.
        drop(vm);
        Ok(status)
    }

    /// Sets the container up in a VM of its own, or in that of its pod.
    fn make_container(&mut self, timeline: &Arc<Timeline>) -> anyhow::Result<Vm> {
        let membership = self.owned.record.role.membership().cloned();
        // Until it is there; its program may be started much later.
        let mut turn = None;
        let (vm, actions, cid) = match membership {
            Some(membership) => {
                let vm = Vm::Joined(membership.enter(&self.plan)?);
                let create = Action::Create(Box::new(self.plan.container.clone()));
                (vm, vec![create], None)
            }
            None => {
                let mut sandbox = self.claim(timeline)?;
                turn = sandbox.turn();
                reach("shim.claimed", self.owned.record.vmm);
                let actions = translate::create_actions(&self.plan.container, sandbox.moment())
                    .context("Failed to read random numbers for the guest")?;
                let cid = Some(sandbox.cid());
                (Vm::Own(sandbox), actions, cid)
            }
        };
        session::prepare(vm.vsock(), actions, cid, &mut self.signals, timeline)?;
        drop(turn);
        Ok(vm)
    }

    fn claim(&mut self, timeline: &Arc<Timeline>) -> anyhow::Result<Sandbox> {
        let parts = Parts::find()?;
        let templates = Templates::open(self.dirs)?;
        let record = &self.owned.record;
        let places = Places {
            control: record.control_socket(),
            vsock: record.vsock_socket(),
            console: None,
            profile: None,
        };
        let plan = &self.plan;
        let name = record.id.clone();
        let vm = |origin, cid| translate::bundle_vm(&name, plan, origin, cid, &places);
        vm(translate::boot(&parts), translate::FIRST_CID).validate()?;
        let claim = Claim {
            way: way()?,
            class: plan.class,
            image: None,
            parts: &parts,
            dirs: self.dirs,
            templates: &templates,
            timeline,
            timeout: launch::boot_timeout()?,
            wants_boot: false,
        };
        let owned = &mut self.owned;
        let sandbox = Sandbox::claim(&vm, &claim, &mut self.signals, &mut |vmm| {
            owned.record.vmm = Some(ProcessIdentity::of_fd(vmm.as_fd())?);
            reach("shim.spawned", owned.record.vmm);
            owned.write()?;
            reach("shim.announced", owned.record.vmm);
            Ok(())
        })?;
        Ok(sandbox)
    }

    /// Waits until somebody has the program started, or the container ended.
    fn wait(&mut self, listener: &UnixListener, vm: &Vm) -> anyhow::Result<Coming> {
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(vm, PollFlags::IN),
            ];
            poll::wait(&mut fds, None).context("Failed to wait for the start")?;
            let [asked, _, ended] = fds.map(|fd| !fd.revents().is_empty());
            while let Some(signal) = self.signals.next() {
                if signals::is_ending(signal) {
                    return Ok(Coming::End(signal));
                }
            }
            if ended {
                if self.ends_with_others() {
                    return Ok(Coming::End(signal::KILL.into()));
                }
                bail!("The container's VM ended before it was started");
            }
            if !asked {
                continue;
            }
            match orders::take(listener).context("Failed to take an order")? {
                None => {}
                Some((Order::Start, client)) => return Ok(Coming::Start(client)),
                Some((Order::End(signal), client)) => {
                    client.answer(&Answer::Done);
                    return Ok(Coming::End(signal));
                }
            }
        }
    }

    /// Whether the end of the VM is that of the program: as it was to be killed, or as a pod ends
    /// with its sandbox.
    fn ends_with_others(&self) -> bool {
        let record = &self.owned.record;
        was_killed(record) || record.role.membership().is_some()
    }

    /// Starts the program and stays with it until its end.
    fn start(&mut self, vm: &Vm, client: Client, timeline: &Arc<Timeline>) -> anyhow::Result<u8> {
        let mut process = self.plan.process.clone();
        let has_terminal = matches!(process.stdio, Stdio::Terminal(_));
        if has_terminal {
            process.stdio = Stdio::Terminal(terminal::window_size());
        }
        let start = Start {
            process: process.id,
            cid: None,
            stdio: process.stdio,
            input: true,
            output: Output::Stdio,
            proxy_signals: true,
            actions: vec![Action::Start(Box::new(process))],
        };
        let mut client = Some(client);
        let owned = &mut self.owned;
        let mut started = || {
            reach("shim.started", owned.record.vmm);
            owned.record.status = Status::Running;
            let answer = match owned.write() {
                Ok(()) => Answer::Done,
                Err(error) => failed(&error.into()),
            };
            reach("shim.running", owned.record.vmm);
            if let Some(client) = client.take() {
                client.answer(&answer);
            }
        };
        let outcome = session::run(vm.vsock(), start, &mut self.signals, timeline, &mut started);
        match outcome {
            Ok((_, status)) => Ok(status.code()),
            Err(SessionError::Connect(_) | SessionError::Control(_)) if self.ends_with_others() => {
                Ok(ended_by(signal::KILL.into()))
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                match client {
                    // Whoever asked for the start is told, and the container has ended.
                    Some(client) => {
                        client.answer(&failed(&error));
                        Ok(exit::status_of(&error, true))
                    }
                    None => Err(error),
                }
            }
        }
    }
}

fn failed(error: &anyhow::Error) -> Answer {
    let (text, status) = failure::describe(error);
    Answer::Failed { text, status }
}

/// The VM that a container is in.
#[derive(Debug)]
enum Vm {
    Own(Sandbox),
    Joined(Guest),
}

impl Vm {
    fn vsock(&self) -> &Path {
        match self {
            Self::Own(sandbox) => sandbox.vsock(),
            Self::Joined(guest) => guest.vsock(),
        }
    }
}

/// Readable once it has ended.
impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(sandbox) => sandbox.as_fd(),
            Self::Joined(guest) => guest.as_fd(),
        }
    }
}

/// Whether somebody ended the VM in the place of a signal that ends every process.
fn was_killed(record: &Record) -> bool {
    record.killed_mark().exists()
}

fn ended_by(signal: i32) -> u8 {
    u8::try_from(signal).map_or(exit::HRUN_FAILED, |signal| {
        ExitStatus::Signaled(signal).code()
    })
}

/// How VMs start: by the environment, as engines know no option for it.
fn way() -> anyhow::Result<Way> {
    use clap::ValueEnum;
    match std::env::var("HRUN_START") {
        Err(_) => Ok(Way::default()),
        Ok(text) => Way::from_str(&text, false)
            .map_err(|_| anyhow::anyhow!("HRUN_START is {text:?}, which is no way to start a VM")),
    }
}
