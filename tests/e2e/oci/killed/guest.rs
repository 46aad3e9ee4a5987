//! A guest that ends by itself, and with it the agent: its kernel panics, powers off or resets at
//! moments that a container's own processes choose.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{Case, Test};

use super::{removed, tell};
use crate::oci::{Bundle, PATIENT};

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        a_guest_that_ends_in_a_hook_leaves_nothing,
        a_guest_that_ends_as_its_program_begins_leaves_nothing,
        a_guest_that_ends_at_exec_leaves_nothing,
        a_guest_that_ends_at_a_signal_leaves_nothing,
        a_guest_that_ends_as_its_program_does_leaves_nothing,
    ]
    .into()
}

/// How, as the kernel's sysrq.rst has it: a panic, which is what the agent's death comes to as
/// well, an end of the power, and a reset.
const ENDS: [char; 3] = ['c', 'o', 'b'];

fn end(key: char) -> String {
    format!("echo {key} >/proc/sysrq-trigger")
}

/// Goes through all ends; the container is made by `edit` and brought there by `step`.
fn everywhere(
    case: &Case,
    script: impl Fn(&str) -> String,
    edit: impl Fn(&str, &mut Value),
    step: impl Fn(&Bundle<'_>, &str) -> Result<()>,
) -> Result<()> {
    let mut times = Vec::new();
    for key in ENDS {
        let end = end(key);
        let bundle = Bundle::new(case, &script(&end), |config| edit(&end, config))?;
        let tried = step(&bundle, &end)
            .and_then(|()| bundle.ends())
            .and_then(|()| removed(&bundle));
        times.push(tried.with_context(|| format!("ended by {end}"))?);
        std::fs::remove_dir_all(&bundle.path)?;
    }
    tell(&times);
    Ok(())
}

fn a_guest_that_ends_in_a_hook_leaves_nothing(case: &Case) -> Result<()> {
    let hook = |end: &str, config: &mut Value| {
        let script = format!("{end}; sleep 1000");
        config["hooks"]["startContainer"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    };
    everywhere(
        case,
        |_| PATIENT.into(),
        hook,
        |bundle, _| {
            bundle.create(&[])?.exits(0)?;
            bundle.hrun(&["start", "box"]).run()?.exits(1)?;
            Ok(())
        },
    )
}

fn a_guest_that_ends_as_its_program_begins_leaves_nothing(case: &Case) -> Result<()> {
    let script = |end: &str| format!("{end}; sleep 1000");
    everywhere(
        case,
        script,
        |_, _| {},
        |bundle, _| {
            bundle.create(&[])?.exits(0)?;
            // It may be over before anybody could say that it has begun.
            bundle.hrun(&["start", "box"]).run()?;
            Ok(())
        },
    )
}

fn a_guest_that_ends_at_exec_leaves_nothing(case: &Case) -> Result<()> {
    everywhere(
        case,
        |_| PATIENT.into(),
        |_, _| {},
        |bundle, end| {
            bundle.ready()?;
            let script = format!("{end}; sleep 1000");
            let exec = bundle.hrun(&["exec", "box", "sh", "-c", &script]).run()?;
            anyhow::ensure!(!exec.status.success(), "{}", exec.describe());
            Ok(())
        },
    )
}

fn a_guest_that_ends_at_a_signal_leaves_nothing(case: &Case) -> Result<()> {
    let script = |end: &str| format!("trap '{end}' TERM; echo ready; while :; do sleep 1; done");
    everywhere(
        case,
        script,
        |_, _| {},
        |bundle, _| {
            bundle.ready()?;
            // The guest may be gone before it could say that the signal was sent.
            bundle.hrun(&["kill", "box", "TERM"]).run()?;
            Ok(())
        },
    )
}

fn a_guest_that_ends_as_its_program_does_leaves_nothing(case: &Case) -> Result<()> {
    let script = |end: &str| format!("echo ready; {end} & exit 3");
    everywhere(case, script, |_, _| {}, |bundle, _| bundle.ready())
}
