//! `hrun-vmm`: one process per VM.
//!
//! ```text
//! hrun-vmm --config-fd N [--lifeline-fd M] [--preload DIR]
//!                      run the VM described by the JSON document on fd N, which may be a socket
//!                      on which the owner hears how it goes (vmm::channel); the VM ends when
//!                      the other end of fd M is closed; with --preload the snapshot in DIR is
//!                      loaded before the document is waited for
//! hrun-vmm --probe     print the kind of KVM of this host as JSON
//! hrun-vmm --version
//! ```
//!
//! The exit status says how the VM ended ([`vmm::exit::ExitReason`]).

use std::{
    env,
    error::Error,
    fs::{self, File},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use vmm::{
    builder::{self, BuildError},
    channel::{Channel, Event},
    config::VmConfig,
    control::{self, Running},
    end::{End, chain},
    exit::ExitReason,
    host_kind, logger,
    restore::{Loaded, RestoreError},
    timeline::Timeline,
};

const USAGE: &str =
    "usage: hrun-vmm --config-fd N [--lifeline-fd M] [--preload DIR] | --probe | --version";

enum Command {
    Run {
        config: RawFd,
        lifeline: Option<RawFd>,
        preload: Option<PathBuf>,
    },
    Probe,
    Version,
}

fn main() -> ExitCode {
    let timeline = Timeline::begin();
    logger::install();
    let (reason, message) = match parse(env::args().skip(1)) {
        Some(Command::Run {
            config,
            lifeline,
            preload,
        }) => run(config, lifeline, preload, &timeline),
        Some(Command::Probe) => return probe(),
        Some(Command::Version) => {
            println!("hrun-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        None => (ExitReason::BadConfig, USAGE.into()),
    };
    if reason != ExitReason::Shutdown {
        logger::print(format_args!("{message}"));
    }
    ExitCode::from(reason.code())
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Command> {
    let (mut config, mut lifeline, mut preload) = (None, None, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--probe" => return args.next().is_none().then_some(Command::Probe),
            "--version" => return args.next().is_none().then_some(Command::Version),
            "--config-fd" => config = Some(descriptor(&args.next()?)?),
            "--lifeline-fd" => lifeline = Some(descriptor(&args.next()?)?),
            "--preload" => preload = Some(PathBuf::from(args.next()?)),
            _ => return None,
        }
    }
    Some(Command::Run {
        config: config?,
        lifeline,
        preload,
    })
}

/// A descriptor number that is neither negative nor one of the standard error's.
fn descriptor(arg: &str) -> Option<RawFd> {
    arg.parse().ok().filter(|fd| *fd == 0 || *fd > 2)
}

fn probe() -> ExitCode {
    match host_kind::probe_host() {
        Ok(kind) => {
            println!("{}", serde_json::json!(kind));
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("hrun-vmm: {}", chain(&err));
            ExitCode::from(ExitReason::Failed.code())
        }
    }
}

fn run(
    config: RawFd,
    lifeline: Option<RawFd>,
    preload: Option<PathBuf>,
    timeline: &Timeline,
) -> (ExitReason, String) {
    // SAFETY: the caller passed these descriptors for us to own, and nothing else in this
    // process, which has just begun, knows their numbers.
    let config = unsafe { OwnedFd::from_raw_fd(config) };
    // SAFETY: as above.
    let lifeline = lifeline.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut channel = Channel::new(config);
    let (reason, message) = match configure_and_run(&mut channel, lifeline, preload, timeline) {
        Ok(why) => why,
        Err(Failure::Config(message)) => (ExitReason::BadConfig, message),
        Err(Failure::Vm(err)) => (reason_of(err.as_ref()), chain(err.as_ref())),
    };
    channel.tell(&Event::Ended {
        reason,
        message: message.clone(),
    });
    (reason, message)
}

/// What keeps a VM from running.
enum Failure {
    Config(String),
    Vm(Box<dyn Error>),
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(err: E) -> Self {
        Self::Vm(err.into())
    }
}

fn reason_of(err: &(dyn Error + 'static)) -> ExitReason {
    let restore = match err.downcast_ref::<BuildError>() {
        Some(BuildError::Restore(restore)) => Some(restore),
        _ => err.downcast_ref::<RestoreError>(),
    };
    match restore {
        // Without KVM nothing can be said about the snapshot.
        Some(RestoreError::Vm { .. }) | None => ExitReason::Failed,
        Some(_) => ExitReason::BadSnapshot,
    }
}

fn configure_and_run(
    channel: &mut Channel,
    lifeline: Option<OwnedFd>,
    preload: Option<PathBuf>,
    timeline: &Timeline,
) -> Result<(ExitReason, String), Failure> {
    let loaded = preload
        .map(|directory| Loaded::load(&directory, None, timeline))
        .transpose()?;
    if loaded.is_some() {
        channel.tell(&Event::Loaded);
    }
    let json = channel
        .read_config()
        .map_err(|err| Failure::Config(format!("Failed to read the VM configuration: {err}")))?;
    if json.is_empty() && loaded.is_some() {
        return Ok((ExitReason::Shutdown, "nobody needed the VM".into()));
    }
    let config = VmConfig::from_json(&json).map_err(|err| Failure::Config(chain(&err)))?;
    timeline.reached("configured");
    run_vm(&config, loaded, lifeline, channel, timeline).map_err(Failure::Vm)
}

fn run_vm(
    config: &VmConfig,
    loaded: Option<Loaded>,
    lifeline: Option<OwnedFd>,
    channel: &mut Channel,
    timeline: &Timeline,
) -> Result<(ExitReason, String), Box<dyn Error>> {
    host_limits();
    let end = Arc::new(End::new()?);
    let listener = control::listen(&config.control).map_err(|err| {
        format!(
            "Failed to make the control socket {}: {err}",
            config.control.display()
        )
    })?;
    let profile = config.profile.as_deref().map(File::create).transpose()?;
    let system_map = builder::system_map(config);
    let built = builder::build(config, loaded, &end, timeline).inspect_err(|_| {
        // So that the owner may try again. Behind the confinement the path leads nowhere.
        let _ = fs::remove_file(&config.control);
    })?;
    let mut running = Running {
        built,
        config,
        end,
        timeline,
        paused: true,
    };
    if !config.start_paused {
        running.resume();
    }
    channel.tell(&Event::Running {
        phases: timeline.phases(),
        clocks_set_ns: running.built.clocks_set_ns,
    });
    let why = running.run(&listener, lifeline)?;
    running.built.vcpus.pause();
    if let (Some(samples), Some(mut file)) = (running.built.vcpus.profile(), profile) {
        std::io::Write::write_all(&mut file, samples.report(&system_map).as_bytes())?;
    }
    // The kernel takes a VM apart fastest when its process just ends.
    Ok(why)
}

/// Every open file of a guest may be a descriptor here, and files get the modes guests ask for.
fn host_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
    let hard = getrlimit(Resource::Nofile).maximum;
    // Not fatal: the guest just gets fewer open files.
    if let Err(err) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: hard,
            maximum: hard,
        },
    ) {
        log::warn!("Failed to raise the limit of open files: {err}");
    }
    umask(rustix::fs::Mode::empty());
}
