//! `hrun shim`: the process that owns a container in the background, and its VM. Not for people:
//! `hrun run -d` and `hrun start` begin it.
//!
//! Its standard input is the container's lock, which makes it the owner; its standard output takes
//! the report. It ends when the container does, and nothing else ends it but `kill -9`: then the
//! VM ends as well, and the next hrun clears up.

use std::{ffi::OsString, process::Stdio, sync::Arc};

use anyhow::Context;
use clap::ValueEnum;

use super::{diff::image_of, image::open_store};
use crate::{
    background::{self, Background, BackgroundError},
    container::{Container, Containers, Id},
    dirs::Dirs,
    exit,
    launch::Launch,
    parts::Parts,
    relay::Output,
    sandbox::Way,
    signals::Signals,
    timeline::Timeline,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ShimArgs {
    #[arg(long, value_enum, default_value_t, env = "HRUN_START")]
    start: Way,
    /// The container's whole identifier
    id: String,
}

/// Starts the container in the background, and waits until its command runs.
pub(crate) fn spawn(container: Container, way: Option<Way>) -> anyhow::Result<()> {
    let mut args: Vec<OsString> = vec!["shim".into(), container.record().id.as_str().into()];
    if let Some(way) = way.as_ref().and_then(ValueEnum::to_possible_value) {
        args.push(format!("--start={}", way.get_name()).into());
    }
    // If no process comes to be, the container has no owner, and the next hrun clears up.
    let lock = container.pass_on()?;
    background::spawn(args, Stdio::from(lock), background::is_of_hrun)?;
    Ok(())
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
    let container = containers.take(&id, lock)?;
    let config = containers.config(container.record())?;
    let store = open_store(&dirs)?;
    let image = image_of(&store, container.record())?;
    let in_use = store.use_image(&image)?;
    let disk = config.options.rootfs.disk(&store, &image, &in_use)?;
    let parts = Parts::find()?;
    let log = container
        .log(config.log)
        .context("Failed to open the container's log")?;
    let launch = Launch {
        dirs: &dirs,
        config: &config,
        image: &image,
        disk,
        parts: &parts,
        way: args.start,
        console: None,
        profile: None,
        input: false,
        output: Output::Log(Arc::new(log)),
        proxy_signals: true,
        timeline: &timeline,
    };
    launch.run(container, &mut signals, &mut || background.started())
}
