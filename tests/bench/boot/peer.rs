//! The VMMs that are compared.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::Built;
use vmm::{
    api::HostKind,
    config::{self, BootConfig, Origin, VmConfig},
    exit::ExitReason,
};

/// How long a boot may take before it counts as hung.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Status with which isa-debug-exit ends qemu when 0xfe is written to it: twice that, plus one.
const QEMU_RESET: u8 = 0xfd;

/// What is booted.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// In bytes.
    pub(crate) memory: u64,
    pub(crate) cmdline: String,
    pub(crate) kind: HostKind,
}

impl Guest {
    /// The whole command line: that which hrun-vmm makes of its configuration, and others are given.
    pub(crate) fn full_cmdline(&self) -> Result<String> {
        let config = vmm_config(self, Path::new("/"));
        vmm::builder::cmdline(&config, self.kind, 0).context("Failed to make the command line")
    }
}

/// A VMM, by its program.
pub(crate) enum Peer {
    HrunVmm(PathBuf),
    Qemu(PathBuf),
    Firecracker(PathBuf),
}

impl Peer {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::HrunVmm(_) => "hrun-vmm",
            Self::Qemu(_) => "microvm",
            Self::Firecracker(_) => "firecracker",
        }
    }

    /// How it comes to be there.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::HrunVmm(_) => "make build",
            Self::Qemu(_) => "make deps-bench-boot",
            Self::Firecracker(_) => "--firecracker PATH",
        }
    }

    fn program(&self) -> &Path {
        let (Self::HrunVmm(path) | Self::Qemu(path) | Self::Firecracker(path)) = self;
        path
    }

    /// What it says of itself, or nothing if it is not there.
    pub(crate) fn version(&self) -> Option<String> {
        let output = Command::new(self.program())
            .arg("--version")
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().map(str::to_owned)
    }

    /// Boots the guest and waits for the reset that its init asks for.
    pub(crate) fn boot(&self, guest: &Guest, dir: &Path) -> Result<Duration> {
        let mut command = Command::new(self.program());
        let (input, expected) = match self {
            Self::HrunVmm(_) => {
                command.args(["--config-fd", "0"]);
                let config = vmm_config(guest, dir);
                let _ = fs::remove_file(&config.control);
                let json = serde_json::to_vec(&config).context("plain data")?;
                (json, ExitReason::Reset.code())
            }
            Self::Qemu(_) => {
                command
                    .args(qemu_args(guest))
                    .args(["-append", &guest.full_cmdline()?]);
                (Vec::new(), QEMU_RESET)
            }
            Self::Firecracker(_) => {
                let config = dir.join("firecracker.json");
                fs::write(&config, firecracker_config(guest)?.to_string())
                    .with_context(|| format!("Failed to write {}", config.display()))?;
                command.args(["--no-api", "--config-file"]).arg(config);
                (Vec::new(), 0)
            }
        };
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("Failed to start {}", self.name()))?;
        let mut stdin = child.stdin.take().context("stdin is a pipe")?;
        stdin
            .write_all(&input)
            .context("Failed to write the VM's configuration")?;
        drop(stdin);
        let status = wait(&mut child).with_context(|| self.name())?;
        let took = started.elapsed();
        let mut message = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut message).context("stderr")?;
        }
        ensure!(
            status.code() == Some(expected.into()),
            "{} ended with {status}: {message}",
            self.name()
        );
        Ok(took)
    }
}

/// Waits without a system call that a busy host delays: the timer is finer than what is measured.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("Failed to wait for a child")? {
            return Ok(status);
        }
        if started.elapsed() > TIMEOUT {
            child.kill().context("Failed to kill a child")?;
            child.wait().context("Failed to wait for a child")?;
            bail!("did not reset within {TIMEOUT:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn vmm_config(guest: &Guest, dir: &Path) -> VmConfig {
    VmConfig {
        version: config::VERSION,
        name: "bench-boot".into(),
        vcpus: 1,
        max_vcpus: None,
        memory: guest.memory,
        origin: Origin::Boot(BootConfig {
            kernel: guest.kernel.clone(),
            initramfs: Some(guest.initramfs.clone()),
            cmdline: guest.cmdline.clone(),
        }),
        control: dir.join("control"),
        vsock: None,
        shares: Vec::new(),
        disks: Vec::new(),
        console: None,
        start_paused: false,
        profile: None,
        symbols: None,
        snapshot: None,
    }
}

/// The reset that the kernel asks of a keyboard controller (`reboot=k`) ends hrun-vmm. microvm has
/// no such controller; there, a debug device on its port ends qemu. A triple fault would do for
/// both on hardware KVM, but the kernel makes it by an int3, which software KVM does not emulate.
fn qemu_args(guest: &Guest) -> Vec<String> {
    let mut args: Vec<_> =
        "-machine microvm -enable-kvm -cpu host,arch-capabilities=off -smp 1 -nodefaults \
        -no-user-config -display none -no-reboot -device isa-debug-exit,iobase=0x64,iosize=1"
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
    let memory = (guest.memory >> 20).to_string();
    let kernel = guest.kernel.display().to_string();
    let initramfs = guest.initramfs.display().to_string();
    args.extend(["-m".into(), memory]);
    args.extend(["-kernel".into(), kernel, "-initrd".into(), initramfs]);
    args
}

/// What Firecracker reads from its configuration file. It has a keyboard controller, as hrun-vmm.
fn firecracker_config(guest: &Guest) -> Result<Value> {
    Ok(json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": guest.full_cmdline()?,
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": guest.memory >> 20 },
        "drives": [],
    }))
}

/// Asks hrun-vmm what kind of KVM this host has.
pub(crate) fn host_kind(built: &Built) -> Result<HostKind> {
    let output = Command::new(built.vmm())
        .arg("--probe")
        .output()
        .with_context(|| format!("Failed to start {}", built.vmm().display()))?;
    ensure!(
        output.status.success(),
        "hrun-vmm --probe failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("hrun-vmm --probe printed no kind of host")
}
