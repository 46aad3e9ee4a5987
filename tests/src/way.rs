//! How the containers of a run of all tests come to their VMs: `HRUN_E2E_START`.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use rustix::process::Signal;

use crate::{
    Built, Invocation,
    command::{Running, eventually},
};

/// VMs that wait for the cases that run side by side, and one more.
const WAITING: &str = "3";

/// Where containers that say nothing about it get their VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As hrun decides, without a pool: from a template.
    Template,
    /// From a pool that all cases share, as far as it has what they want.
    Pool,
    /// By a boot.
    Boot,
}

impl Way {
    pub(crate) fn from_env() -> Result<Self> {
        let way = std::env::var("HRUN_E2E_START").unwrap_or_default();
        Ok(match &*way {
            "" | "template" => Self::Template,
            "pool" => Self::Pool,
            "boot" => Self::Boot,
            _ => bail!("HRUN_E2E_START={way}: template, pool or boot are known"),
        })
    }

    /// `HRUN_START` for it.
    pub(crate) fn start(self) -> &'static str {
        match self {
            Self::Template | Self::Pool => "auto",
            Self::Boot => "boot",
        }
    }
}

/// A pool's daemon.
#[derive(Debug)]
pub(crate) struct Pool {
    socket: PathBuf,
    daemon: Mutex<Option<Running>>,
}

impl Pool {
    pub(crate) fn serve(built: &Built, store: &Path, socket: PathBuf) -> Result<Self> {
        let daemon = Invocation::new(built.hrun())
            .env("HRUN_STORE", store)
            .env("HRUN_STATE", store.join("state"))
            .env("HRUN_POOL", &socket)
            .args(["pool", "serve", "--size", WAITING])
            // As long as all tests take.
            .timeout(Duration::from_secs(7200))
            .spawn()?;
        eventually("the pool to answer", Duration::from_secs(30), || {
            UnixStream::connect(&socket).is_ok().then_some(())
        })?;
        Ok(Self {
            socket,
            daemon: Mutex::new(Some(daemon)),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn end(&self) -> Result<()> {
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(daemon) = daemon.take() else {
            return Ok(());
        };
        daemon.signal(Signal::TERM)?;
        daemon.wait()?.exits(0)?;
        Ok(())
    }
}
