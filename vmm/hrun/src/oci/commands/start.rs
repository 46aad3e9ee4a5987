//! `start`: the program of a container that was created.

use anyhow::bail;

use super::Runtime;
use crate::{
    failpoint::reach,
    oci::{
        hooks,
        orders::{self, Order},
        record::Status,
    },
};

pub(super) fn execute(runtime: &Runtime<'_>, id: &str) -> anyhow::Result<()> {
    let seen = runtime.containers.find(id)?;
    match seen.status() {
        Status::Created => {}
        Status::Creating => bail!("cannot start container {id}: it is still being created"),
        Status::Running => bail!("cannot start an already running container: {id}"),
        Status::Stopped(_) => bail!("cannot start a container that has stopped: {id}"),
    }
    reach("start.found", None);
    orders::give(&seen.record.orders_socket(), Order::Start, None)?;
    reach("start.ordered", None);
    let spec = seen.config()?;
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.poststart().as_ref());
    let state = seen.record.state("running");
    if let Err(error) = hooks::run("poststart", hooks, &state) {
        // It ran, and must not go on; what is to be said is why.
        if let Some(shim) = seen.record.shim {
            let _ = shim.kill();
        }
        return Err(error.into());
    }
    Ok(())
}
