//! hrun's initramfs with an init for the benchmark added to it.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tests::Built;

/// Appends an archive with `/bench-init` to the initramfs: the kernel unpacks one after the other.
pub(crate) fn with_bench_init(initramfs: &Path, dir: &Path) -> Result<PathBuf> {
    let init = dir.join("bench-init");
    let compiled = Command::new("cc")
        .args(["-Os", "-static", "-nostdlib", "-fno-stack-protector", "-o"])
        .arg(&init)
        .arg(Built::sources().join("bench/boot/init.c"))
        .status()
        .context("Failed to start cc")?;
    ensure!(
        compiled.success(),
        "Failed to compile bench-init: cc: {compiled}"
    );

    let both = dir.join("initramfs.cpio");
    fs::copy(initramfs, &both)
        .with_context(|| format!("Failed to copy {}", initramfs.display()))?;
    let archive = File::options()
        .append(true)
        .open(&both)
        .with_context(|| format!("Failed to open {}", both.display()))?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(archive)
        .spawn()
        .context("Failed to start cpio")?;
    cpio.stdin
        .take()
        .context("stdin is a pipe")?
        .write_all(b"bench-init\n")
        .context("Failed to talk to cpio")?;
    let packed = cpio.wait().context("Failed to wait for cpio")?;
    ensure!(
        packed.success(),
        "Failed to pack bench-init: cpio: {packed}"
    );
    Ok(both)
}
