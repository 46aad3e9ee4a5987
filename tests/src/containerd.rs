//! A containerd of one's own, with its state below a directory, and its client.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    client::{self, Done},
    daemon::Daemon,
};

/// A running containerd. Dropping it ends it, but not what it has started.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    env: Vec<(&'static str, OsString)>,
    daemon: Daemon,
}

impl Containerd {
    /// Starts one. What it starts in turn has the environment `env`; the path of `dir` is short, as
    /// names of sockets have 108 bytes.
    ///
    /// # Errors
    ///
    /// It could not be started, or does not answer.
    pub fn start(dir: &Path, env: Vec<(&'static str, OsString)>) -> Result<Self> {
        let text = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = {:?}\n",
            text("croot"),
            text("cstate"),
            text("c.sock")
        );
        let file = dir.join("containerd.toml");
        fs::write(&file, config).with_context(|| format!("Failed to write {}", file.display()))?;
        let words = ["--config", &text("containerd.toml")];
        let mut daemon = Daemon::start("containerd".as_ref(), &words, &env, dir)?;
        let words = ["--address", &text("c.sock"), "version"];
        daemon.wait_until(|| Ok(client::run("ctr", words, &env, "")?.code == 0))?;
        Ok(Self {
            dir: dir.into(),
            env,
            daemon,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> String {
        self.dir.join("c.sock").display().to_string()
    }

    /// Runs its client.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn ctr(&self, args: &[&str]) -> Result<Done> {
        let socket = self.socket();
        let words = ["--address", &socket].into_iter();
        client::run("ctr", words.chain(args.iter().copied()), &self.env, "")
    }

    /// Gives it an image by this name, which has a tag, from an OCI layout.
    ///
    /// # Errors
    ///
    /// It does not take it.
    pub fn import(&self, layout: &Path, name: &str) -> Result<()> {
        let (base, _) = name.rsplit_once(':').context("the name has no tag")?;
        let archive = self.dir.join("oci.tar").display().to_string();
        let layout = layout.display().to_string();
        let words = ["--create", "--file", &archive, "--directory", &layout, "."];
        client::run("tar", words, &[], "")?.exits(0)?;
        let words = ["images", "import", "--base-name", base, &archive];
        self.ctr(&words)?.exits(0)?;
        let images = self.ctr(&["images", "ls", "--quiet"])?.exits(0)?;
        ensure!(images.stdout.contains(name), "{}", images.describe());
        Ok(())
    }

    /// Ends a container and removes it. That there is none is no matter.
    ///
    /// # Errors
    ///
    /// The client could not be started.
    pub fn remove(&self, container: &str) -> Result<()> {
        self.ctr(&["tasks", "kill", "--signal", "KILL", container])?;
        // A task that has not ended yet is not removed.
        thread::sleep(Duration::from_millis(300));
        self.ctr(&["tasks", "rm", "--force", container])?;
        self.ctr(&["containers", "rm", container])?;
        Ok(())
    }

    /// The same for all containers.
    ///
    /// # Errors
    ///
    /// The client could not be started.
    pub fn remove_all(&self) -> Result<()> {
        let left = self.ctr(&["containers", "ls", "--quiet"])?;
        left.stdout.lines().try_for_each(|name| self.remove(name))
    }
}
