//! End-to-end tests: real images in real VMs, through the built binaries, as a user runs them.
//!
//! `make e2e ARGS=name` runs those whose names contain `name`. With `HRUN_E2E_FULL=1` the long
//! forms run: 100 starts instead of 20, 64 MiB through a pipe instead of 8.
#![forbid(unsafe_code)]

mod attach;
mod bench;
mod bundles;
mod cleanup;
mod clone;
mod commit;
mod cp;
mod debian;
mod doctor;
mod environment;
mod errors;
mod events;
mod exec;
mod grow;
mod hostile;
mod image;
mod life;
mod mirrors;
mod oci;
mod platform;
mod pool;
mod pull;
mod push;
mod resources;
mod restart;
mod rootfs;
mod run;
mod signals;
mod stdio;
mod store;
mod template;
mod template_image;
mod terminal;
mod volumes;

use std::process::ExitCode;

use tests::Suite;

/// Names tests by module and function.
macro_rules! tests {
    ($($function:ident),* $(,)?) => {
        [$(tests::Test::new(concat!(module_path!(), "::", stringify!($function)), $function)),*]
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    let topics = [
        run::tests(),
        environment::tests(),
        stdio::tests(),
        signals::tests(),
        exec::tests(),
        cp::tests(),
        life::tests(),
        attach::tests(),
        restart::tests(),
        events::tests(),
        oci::tests(),
        bundles::tests(),
        terminal::tests(),
        volumes::tests(),
        hostile::tests(),
        resources::tests(),
        rootfs::tests(),
        image::tests(),
        commit::tests(),
        pull::tests(),
        mirrors::tests(),
        platform::tests(),
        push::tests(),
        store::tests(),
        debian::tests(),
        template::tests(),
        clone::tests(),
        template_image::tests(),
        grow::tests(),
        pool::tests(),
        cleanup::tests(),
        errors::tests(),
        doctor::tests(),
        bench::tests(),
    ];
    Suite::run(topics.into_iter().flatten().collect())
}

/// A script that says "ready" and then waits to be told to end, by TERM. As the first process of
/// its container it must ask for the signal: without a handler the kernel does not give it any.
const PATIENT: &str = "trap 'exit 4' TERM; echo ready; sleep 1000 & wait";

/// Tells a container that runs [`PATIENT`] to end.
fn end(running: tests::Running) -> anyhow::Result<tests::Outcome> {
    running.signal(rustix::process::Signal::TERM)?;
    running.wait()?.exits(4)
}

/// Whether the long forms of tests are wanted.
fn full() -> bool {
    std::env::var_os("HRUN_E2E_FULL").is_some_and(|value| value == "1")
}
