//! `hrun-vmm`: one process per VM.
//!
//! ```text
//! hrun-vmm --config-fd N [--lifeline-fd M]   run the VM described by the JSON document on fd N
//! hrun-vmm --probe                           print the kind of KVM of this host as JSON
//! hrun-vmm --version
//! ```
//!
//! The exit status says how the VM ended ([`vmm::exit::ExitReason`]).

use std::{
    env,
    error::Error,
    fs::File,
    io::Read,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    process::ExitCode,
    sync::Arc,
};

use vmm::{
    builder,
    config::VmConfig,
    control::{self, Running},
    end::End,
    exit::ExitReason,
    host_kind, logger,
    timeline::Timeline,
};

/// Longest configuration document, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

const USAGE: &str = "usage: hrun-vmm --config-fd N [--lifeline-fd M] | --probe | --version";

enum Command {
    Run {
        config: RawFd,
        lifeline: Option<RawFd>,
    },
    Probe,
    Version,
}

fn main() -> ExitCode {
    let timeline = Timeline::begin();
    logger::install();
    let (reason, message) = match parse(env::args().skip(1)) {
        Some(Command::Run { config, lifeline }) => run(config, lifeline, &timeline),
        Some(Command::Probe) => return probe(),
        Some(Command::Version) => {
            println!("hrun-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        None => (ExitReason::BadConfig, USAGE.into()),
    };
    if reason != ExitReason::Shutdown {
        eprintln!("hrun-vmm: {message}");
    }
    ExitCode::from(reason.code())
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Command> {
    let (mut config, mut lifeline) = (None, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--probe" => return args.next().is_none().then_some(Command::Probe),
            "--version" => return args.next().is_none().then_some(Command::Version),
            "--config-fd" => config = Some(descriptor(&args.next()?)?),
            "--lifeline-fd" => lifeline = Some(descriptor(&args.next()?)?),
            _ => return None,
        }
    }
    Some(Command::Run {
        config: config?,
        lifeline,
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

fn run(config: RawFd, lifeline: Option<RawFd>, timeline: &Timeline) -> (ExitReason, String) {
    // SAFETY: the caller passed these descriptors for us to own, and nothing else in this
    // process, which has just begun, knows their numbers.
    let config = unsafe { OwnedFd::from_raw_fd(config) };
    // SAFETY: as above.
    let lifeline = lifeline.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut json = Vec::new();
    if let Err(err) = File::from(config).take(MAX_CONFIG).read_to_end(&mut json) {
        return (
            ExitReason::BadConfig,
            format!("Failed to read the VM configuration: {err}"),
        );
    }
    let config = match VmConfig::from_json(&json) {
        Ok(config) => config,
        Err(err) => return (ExitReason::BadConfig, chain(&err)),
    };
    match run_vm(&config, lifeline, timeline) {
        Ok(why) => why,
        Err(err) => (ExitReason::Failed, chain(err.as_ref())),
    }
}

fn run_vm(
    config: &VmConfig,
    lifeline: Option<OwnedFd>,
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
    let built = builder::build(config, &end, timeline)?;
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

/// An error and its sources in one line.
fn chain(err: &dyn Error) -> String {
    let mut message = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        message.push_str(": ");
        message.push_str(&err.to_string());
        source = err.source();
    }
    message
}
