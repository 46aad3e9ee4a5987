//! `run`: create and start in one, and delete when the program has ended.

use anyhow::Context;

use super::{Runtime, create, delete, start};
use crate::oci::cli::{DeleteArgs, RunArgs};

pub(super) fn execute(runtime: &Runtime<'_>, args: &RunArgs) -> anyhow::Result<u8> {
    let foreground = !args.detach && args.create.console_socket.is_none();
    let left = create::create(runtime, &args.create, foreground)?;
    let id = &args.create.id;
    let delete = || {
        let args = DeleteArgs {
            force: true,
            id: id.clone(),
        };
        delete::execute(runtime, &args)
    };
    if let Err(error) = start::execute(runtime, id) {
        drop(left);
        // The error that is returned is the one that matters.
        let _ = delete();
        return Err(error);
    }
    if args.detach {
        left.leave();
        return Ok(0);
    }
    let status = left.wait().context("Failed to wait for the container")?;
    if !args.keep {
        delete()?;
    }
    Ok(status)
}
