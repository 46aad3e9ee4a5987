//! A guest that is nobody's friend: its own init instead of the agent, with every right that a
//! kernel gives, on an hrun-vmm that is configured as hrun would.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Case, Test};
use vmm::{
    config::{self, BootConfig, Origin, ShareConfig, ShareSource, VmConfig},
    exit::ExitReason,
};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        a_read_only_share_withstands_a_root_that_mounts_it_anew,
        a_share_has_no_way_out,
    ]
    .into()
}

/// An initramfs of busybox with this script as its init.
fn initramfs(case: &Case, script: &str) -> Result<PathBuf> {
    let root = case.path("root");
    for dir in ["bin", "proc", "ro", "rw"] {
        fs::create_dir_all(root.join(dir)).context("Failed to make a directory")?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is missing")?;
    let init = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin; busybox mount -t proc proc /proc; busybox --install -s /bin\n\
         mount -t virtiofs ro /ro; mount -t virtiofs rw /rw\n\
         {script}\n\
         sync; reboot -f\n"
    );
    fs::write(root.join("init"), init).context("Failed to write init")?;
    let archive = case.path("initramfs.cpio");
    let script = "chmod 755 init; find . | cpio --create --format=newc --quiet > \"$0\"";
    case.with("sh", ["-c", "cd \"$1\"; eval \"$2\""])
        .args([&archive, &root])
        .args([script])
        .run()?
        .exits(0)?;
    Ok(archive)
}

/// Boots it with a read-only share "ro" and a writable one "rw", and waits for its end.
fn boot(case: &Case, initramfs: &Path, ro: &Path, rw: &Path) -> Result<()> {
    let share = |tag: &str, dir: &Path, read_only| ShareConfig {
        tag: tag.into(),
        source: ShareSource::Directory(dir.into()),
        read_only,
        exclusive: false,
        files: Vec::new(),
        directories: Vec::new(),
    };
    let config = VmConfig {
        version: config::VERSION,
        name: "hostile".into(),
        vcpus: 1,
        max_vcpus: None,
        memory: 128 << 20,
        origin: Origin::Boot(BootConfig {
            kernel: case.built().kernel(),
            initramfs: Some(initramfs.into()),
            cmdline: String::new(),
        }),
        control: case.path("control"),
        vsock: None,
        shares: vec![share("ro", ro, true), share("rw", rw, false)],
        disks: Vec::new(),
        console: None,
        start_paused: false,
        profile: None,
        symbols: None,
        snapshot: None,
    };
    case.with(case.built().vmm(), ["--config-fd", "0"])
        .stdin(serde_json::to_vec(&config).context("plain data")?)
        .timeout(Duration::from_secs(300))
        .run()?
        .exits(ExitReason::Reset.code().into())?;
    Ok(())
}

fn shares(case: &Case) -> Result<[PathBuf; 2]> {
    let dirs = ["read-only", "writable"].map(|name| case.path(name));
    for dir in &dirs {
        fs::create_dir(dir).context("Failed to make a directory")?;
    }
    Ok(dirs)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn a_read_only_share_withstands_a_root_that_mounts_it_anew(case: &Case) -> Result<()> {
    let [ro, rw] = shares(case)?;
    fs::write(ro.join("file"), "safe\n")?;
    let script = r#"
        mount -o remount,rw /ro
        {
            echo bad > /ro/new; echo bad > /ro/file; echo bad >> /ro/file; rm /ro/file
            mkdir /ro/dir; chmod 777 /ro/file; chown 1:1 /ro/file; mv /ro/file /ro/other
            ln /ro/file /ro/hard; ln -s x /ro/link; truncate -s 0 /ro/file; mkfifo /ro/fifo
            touch -d @0 /ro/file
        } 2> /rw/errors
        grep ' /ro ' /proc/mounts > /rw/mounts
        cat /ro/file > /rw/seen
    "#;
    boot(case, &initramfs(case, script)?, &ro, &rw)?;
    let mounts = fs::read_to_string(rw.join("mounts"))?;
    ensure!(
        mounts.contains(" rw,"),
        "the guest has not mounted it for writing: {mounts}"
    );
    ensure!(fs::read_to_string(rw.join("seen"))? == "safe\n");
    let errors = fs::read_to_string(rw.join("errors"))?;
    ensure!(
        errors.lines().count() >= 13,
        "not every attempt failed:\n{errors}"
    );
    ensure!(names(&ro)? == ["file"], "{:?}", names(&ro)?);
    ensure!(fs::read_to_string(ro.join("file"))? == "safe\n");
    Ok(())
}

fn a_share_has_no_way_out(case: &Case) -> Result<()> {
    let [ro, rw] = shares(case)?;
    fs::write(case.path("secret"), "the host's secret\n")?;
    std::os::unix::fs::symlink("../secret", rw.join("planted"))?;
    let script = r#"
        ln -s ../secret /rw/relative; ln -s / /rw/top; ln -s .. /rw/up
        for path in planted relative top/etc/os-release up/secret ../secret; do
            cat /rw/$path
        done > /rw/seen 2> /rw/errors
        mknod /rw/device b 8 0; mknod /rw/null c 1 3
        ls /rw/.. > /rw/parent
    "#;
    boot(case, &initramfs(case, script)?, &ro, &rw)?;
    ensure!(fs::read_to_string(rw.join("seen"))?.is_empty());
    let parent = fs::read_to_string(rw.join("parent"))?;
    ensure!(
        parent.contains("init") && !parent.contains("secret"),
        "{parent}"
    );
    Ok(())
}
