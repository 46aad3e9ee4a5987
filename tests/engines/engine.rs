//! The engines, each started for itself with its state in a directory of its own.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tests::{Built, containerd::Containerd, daemon::Daemon};

use crate::{
    Column,
    command::{self, Done},
    ctr, cycles, docker_like, groups,
};

/// The image that all of them run.
pub(crate) const IMAGE: &str = "localhost/busybox:latest";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Podman,
    Docker,
    Ctr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Runtime {
    Hrun,
    /// runc: crun 1.8 refuses hybrid control groups.
    Usual,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Podman => "podman",
            Kind::Docker => "docker",
            Kind::Ctr => "ctr",
        };
        let runtime = match self.runtime {
            Runtime::Hrun => "hrun",
            Runtime::Usual => "runc",
        };
        write!(f, "{kind} {runtime}")
    }
}

/// Something that an engine can do.
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    pub(crate) check: fn(&Engine) -> Result<()>,
}

/// A running engine. Dropping it ends its daemons.
pub(crate) struct Engine {
    pub(crate) kind: Kind,
    pub(crate) runtime: Runtime,
    hrun: PathBuf,
    dir: tempfile::TempDir,
    containerd: Option<Containerd>,
    dockerd: Option<Daemon>,
    /// Control groups of engines that were there before.
    groups: BTreeSet<PathBuf>,
}

impl Engine {
    pub(crate) fn start(kind: Kind, runtime: Runtime, built: &Built) -> Result<Self> {
        // Short: names of sockets have 108 bytes.
        let dir = tempfile::Builder::new().prefix("he").tempdir()?;
        let mut engine = Self {
            kind,
            runtime,
            hrun: built.hrun(),
            dir,
            containerd: None,
            dockerd: None,
            groups: groups::now(kind),
        };
        fs::create_dir(engine.path("docker"))?;
        fs::write(engine.path("docker/config.json"), "{}")?;
        if engine.is_hrun() {
            engine.write_runtime()?;
        }
        match kind {
            Kind::Podman => engine.configure_podman()?,
            Kind::Docker => {
                engine.start_containerd()?;
                engine.start_dockerd()?;
            }
            Kind::Ctr => engine.start_containerd()?,
        }
        engine.load(&built.image("busybox/busybox"))?;
        Ok(engine)
    }

    pub(crate) fn features(&self) -> Vec<Feature> {
        let mut features = match self.kind {
            Kind::Podman | Kind::Docker => docker_like::features(self.kind),
            Kind::Ctr => ctr::features(),
        };
        features.extend(cycles::feature(self.kind));
        features
    }

    /// Where it has its state.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The processes of its daemons.
    pub(crate) fn daemons(&self) -> Vec<u32> {
        let containerd = self.containerd.as_ref().map(Containerd::pid);
        let dockerd = self.dockerd.as_ref().map(Daemon::pid);
        containerd.into_iter().chain(dockerd).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn program(&self) -> String {
        match self.runtime {
            Runtime::Hrun => self.text("hrun"),
            Runtime::Usual => "/usr/sbin/runc".into(),
        }
    }

    pub(crate) fn is_hrun(&self) -> bool {
        self.runtime == Runtime::Hrun
    }

    /// What goes before the engine's own arguments.
    fn words(&self) -> Vec<String> {
        match self.kind {
            Kind::Podman => [
                "--root",
                &self.text("root"),
                "--runroot",
                &self.text("run"),
                "--tmpdir",
                &self.text("tmp"),
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
            ]
            .map(String::from)
            .to_vec(),
            Kind::Docker => vec!["--host".into(), format!("unix://{}", self.text("d.sock"))],
            Kind::Ctr => vec!["--address".into(), self.text("c.sock")],
        }
    }

    fn env(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("CONTAINERS_CONF", self.path("containers.conf").into()),
            ("CONTAINERS_STORAGE_CONF", self.path("storage.conf").into()),
            ("DOCKER_CONFIG", self.path("docker").into()),
            ("DOCKER_BUILDKIT", "0".into()),
        ]
    }

    fn client(&self) -> &'static str {
        match self.kind {
            Kind::Podman => "podman",
            Kind::Docker => "docker",
            Kind::Ctr => "ctr",
        }
    }

    /// Runs the engine's client.
    pub(crate) fn run(&self, args: &[&str]) -> Result<Done> {
        self.run_with(args, "")
    }

    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Result<Done> {
        let words = self.words();
        let words = words.iter().map(String::as_str).chain(args.iter().copied());
        command::run(self.client(), words, &self.env(), input)
    }

    /// Runs it at a terminal, which takes both outputs.
    pub(crate) fn run_at_terminal(&self, args: &[&str]) -> Result<Done> {
        let words = self.words();
        let all = [self.client()].into_iter();
        let all = all
            .chain(words.iter().map(String::as_str))
            .chain(args.iter().copied());
        let quoted: Vec<_> = all
            .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
            .collect();
        let line = quoted.join(" ");
        command::run("script", ["-qec", &line, "/dev/null"], &self.env(), "")
    }

    /// For `ctr run`: which runtime.
    pub(crate) fn ctr_run<'a>(&self, options: &[&'a str], words: &[&'a str]) -> Result<Done> {
        let program = self.program();
        let mut args = vec!["run", "--runc-binary", &program];
        args.extend(options);
        args.push(IMAGE);
        args.extend(words);
        self.run(&args)
    }

    /// Removes containers that a feature left.
    pub(crate) fn clear(&self) {
        // Whatever is left now is seen by the next feature.
        let _ = match self.kind {
            Kind::Podman => self
                .run(&["rm", "--all", "--force", "--time", "0"])
                .map(drop),
            Kind::Docker => self.run(&["ps", "-aq"]).and_then(|ids| {
                let mut args = vec!["rm", "--force"];
                args.extend(ids.stdout.split_whitespace());
                if args.len() > 2 {
                    self.run(&args)?;
                }
                Ok(())
            }),
            Kind::Ctr => self.containerd().and_then(Containerd::remove_all),
        };
    }

    /// hrun with directories of its own: podman does not pass the environment on.
    fn write_runtime(&self) -> Result<()> {
        let script = format!(
            "#!/bin/sh\nexport HRUN_STORE='{}' HRUN_STATE='{}' HRUN_BOOT_TIMEOUT=250\nexec '{}' \"$@\"\n",
            self.text("store"),
            self.text("state"),
            self.hrun.display()
        );
        fs::write(self.path("hrun"), script)?;
        fs::set_permissions(self.path("hrun"), fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn configure_podman(&self) -> Result<()> {
        let conf = format!(
            "[containers]\n\
             # This machine does not let limits be raised.\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\nruntime = \"it\"\n[engine.runtimes]\nit = [{:?}]\n",
            self.program()
        );
        fs::write(self.path("containers.conf"), conf)?;
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = {:?}\ngraphroot = {:?}\n",
            self.text("run"),
            self.text("root")
        );
        fs::write(self.path("storage.conf"), storage)?;
        Ok(())
    }

    fn start_containerd(&mut self) -> Result<()> {
        self.containerd = Some(Containerd::start(self.dir.path(), self.env())?);
        Ok(())
    }

    fn containerd(&self) -> Result<&Containerd> {
        self.containerd.as_ref().context("there is no containerd")
    }

    fn start_dockerd(&mut self) -> Result<()> {
        let program = self.program();
        let host = format!("unix://{}", self.text("d.sock"));
        let runtime = format!("it={program}");
        let (root, exec, pid, containerd) = (
            self.text("droot"),
            self.text("dexec"),
            self.text("d.pid"),
            self.containerd()?.socket(),
        );
        let args = [
            "--data-root",
            &root,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
            "--host",
            &host,
            "--containerd",
            &containerd,
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--add-runtime",
            &runtime,
            "--default-runtime",
            "it",
            "--storage-driver",
            "overlay2",
        ];
        let env = self.env();
        let mut dockerd = Daemon::start("dockerd".as_ref(), &args, &env, self.dir.path())?;
        let words = ["--host", &host, "version"];
        dockerd.wait_until(|| Ok(command::run("docker", words, &env, "")?.code == 0))?;
        self.dockerd = Some(dockerd);
        Ok(())
    }

    /// Gives it the image.
    fn load(&self, layout: &Path) -> Result<()> {
        let from = format!("oci:{}", layout.display());
        match self.kind {
            Kind::Podman => {
                let loaded = self.run(&["pull", "--quiet", &from])?.exits(0)?;
                self.run(&["tag", loaded.stdout.trim(), IMAGE])?.exits(0)?;
            }
            Kind::Docker => {
                let archive = self.text("docker.tar");
                let to = format!("docker-archive:{archive}:{IMAGE}");
                let words = ["copy", "--quiet", &from, &to];
                command::run("skopeo", words, &[], "")?.exits(0)?;
                self.run(&["load", "--quiet", "--input", &archive])?
                    .exits(0)?;
            }
            Kind::Ctr => self.containerd()?.import(layout, IMAGE)?,
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.clear();
        self.dockerd = None;
        self.containerd = None;
        groups::remove_new(self.kind, &self.groups);
        // What engines have mounted there goes with our mount namespace, and must not be emptied.
        for line in fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .rev()
        {
            let at = line.split(' ').nth(1).unwrap_or_default();
            if Path::new(at).starts_with(self.dir.path()) {
                let _ = command::run("umount", ["--lazy", at], &[], "");
            }
        }
    }
}
