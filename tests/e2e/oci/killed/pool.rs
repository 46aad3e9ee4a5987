//! The pool's daemon, killed at every point at which it has to do with a container: that one goes
//! on without it.

use anyhow::{Context, Result};
use rustix::process::Signal;
use tests::{Case, Test};

use super::{removed, tell};
use crate::{
    oci::{Bundle, PATIENT},
    pool::{end, serve_by, wait_ready},
};

pub(super) fn tests() -> Vec<Test> {
    crate::tests![a_pool_that_is_killed_takes_no_container_along].into()
}

/// Points of the daemon, and whether it is killed before a VM waits.
const POINTS: [(&str, bool); 9] = [
    ("pool.loading", true),
    ("pool.loaded", true),
    ("pool.asked", false),
    ("pool.taken", false),
    ("pool.handing", false),
    ("pool.handed", false),
    ("pool.refilling", false),
    ("pool.refilled", false),
    ("pool.ended", false),
];

fn a_pool_that_is_killed_takes_no_container_along(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, PATIENT, |_| {})?;
    let serve = || case.hrun(["pool", "serve", "--size", "1"]);
    let hrun = |words: &[&str]| bundle.hrun(words).env("HRUN_START", "auto");
    let mut times = Vec::new();
    for (point, is_early) in POINTS {
        let live = || -> Result<_> {
            let daemon = serve().env("HRUN_FAILPOINT", point);
            // It may be killed before it could be asked whether it is there.
            let daemon = match is_early {
                true => daemon.spawn()?,
                false => serve_by(case, daemon)?,
            };
            if !is_early {
                wait_ready(case, 1)?;
            }
            let create = bundle.creating(&[]).env("HRUN_START", "auto");
            create.run()?.exits(0)?;
            hrun(&["start", "box"]).run()?.exits(0)?;
            hrun(&["exec", "box", "true"]).run()?.exits(0)?;
            if point == "pool.ended" {
                bundle.hrun(&["kill", "box", "KILL"]).run()?.exits(0)?;
                bundle.ends()?;
            }
            daemon.wait()?.dies_of(Signal::KILL)?;
            removed(&bundle)
        };
        times.push(live().with_context(|| format!("killed at {point}"))?);
    }
    tell(&times);
    // The next one clears up.
    let daemon = serve_by(case, serve())?;
    wait_ready(case, 1)?;
    end(daemon)
}
