//! `hrun shim`: the process that owns a container in the background, and its VM. Not for people:
//! `hrun run -d` and `hrun start` begin it.
//!
//! Its standard input is the container's lock, which makes it the owner; its standard output takes
//! the report. It ends when the container does, and nothing else ends it but `kill -9`: then the
//! VM ends as well, and the next hrun clears up.

use std::{
    ffi::OsString,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::ValueEnum;

use super::{diff::image_of, image::open_store};
use crate::{
    attach::{Audience, Input, SOCKET},
    background::{self, Background, BackgroundError, Beginning},
    container::{Container, Containers, Id},
    dirs::Dirs,
    exit,
    launch::Launch,
    parts::Parts,
    relay::Output,
    restart::Backoff,
    sandbox::Way,
    signals::Signals,
    timeline::Timeline,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ShimArgs {
    #[arg(long, value_enum, default_value_t, env = "HRUN_START")]
    start: Way,
    /// Somebody is about to attach, and must not miss a word
    #[arg(long)]
    attached: bool,
    /// The container's whole identifier
    id: String,
}

/// How long he may take: longer only if he died, and then nobody misses anything.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts the container in the background, and waits until its command runs.
pub(crate) fn spawn(container: Container, way: Option<Way>) -> anyhow::Result<()> {
    Ok(begin(container, way, false)?.wait()?)
}

/// Starts the container in the background; with `attached` not before somebody has attached.
pub(super) fn begin(
    container: Container,
    way: Option<Way>,
    attached: bool,
) -> anyhow::Result<Beginning> {
    let mut args: Vec<OsString> = vec!["shim".into(), container.record().id.as_str().into()];
    if let Some(way) = way.as_ref().and_then(ValueEnum::to_possible_value) {
        args.push(format!("--start={}", way.get_name()).into());
    }
    if attached {
        args.push("--attached".into());
    }
    // If no process comes to be, the container has no owner, and the next hrun clears up.
    let lock = container.pass_on()?;
    Ok(background::begin(
        args,
        Stdio::from(lock),
        background::is_of_hrun,
    )?)
}

pub(crate) fn execute(args: &ShimArgs, timeline: Timeline) -> anyhow::Result<u8> {
    let (mut background, lock) = Background::enter()?;
    let result = run(args, lock, timeline, &mut background);
    if let Err(error) = &result {
        background.failed(error, exit::status_of(error, true));
    }
    result.or(Ok(exit::HRUN_FAILED))
}

fn run(
    args: &ShimArgs,
    lock: std::os::fd::OwnedFd,
    timeline: Timeline,
    background: &mut Background,
) -> anyhow::Result<u8> {
    let timeline = Arc::new(timeline);
    let mut signals = Signals::ignore().context("Failed to catch signals")?;
    let dirs = Dirs::from_env()?;
    let id = Id::try_from(args.id.clone()).map_err(|_| BackgroundError::Silent)?;
    let containers = Containers::open(&dirs)?;
    let mut container = containers.take(&id, lock)?;
    let mut config = containers.config(container.record())?;
    let store = open_store(&dirs)?;
    let image = image_of(&store, container.record())?;
    let in_use = store.use_image(&image)?;
    let disk = config.options.rootfs.disk(&store, &image, &in_use)?;
    let parts = Parts::find()?;
    let log = container
        .log(config.log)
        .context("Failed to open the container's log")?;
    let input = match (config.options.interactive, config.stdin_once) {
        (false, _) => Input::None,
        (true, false) => Input::Open,
        (true, true) => Input::Once,
    };
    let socket = container.record().runtime_dir.join(SOCKET);
    let audience = Audience::open(&socket, input)
        .with_context(|| format!("Failed to listen at {}", socket.display()))?;
    if args.attached {
        audience.await_first(ATTACH_TIMEOUT);
    }
    let output = Output::Kept(Arc::new(log), Arc::clone(&audience));
    let mut backoff = Backoff::new();
    loop {
        let launch = Launch {
            dirs: &dirs,
            config: &config,
            image: &image,
            disk: disk.clone(),
            parts: &parts,
            way: args.start,
            console: None,
            profile: None,
            input: false,
            output: output.clone(),
            proxy_signals: true,
            timeline: &timeline,
        };
        let begun = Instant::now();
        let mut has_started = false;
        let run = launch.once(&mut container, &mut signals, &mut || {
            has_started = true;
            background.started();
        });
        let (code, outcome) = match run {
            Ok(run) => (run.code, run.outcome),
            Err(error) => (None, Err(error)),
        };
        // Of a start that failed its caller hears by the report.
        let told = outcome.as_ref().ok().copied().filter(|_| has_started);
        audience.end(told);
        let is_first = container.record().restarts == 0;
        let code = match (code, &outcome) {
            (Some(code), _) => code,
            // Nothing has run: nothing stays.
            (None, _) if is_first => return outcome,
            // What worked before may work again.
            (None, Ok(code)) => *code,
            (None, Err(error)) => {
                container.note_failure(format!("{error:#}"));
                exit::status_of(error, true)
            }
        };
        // As it is now: somebody may have asked for another policy.
        config = containers.config(container.record()).unwrap_or(config);
        let again = config.restart.restarts(code, container.record().restarts);
        if !again || !pause(&mut container, code, backoff.after(begun.elapsed()))? {
            container.settle(code)?;
            return outcome;
        }
        audience.begin_again();
    }
}

/// Waits before another start of a container that ended with this status; false if somebody does not
/// want it any more.
fn pause(container: &mut Container, code: u8, length: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + length;
    // From here on nothing is missed.
    let changes = container
        .watch()
        .context("Failed to watch the container's runtime directory")?;
    if container.is_unwanted() {
        return Ok(false);
    }
    container.restarting(code)?;
    while !container.is_unwanted() {
        if Instant::now() >= deadline {
            return Ok(true);
        }
        changes
            .wait(Some(deadline))
            .context("Failed to wait for the container's next start")?;
    }
    Ok(false)
}
