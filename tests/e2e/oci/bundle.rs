//! A bundle as an engine makes one, and its container's life by the commands that engines use.

use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Case, Invocation, Outcome, eventually};

const PROGRAMS: [&str; 21] = [
    "cat", "cut", "echo", "grep", "hostname", "id", "ls", "mkdir", "mount", "nc", "ps", "readlink",
    "sh", "sleep", "stty", "test", "touch", "tr", "true", "tty", "uname",
];

/// A bundle as an engine makes one.
pub(crate) struct Bundle<'a> {
    case: &'a Case<'a>,
    id: String,
    pub(crate) path: PathBuf,
}

impl<'a> Bundle<'a> {
    /// One whose program is this script; `edit` changes the configuration.
    pub(crate) fn new(
        case: &'a Case<'a>,
        script: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        Self::named(case, "box", script, edit)
    }

    /// The same, for a container of this name.
    pub(crate) fn named(
        case: &'a Case<'a>,
        id: &str,
        script: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let path = case.path(&match id {
            "box" => "bundle".to_owned(),
            id => format!("bundle-{id}"),
        });
        let bin = path.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy("/bin/busybox", bin.join("busybox"))?;
        for name in PROGRAMS {
            symlink("busybox", bin.join(name))?;
        }
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": Self::group(case, id),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network"},
                ],
            },
        });
        edit(&mut config);
        fs::write(path.join("config.json"), config.to_string())?;
        let id = id.to_owned();
        Ok(Self { case, id, path })
    }

    pub(super) fn group(case: &Case, id: &str) -> String {
        let store = case.store().display().to_string().replace('/', "-");
        format!("/hrun{store}-{id}")
    }

    /// `hrun create` with what is left behind at files, as it would hold a pipe open.
    pub(super) fn create(&self, options: &[&str]) -> Result<Outcome> {
        self.creating(options).run()
    }

    pub(super) fn creating(&self, options: &[&str]) -> Invocation {
        let script = format!(
            "exec \"$0\" \"$@\" <&0 >{} 2>{}",
            self.path.join("out").display(),
            self.path.join("err").display()
        );
        let hrun = self.case.built().hrun();
        let bundle = self.path.display().to_string();
        let words = [
            "-c",
            &script,
            &hrun.display().to_string(),
            "create",
            "--bundle",
            &bundle,
        ];
        let id = self.id.as_str();
        let words = words.iter().chain(options).chain([&id]);
        self.case.with("/bin/sh", words)
    }

    /// Created and started.
    pub(super) fn started(&self) -> Result<()> {
        self.create(&[])?
            .exits(0)
            .with_context(|| self.said("err"))?;
        self.hrun(&["start", &self.id]).run()?.exits(0)?;
        Ok(())
    }

    /// The same, and its script has said that it is ready.
    pub(crate) fn ready(&self) -> Result<()> {
        self.started()?;
        eventually("the script to be ready", Duration::from_secs(60), || {
            self.said("out").contains("ready").then_some(())
        })
    }

    pub(crate) fn hrun(&self, words: &[&str]) -> Invocation {
        self.case.hrun(words)
    }

    pub(super) fn state(&self) -> Result<Value> {
        let outcome = self.hrun(&["state", &self.id]).run()?.exits(0)?;
        serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())
    }

    pub(super) fn status(&self) -> Result<String> {
        let state = self.state()?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    pub(super) fn pid(&self) -> Result<i32> {
        let state = self.state()?;
        let pid = state["pid"].as_i64().with_context(|| state.to_string())?;
        Ok(i32::try_from(pid)?)
    }

    pub(super) fn ends(&self) -> Result<()> {
        eventually("the container to stop", Duration::from_secs(60), || {
            (self.status().ok()? == "stopped").then_some(())
        })
    }

    pub(super) fn delete(&self) -> Result<Outcome> {
        self.hrun(&["delete", "--force", &self.id]).run()
    }

    /// What the container, or a hook, wrote there.
    pub(crate) fn said(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    /// All containers are gone, with everything of them.
    pub(crate) fn is_gone(&self) -> Result<()> {
        let left = ["engines", "oci"].map(|name| self.case.state().join(name));
        for dir in left.iter().filter(|dir| dir.exists()) {
            let count = fs::read_dir(dir)?.count();
            ensure!(count == 0, "{count} left in {}", dir.display());
        }
        self.is_gone_alone()?;
        self.case.no_processes()
    }

    /// This container is gone, while others may be there.
    pub(super) fn is_gone_alone(&self) -> Result<()> {
        let dir = self.case.state().join("engines").join(&self.id);
        ensure!(!dir.exists(), "{} is left", dir.display());
        let group = Self::group(self.case, &self.id);
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let dir = hierarchy?.path().join(&group[1..]);
            ensure!(!dir.exists(), "{} is left", dir.display());
        }
        Ok(())
    }
}
