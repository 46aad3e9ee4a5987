//! `create`: a container in a VM of its own, whose program waits for `start`.

use std::ffi::OsString;

use agent_protocol::Stdio;
use anyhow::{Context, bail};

use super::{Runtime, delete};
use crate::{
    failpoint::reach,
    oci::{
        bundle::{self, Bundle},
        cgroup::{self, Groups},
        cli::CreateArgs,
        containers::Owned,
        hooks,
        orders::write_pid,
        plan::Plan,
        pod::{Peers, Wanted},
        report::{self, Left, Report, option},
    },
};

/// Room for what is not the container's own memory: the guest's kernel, agent and page tables, the
/// VMM and the shim, in bytes.
pub(super) const OVERHEAD: u64 = 96 << 20;

pub(super) fn execute(runtime: &Runtime<'_>, args: &CreateArgs) -> anyhow::Result<()> {
    create(runtime, args, false)?.leave();
    Ok(())
}

/// Makes the container. Until its shim is left alone, dropping that undoes the container's life, but
/// not its record.
pub(super) fn create(
    runtime: &Runtime<'_>,
    args: &CreateArgs,
    foreground: bool,
) -> anyhow::Result<Left> {
    if args.preserve_fds > 0 {
        bail!(
            "--preserve-fds {}: no descriptor of the host gets into a VM",
            args.preserve_fds
        );
    }
    let bundle = Bundle::read(&args.bundle)?;
    let wanted = Wanted::of(&bundle.spec, &runtime.containers)?;
    let role = wanted.sketch();
    let peers = Peers::of(&role, &runtime.containers)?;
    let plan = bundle::plan(&bundle.spec, &bundle.path, &args.id, &role, &peers)?;
    bundle.check_program()?;
    if matches!(plan.process.stdio, Stdio::Terminal(_)) != args.console_socket.is_some()
        && !foreground
    {
        match args.console_socket {
            Some(_) => bail!("--console-socket is given, but process.terminal is not set"),
            None => bail!("process.terminal is set: give --console-socket for the terminal"),
        }
    }
    for warning in bundle.warnings.iter().chain(&plan.warnings) {
        runtime.global.log().warning(warning);
    }
    let mut owned = runtime.containers.create(&args.id, &bundle.path)?;
    let made = make(
        runtime, args, foreground, &bundle, &plan, &wanted, &mut owned,
    );
    match made {
        Ok(left) => Ok(left),
        Err(error) => {
            // What cannot be undone now is by `delete --force`, which engines call then.
            let _ = delete::clear(owned, Some(&bundle.spec));
            Err(error)
        }
    }
}

fn make(
    runtime: &Runtime<'_>,
    args: &CreateArgs,
    foreground: bool,
    bundle: &Bundle,
    plan: &Plan,
    wanted: &Wanted,
    owned: &mut Owned,
) -> anyhow::Result<Left> {
    reach("create.made", None);
    owned.write_config(&bundle.json)?;
    owned.record.role = wanted.take(&owned.dir, plan.volumes.len())?;
    owned.record.rootfs.clone_from(&plan.root);
    let annotations = bundle.spec.annotations().iter().flatten();
    owned.record.annotations = annotations
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !runtime.global.without_cgroups() {
        let wanted = bundle::cgroups_path(&bundle.spec);
        let path = cgroup::path(wanted, &args.id, runtime.global.systemd());
        owned.record.groups = Groups::at(&path)?;
    }
    owned.write()?;
    reach("create.recorded", None);
    owned.record.groups.make()?;
    reach("create.groups", None);
    owned.write()?;
    if let Some(resources) = bundle::resources(&bundle.spec) {
        owned.record.groups.limit(resources, OVERHEAD)?;
    }
    reach("create.limited", None);
    let mut left = report::spawn(
        words(runtime, args, foreground),
        owned.lock.try_clone()?.into(),
    )?;
    reach("create.spawned", None);
    run_hooks(bundle, owned, &mut left)?;
    reach("create.hooked", None);
    match left.next()? {
        Report::Done => {}
        other => bail!("The container's shim said {other:?} in the place of Done"),
    }
    reach("create.done", None);
    if let Some(path) = &args.pid_file {
        write_pid(path, left.pid())
            .with_context(|| format!("Failed to write the pid file {}", path.display()))?;
    }
    Ok(left)
}

/// While the VM comes up, the engine's hooks find the shim where the container is to be.
fn run_hooks(bundle: &Bundle, owned: &Owned, left: &mut Left) -> anyhow::Result<()> {
    match left.next()? {
        Report::Entered => {}
        other => bail!("The container's shim said {other:?} in the place of Entered"),
    }
    let Some(all) = bundle.spec.hooks() else {
        return Ok(());
    };
    let mut record = owned.record.clone();
    record.shim = left.identity();
    let state = record.state("creating");
    // Out of date, and docker still uses these.
    hooks::run("prestart", all.prestart().as_ref(), &state)?;
    hooks::run("createRuntime", all.create_runtime().as_ref(), &state)?;
    Ok(())
}

fn words(runtime: &Runtime<'_>, args: &CreateArgs, foreground: bool) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["oci-shim".into(), args.id.clone().into()];
    let root = runtime.global.root.as_deref();
    words.extend(root.map(|root| option("--root", absolute(root).as_os_str())));
    let socket = args.console_socket.as_deref();
    words.extend(socket.map(|socket| option("--console-socket", absolute(socket).as_os_str())));
    words.extend(foreground.then(|| "--foreground".into()));
    words
}

/// The shim works in another directory.
pub(super) fn absolute(path: &std::path::Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}
