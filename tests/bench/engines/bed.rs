//! Where the containers run: a containerd and a pool of hrun's for them alone.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tests::{
    Built,
    client::{self, Done},
    containerd::Containerd,
    daemon::Daemon,
};

use crate::{peer::Peer, timed};

const IMAGE: &str = "localhost/busybox:latest";

/// VMs that wait in the pool.
const WAITING: usize = 4;

/// How long the pool may take to fill up, its first boot included.
const FILLING: Duration = Duration::from_secs(300);

/// Dropping it ends what it has started.
pub(crate) struct Bed {
    hrun: PathBuf,
    env: Vec<(&'static str, OsString)>,
    containerd: Option<Containerd>,
    pool: Option<Daemon>,
    dir: tempfile::TempDir,
}

/// As much of `hrun pool status --format json` as matters here.
#[derive(Debug, Deserialize)]
struct Status {
    classes: Vec<Class>,
}

#[derive(Debug, Deserialize)]
struct Class {
    ready: usize,
    loading: usize,
}

impl Bed {
    pub(crate) fn start(built: &Built) -> Result<Self> {
        let image = built.image("busybox/busybox");
        for file in [&built.hrun(), &built.vmm(), &image] {
            ensure!(
                file.exists(),
                "{} is missing: run make build images",
                file.display()
            );
        }
        // Short: names of sockets have 108 bytes.
        let dir = tempfile::Builder::new().prefix("hb").tempdir()?;
        let path = |name: &str| OsString::from(dir.path().join(name));
        let env = vec![
            ("HRUN_STORE", path("store")),
            ("HRUN_STATE", path("state")),
            ("HRUN_BOOT_TIMEOUT", "250".into()),
        ];
        let mut bed = Self {
            hrun: built.hrun(),
            env,
            containerd: None,
            pool: None,
            dir,
        };
        let containerd = Containerd::start(bed.dir.path(), bed.env.clone())?;
        containerd.import(&image, IMAGE)?;
        bed.containerd = Some(containerd);
        let size = WAITING.to_string();
        let words = ["pool", "serve", "--size", &size];
        bed.pool = Some(Daemon::start(&bed.hrun, &words, &bed.env, bed.dir.path())?);
        bed.fill_pool()?;
        Ok(bed)
    }

    pub(crate) fn hrun(&self) -> PathBuf {
        self.hrun.clone()
    }

    fn containerd(&self) -> Result<&Containerd> {
        self.containerd.as_ref().context("there is no containerd")
    }

    /// Runs `true` in a new container that is removed, and says how long that took.
    pub(crate) fn run_true(&self, peer: &Peer, round: &str) -> Result<Duration> {
        if peer.is_hrun {
            self.fill_pool()?;
        }
        let name = format!("{}-{round}", peer.name);
        let run = || self.run(peer, &["--rm"], &[&name, "true"]);
        let (done, took) = timed(run)?;
        if done.code != 0 {
            self.containerd()?.remove(&name)?;
            let last = done.stderr.lines().last().unwrap_or_default();
            bail!("{} (status {})", last.trim(), done.code);
        }
        Ok(took)
    }

    /// Starts a container that does nothing.
    pub(crate) fn start_idle(&self, peer: &Peer, name: &str) -> Result<()> {
        if peer.is_hrun {
            self.fill_pool()?;
        }
        self.run(peer, &["--detach"], &[name, "sleep", "100000"])?
            .exits(0)?;
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.containerd()?.remove(name)
    }

    fn run(&self, peer: &Peer, options: &[&str], words: &[&str]) -> Result<Done> {
        let program = peer.program.display().to_string();
        let run = ["run", "--runc-binary", &program];
        let image = [IMAGE];
        self.containerd()?
            .ctr(&[&run[..], options, &image[..], words].concat())
    }

    /// Waits until the pool is as full as it is to be.
    pub(crate) fn fill_pool(&self) -> Result<()> {
        let deadline = Instant::now() + FILLING;
        let hrun = self.hrun.display().to_string();
        loop {
            let words = ["pool", "status", "--format", "json"];
            let done = client::run(&hrun, words, &self.env, "")?;
            let status: Option<Status> = serde_json::from_str(&done.stdout).ok();
            let is_full = |class: &Class| class.ready >= WAITING && class.loading == 0;
            if status.is_some_and(|status| status.classes.iter().any(is_full)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "the pool does not fill up: {}: {}",
                    done.describe(),
                    self.log()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("hrun.log")).unwrap_or_default()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.pool = None;
        self.containerd = None;
        unmount_below(self.dir.path());
    }
}

/// What containerd has mounted in our mount namespace goes before its directory does.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for at in points.rev().filter(|at| Path::new(at).starts_with(dir)) {
        let _ = client::run("umount", ["--lazy", at], &[], "");
    }
}
