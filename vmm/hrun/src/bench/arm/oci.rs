//! OCI runtimes: containers made of namespaces, the yardstick. They get a bundle each, of the
//! same image, with an overlay as root file system as hrun's containers have it.
//!
//! A bundle is made ready before the clock runs: in practice an engine spends time on it.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use image::Image;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use super::{ArmError, Common, Start};
use crate::{
    bench::cgroup::Group,
    container::WritableLayer,
    spec::{Process, RunOptions},
};

/// What docker and podman leave to root in a container.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// An OCI runtime and its bundles.
#[derive(Debug)]
pub(super) struct Oci {
    arm: &'static str,
    version: String,
    image: Image,
    image_name: String,
    /// Bundles, by slot.
    bundles: Vec<PathBuf>,
    dir: PathBuf,
    /// Where the runtime keeps its state.
    root: PathBuf,
    tag: String,
    cgroups: Option<String>,
}

impl Oci {
    pub(super) fn find(
        arm: &'static str,
        common: &Common,
        group: Option<&Group>,
    ) -> Result<Self, String> {
        let version = super::version(Path::new(arm))
            .ok_or_else(|| format!("not installed (apt-get install {arm})"))?;
        Ok(Self {
            arm,
            version,
            image: common.image.clone(),
            image_name: common.image_name.clone(),
            bundles: Vec::new(),
            dir: common.work.join(arm),
            root: common.state.join(arm),
            tag: format!("{}-{arm}", common.tag),
            cgroups: group.map(Group::containers),
        })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    fn runtime(&self) -> Command {
        let mut command = Command::new(self.arm);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    fn id(&self, slot: usize) -> String {
        format!("{}-{slot}", self.tag)
    }

    /// The command of a start, and the bundle for it.
    pub(super) fn command(&mut self, start: &Start<'_>) -> Result<Command, ArmError> {
        while self.bundles.len() <= start.slot {
            let path = self.dir.join(self.bundles.len().to_string());
            let made = make(&path, self.image.layers());
            // Even half a bundle is taken apart again.
            self.bundles.push(path.clone());
            made.map_err(|source| self.failed(path, source))?;
        }
        let bundle = &self.bundles[start.slot];
        let config = self
            .config(start)
            .and_then(|config| fs::write(bundle.join("config.json"), config.to_string()));
        config.map_err(|source| self.failed(bundle.clone(), source))?;
        let mut command = self.runtime();
        command.args(["run", "--bundle"]).arg(bundle);
        command.arg(self.id(start.slot));
        if start.stdin {
            command.stdin(Stdio::piped());
        }
        Ok(command)
    }

    fn failed(&self, path: PathBuf, source: io::Error) -> ArmError {
        let arm = self.arm;
        ArmError::Bundle { arm, path, source }
    }

    /// Kills containers, whose `run` then ends and removes them.
    pub(super) fn end(&self, count: usize) {
        for slot in 0..count {
            self.quietly(&["kill", &self.id(slot), "KILL"]);
        }
    }

    fn quietly(&self, args: &[&str]) {
        let mut command = self.runtime();
        command
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // What is not there any more needs nothing.
        let _ = command.status();
    }

    fn config(&self, start: &Start<'_>) -> io::Result<Value> {
        let options = RunOptions {
            image: self.image_name.clone(),
            command: start.words.iter().map(|word| (*word).to_owned()).collect(),
            entrypoint: Some(String::new()),
            ..RunOptions::default()
        };
        let process = Process::resolve(&options, self.image.config.config().as_ref())
            .map_err(io::Error::other)?;
        let hostname = self.id(start.slot);
        let env = process.environment(&hostname);
        let cgroup = self
            .cgroups
            .as_ref()
            .map(|path| format!("{path}/{hostname}"));
        Ok(config(&process.args, &env, &hostname, cgroup.as_deref()))
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        for (slot, bundle) in self.bundles.iter().enumerate() {
            if self.root.join(self.id(slot)).exists() {
                self.quietly(&["delete", "--force", &self.id(slot)]);
            }
            // Not mounted if making it failed.
            let _ = unmount(bundle.join("rootfs"), UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Makes a bundle without its configuration: the overlay of layers, topmost first.
fn make(path: &Path, layers: &[PathBuf]) -> io::Result<()> {
    let rootfs = path.join("rootfs");
    fs::create_dir_all(&rootfs)?;
    let top = layers.first().ok_or(io::ErrorKind::NotFound)?;
    let layer = WritableLayer::create(path, top).map_err(io::Error::other)?;
    let lower: Vec<String> = layers.iter().map(|layer| escape(layer)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escape(&layer.upper),
        escape(&layer.work)
    );
    let options = CString::new(options).map_err(io::Error::other)?;
    mount(
        "overlay",
        &rootfs,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    Ok(())
}

/// A path as it stands in the options of an overlay.
fn escape(path: &Path) -> String {
    path.to_string_lossy()
        .replace('\\', "\\\\")
        .replace(':', "\\:")
        .replace(',', "\\,")
}

/// A container as `docker run --network none` would have it made, without seccomp.
fn config(args: &[String], env: &[String], hostname: &str, cgroup: Option<&str>) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let mut linux = json!({
        "namespaces": namespaces,
        "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if let Some(cgroup) = cgroup {
        linux["cgroupsPath"] = cgroup.into();
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": env,
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": hostname,
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": linux,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_namespaces_of_its_own_the_network_included() {
        let config = config(&["true".into()], &["A=1".into()], "box", Some("/a/b"));
        let kinds: Vec<_> = config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|namespace| namespace["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["pid", "network", "ipc", "uts", "mount"]);
        assert_eq!(config["linux"]["cgroupsPath"], "/a/b");
        assert_eq!(config["process"]["args"], json!(["true"]));
        // The runtimes read it by the types of the specification.
        let parsed = serde_json::from_value::<image::oci_spec::runtime::Spec>(config);
        parsed.unwrap();
    }

    #[test]
    fn odd_paths_reach_the_overlay_whole() {
        assert_eq!(escape(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}
