//! `process`: what runs, as whom, where, and on what.

use agent_protocol::{Capabilities, ProcessId, Stdio, Treatment, WindowSize};
use oci_spec::runtime::{Process, Spec};

use super::refused::{Refused, value};
use crate::translate::CONTAINER;

/// A terminal's size before its user has said it.
const SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// A process of the container that `_spec` describes.
pub(super) fn process(
    process: &Process,
    _spec: &Spec,
    id: ProcessId,
) -> Result<agent_protocol::Process, Refused> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Refused::Missing {
            property: "process.args",
        });
    }
    let user = process.user();
    let groups = user.additional_gids().iter().flatten();
    Ok(agent_protocol::Process {
        id,
        container: CONTAINER,
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: cwd(process)?,
        create_cwd: true,
        user: format!("{}:{}", user.uid(), user.gid()),
        additional_groups: groups.map(ToString::to_string).collect(),
        rlimits: Vec::new(),
        capabilities: Capabilities::DEFAULT,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: Vec::new(),
        seccomp_flags: 0,
        umask: user.umask(),
        oom_score_adj: process.oom_score_adj(),
        treatment: Treatment::default(),
        hooks: Vec::new(),
        stdio: stdio(process),
    })
}

fn cwd(process: &Process) -> Result<String, Refused> {
    let property = "process.cwd";
    let cwd = process.cwd();
    let text = cwd
        .to_str()
        .ok_or_else(|| value(property, cwd.to_string_lossy(), "it is no valid UTF-8"))?;
    if !cwd.is_absolute() {
        return Err(value(property, text, "it must be an absolute path"));
    }
    Ok(text.into())
}

fn stdio(process: &Process) -> Stdio {
    if !process.terminal().unwrap_or(false) {
        return Stdio::Pipes { stdin: true };
    }
    let size = process.console_size().map(|size| WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
    });
    Stdio::Terminal(size.filter(|size| *size != ZERO).unwrap_or(SIZE))
}

/// What engines write that know nothing of the size.
const ZERO: WindowSize = WindowSize {
    rows: 0,
    columns: 0,
};
