//! `-v`: files of the host in the container.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use tests::{Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        what_the_guest_writes_is_on_the_host,
        what_the_host_wrote_is_in_the_guest,
        what_the_host_writes_meanwhile_is_seen,
        a_user_of_the_guest_owns_what_it_makes,
        a_read_only_volume_cannot_be_written_even_after_a_remount,
        a_symlink_in_a_volume_leads_nowhere_outside,
        a_file_can_be_a_volume,
        a_read_only_file_cannot_be_written,
        files_can_be_renamed_linked_and_removed,
        volumes_can_be_nested,
        many_files_are_listed,
        a_source_that_is_not_there_is_made,
    ]
    .into()
}

/// A directory of the test's for a volume.
fn volume(case: &Case, name: &str) -> Result<PathBuf> {
    let dir = case.path(name);
    fs::create_dir_all(&dir).with_context(|| format!("Failed to make {}", dir.display()))?;
    Ok(dir)
}

fn what_the_guest_writes_is_on_the_host(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    let script = "umask 027; echo data > /v/file; chown 1000:50 /v/file; mkdir /v/dir; \
                  chmod 2711 /v/dir; ln -s file /v/link; ln /v/file /v/hard; \
                  echo more >> /v/file; mkfifo /v/fifo";
    case.run([
        "-v",
        &format!("{}:/v", dir.display()),
        "busybox",
        "sh",
        "-ec",
        script,
    ])
    .run()?
    .prints("")?;
    ensure!(fs::read_to_string(dir.join("file"))? == "data\nmore\n");
    let metadata = fs::metadata(dir.join("file"))?;
    ensure!(
        (metadata.uid(), metadata.gid()) == (1000, 50),
        "{metadata:?}"
    );
    ensure!(metadata.mode() & 0o7777 == 0o640, "{metadata:?}");
    ensure!(metadata.nlink() == 2, "{metadata:?}");
    ensure!(fs::metadata(dir.join("dir"))?.mode() & 0o7777 == 0o2711);
    ensure!(fs::read_link(dir.join("link"))?.as_os_str() == "file");
    Ok(())
}

fn what_the_host_wrote_is_in_the_guest(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    let file = dir.join("file");
    fs::write(&file, "from the host\n")?;
    chown(&file, Some(1234), Some(5678))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604))?;
    symlink("file", dir.join("link"))?;
    let script = "stat -c '%u %g %a %s' /v/file; cat /v/link";
    case.run([
        "-v",
        &format!("{}:/v", dir.display()),
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .run()?
    .prints("1234 5678 604 14\nfrom the host\n")?;
    Ok(())
}

fn what_the_host_writes_meanwhile_is_seen(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    fs::write(dir.join("changing"), "before\n")?;
    let script = "cat /v/changing; until [ -e /v/go ]; do sleep 1; done; cat /v/changing /v/go";
    let running = case
        .run([
            "-v",
            &format!("{}:/v", dir.display()),
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .spawn()?;
    running.wait_for("before")?;
    fs::write(dir.join("changing"), "and after\n")?;
    fs::write(dir.join("go"), "go\n")?;
    running.wait()?.prints("before\nand after\ngo\n")?;
    Ok(())
}

fn a_user_of_the_guest_owns_what_it_makes(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
    let locked = dir.join("locked");
    fs::write(&locked, "root's\n")?;
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o600))?;
    let script = "echo mine > /v/mine; mkdir /v/dir; cat /v/locked 2>/dev/null || echo refused";
    case.run(["-u", "app", "-v", &format!("{}:/v", dir.display())])
        .args(["busybox", "sh", "-c", script])
        .run()?
        .prints("refused\n")?;
    for name in ["mine", "dir"] {
        let metadata = fs::metadata(dir.join(name))?;
        ensure!(
            (metadata.uid(), metadata.gid()) == (1000, 1000),
            "{name}: {metadata:?}"
        );
    }
    Ok(())
}

fn a_read_only_volume_cannot_be_written_even_after_a_remount(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    fs::write(dir.join("file"), "safe\n")?;
    let script = r#"
        attempt() {
            echo bad > /v/new; echo bad > /v/file; rm /v/file; mkdir /v/dir; chmod 777 /v/file
            mv /v/file /v/other; ln /v/file /v/hard; ln -s x /v/link; truncate -s 0 /v/file
            chown 1:1 /v/file; touch /v/file
        }
        attempt
        mount -o remount,rw /v; mount -o remount,rw,bind /v
        attempt
        tag=$(sed -n 's,^\([^ ]*\) /v .*,\1,p' /proc/mounts | head -n 1)
        mkdir /again && mount -t virtiofs "$tag" /again && cd /again && echo bad > new
        cat /v/file
        exit 0
    "#;
    let outcome = case
        .run([
            "-v",
            &format!("{}:/v:ro", dir.display()),
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .run()?
        .prints("safe\n")?;
    ensure!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.describe()
    );
    let names: Vec<_> = fs::read_dir(&dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(names == ["file"], "{names:?}");
    ensure!(fs::read_to_string(dir.join("file"))? == "safe\n");
    let metadata = fs::metadata(dir.join("file"))?;
    ensure!(
        metadata.uid() == 0 && metadata.mode() & 0o777 == 0o644,
        "{metadata:?}"
    );
    Ok(())
}

fn a_symlink_in_a_volume_leads_nowhere_outside(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    let outside = volume(case, "outside")?;
    let secret = outside.join("secret");
    fs::write(&secret, "the host's secret\n")?;
    symlink(&secret, dir.join("absolute"))?;
    symlink("../outside/secret", dir.join("relative"))?;
    symlink(&outside, dir.join("dir"))?;
    symlink(outside.join("new"), dir.join("to-new"))?;
    symlink(
        "../../../../../../../../../../../etc/os-release",
        dir.join("up"),
    )?;
    let script = "cat /v/absolute /v/relative /v/dir/secret /v/up; ls /v/dir/; \
                  echo written > /v/to-new; echo written > /v/dir/new; ls /v/..; exit 0";
    let outcome = case
        .run([
            "-v",
            &format!("{}:/v", dir.display()),
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .run()?
        .exits(0)?;
    let text = outcome.text();
    ensure!(
        !text.contains("secret") && !text.contains("Debian"),
        "{}",
        outcome.describe()
    );
    // The parent of a volume is the container's.
    ensure!(text.contains("bin"), "{}", outcome.describe());
    let names: Vec<_> = fs::read_dir(&outside)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(names == ["secret"], "{names:?}");
    Ok(())
}

fn a_file_can_be_a_volume(case: &Case) -> Result<()> {
    let dir = volume(case, "files")?;
    let file = dir.join("file");
    fs::write(&file, "from the host\n")?;
    fs::write(dir.join("sibling"), "not shared\n")?;
    let script = "cat /etc/motd; echo from the guest >> /etc/motd; ls /etc | grep sibling; exit 0";
    case.run([
        "-v",
        &format!("{}:/etc/motd", file.display()),
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .run()?
    .prints("from the host\n")?;
    ensure!(fs::read_to_string(&file)? == "from the host\nfrom the guest\n");
    Ok(())
}

fn a_read_only_file_cannot_be_written(case: &Case) -> Result<()> {
    let file = case.path("file");
    fs::write(&file, "safe\n")?;
    let script = "mount -o remount,rw /etc/motd; echo bad > /etc/motd; rm /etc/motd; \
                  cat /etc/motd; exit 0";
    case.run([
        "-v",
        &format!("{}:/etc/motd:ro", file.display()),
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .run()?
    .prints("safe\n")?;
    ensure!(fs::read_to_string(&file)? == "safe\n");
    Ok(())
}

fn files_can_be_renamed_linked_and_removed(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    let script = r#"
        cd /v
        mkdir -p a/b/c; echo one > a/one; mv a/one a/b/two; ln a/b/two three; mv a moved
        echo four > four; exec 3< four; rm four; cat <&3
        dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null; truncate -s 10 three
        rm -r moved/b/c; cat moved/b/two | wc -c; stat -c '%s %h' sparse three
        rmdir moved 2>/dev/null || echo not empty
    "#;
    case.run([
        "-v",
        &format!("{}:/v", dir.display()),
        "busybox",
        "sh",
        "-ec",
        script,
    ])
    .run()?
    .prints("four\n10\n1048576 1\n10 2\nnot empty\n")?;
    ensure!(fs::metadata(dir.join("moved/b/two"))?.len() == 10);
    ensure!(!dir.join("a").exists() && !dir.join("four").exists());
    Ok(())
}

fn volumes_can_be_nested(case: &Case) -> Result<()> {
    let (outer, inner) = (volume(case, "outer")?, volume(case, "inner")?);
    case.run(["-v", &format!("{}:/deep/down", inner.display())])
        .args(["-v", &format!("{}:/deep", outer.display())])
        .args([
            "busybox",
            "sh",
            "-c",
            "echo o > /deep/file; echo i > /deep/down/file",
        ])
        .run()?
        .prints("")?;
    ensure!(fs::read_to_string(outer.join("file"))? == "o\n");
    ensure!(fs::read_to_string(inner.join("file"))? == "i\n");
    Ok(())
}

fn many_files_are_listed(case: &Case) -> Result<()> {
    let dir = volume(case, "v")?;
    for index in 0..300 {
        fs::write(
            dir.join(format!("a file with a name of some length {index}")),
            "",
        )?;
    }
    case.run([
        "-v",
        &format!("{}:/v:ro", dir.display()),
        "busybox",
        "sh",
        "-c",
        "ls /v | sort -u | wc -l",
    ])
    .run()?
    .prints("300\n")?;
    Ok(())
}

fn a_source_that_is_not_there_is_made(case: &Case) -> Result<()> {
    // As docker does for -v: an empty directory.
    let missing = case.path("missing/too");
    let volume = format!("{}:/v", missing.display());
    case.run(["-v", &volume, "busybox", "sh", "-c", "echo data > /v/file"])
        .run()?
        .prints("")?;
    ensure!(fs::read_to_string(missing.join("file"))? == "data\n");
    Ok(())
}
