//! `process`: what runs, as whom, where, and on what.

use agent_protocol::{ProcessId, Stdio, WindowSize};
use oci_spec::runtime::{Process, Spec};

use super::{
    refused::{Refused, value},
    rights, text, treatment,
};
use crate::translate::CONTAINER;

/// A terminal's size before its user has said it.
const SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// What engines write that know nothing of the size.
const ZERO: WindowSize = WindowSize {
    rows: 0,
    columns: 0,
};

/// A process of the container that `spec` describes.
pub(super) fn process(
    process: &Process,
    spec: &Spec,
    id: ProcessId,
    warnings: &mut Vec<String>,
) -> Result<agent_protocol::Process, Refused> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Refused::Missing {
            property: "process.args",
        });
    }
    let user = process.user();
    let groups = user.additional_gids().iter().flatten();
    let no_labels = [
        ("apparmorProfile", process.apparmor_profile()),
        ("selinuxLabel", process.selinux_label()),
    ];
    for (name, label) in no_labels {
        if label
            .as_deref()
            .is_some_and(|label| !matches!(label, "" | "unconfined"))
        {
            warnings.push(format!(
                "process.{name}: the guest's kernel has no such module"
            ));
        }
    }
    let capabilities = rights::capabilities(process, warnings);
    Ok(agent_protocol::Process {
        id,
        container: CONTAINER,
        args,
        env: process.env().clone().unwrap_or_default(),
        cwd: cwd(process)?,
        create_cwd: false,
        user: format!("{}:{}", user.uid(), user.gid()),
        additional_groups: groups.map(ToString::to_string).collect(),
        rlimits: rights::rlimits(process)?,
        capabilities,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: rights::filters(spec, capabilities.bounding)?,
        seccomp_flags: rights::filter_flags(spec)?,
        umask: user.umask(),
        oom_score_adj: oom_score(process)?,
        treatment: treatment::treatment(process, spec)?,
        hooks: Vec::new(),
        stdio: stdio(process),
    })
}

/// A further process: what it leaves open is as for the first one.
pub(super) fn further(
    process: &Process,
    spec: &Spec,
    id: ProcessId,
    warnings: &mut Vec<String>,
) -> Result<agent_protocol::Process, Refused> {
    let mut asked = process.clone();
    if let Some(first) = spec.process() {
        if asked.capabilities().is_none() {
            asked.set_capabilities(first.capabilities().clone());
        }
        if asked.rlimits().is_none() {
            asked.set_rlimits(first.rlimits().clone());
        }
        if asked.no_new_privileges().is_none() {
            asked.set_no_new_privileges(first.no_new_privileges());
        }
        if asked.oom_score_adj().is_none() {
            asked.set_oom_score_adj(first.oom_score_adj());
        }
        if asked.scheduler().is_none() {
            asked.set_scheduler(first.scheduler().clone());
        }
        if asked.io_priority().is_none() {
            asked.set_io_priority(*first.io_priority());
        }
        if asked.exec_cpu_affinity().is_none() {
            asked.set_exec_cpu_affinity(first.exec_cpu_affinity().clone());
        }
    }
    let mut further = self::process(&asked, spec, id, warnings)?;
    further.treatment.cpus = treatment::affinity(&asked)?;
    Ok(further)
}

fn cwd(process: &Process) -> Result<String, Refused> {
    let property = "process.cwd";
    let cwd = process.cwd();
    let text = text(property, cwd)?;
    if !cwd.is_absolute() {
        return Err(value(property, text, "it must be an absolute path"));
    }
    Ok(text.into())
}

fn oom_score(process: &Process) -> Result<Option<i32>, Refused> {
    let score = process.oom_score_adj();
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => Err(value(
            "process.oomScoreAdj",
            score.to_string(),
            "it must be -1000 to 1000",
        )),
        score => Ok(score),
    }
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
