//! `hrun cp`: files out of containers and into them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use tests::{Case, Outcome, Test};

use crate::exec::started;

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        files_and_trees_go_by_dockers_rules,
        what_is_mounted_in_the_container_is_seen,
        archives_stream_both_ways,
        owners_are_kept_only_if_asked_for,
        links_of_a_container_lead_nowhere_on_the_host,
        an_image_without_any_tool_is_enough,
        a_container_that_rests_is_read_and_written,
        what_cannot_be_copied_is_named,
    ]
    .into()
}

fn cp(case: &Case, args: &[&str]) -> Result<Outcome> {
    case.hrun(["cp"].iter().chain(args)).run()?.exits(0)
}

fn refused(case: &Case, args: &[&str], message: &str) -> Result<()> {
    let outcome = case.hrun(["cp"].iter().chain(args)).run()?.exits(1)?;
    ensure!(
        outcome.stderr.contains(message),
        "{args:?}: {}",
        outcome.describe()
    );
    Ok(())
}

fn sh(case: &Case, script: &str) -> Result<Outcome> {
    case.hrun(["exec", "box", "sh", "-ec", script]).run()
}

/// A path of the test's, as text.
fn path(case: &Case, name: &str) -> Result<String> {
    let path = case.path(name);
    Ok(path.to_str().context("a plain path")?.to_owned())
}

fn mode(path: impl AsRef<Path>) -> Result<u32> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn files_and_trees_go_by_dockers_rules(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let tree = path(case, "tree")?;
    fs::create_dir_all(case.path("tree/sub"))?;
    fs::write(case.path("tree/file"), "data\n")?;
    fs::hard_link(case.path("tree/file"), case.path("tree/sub/hard"))?;
    symlink("file", case.path("tree/link"))?;
    fs::set_permissions(case.path("tree/file"), fs::Permissions::from_mode(0o4750))?;
    fs::set_permissions(case.path("tree/sub"), fs::Permissions::from_mode(0o1711))?;
    let file = path(case, "tree/file")?;
    cp(case, &[&file, "box:/new"])?;
    cp(case, &[&file, "box:tmp/"])?;
    cp(case, &["-q", &tree, "box:/tmp"])?;
    cp(case, &[&tree, "box:/made"])?;
    cp(case, &[&format!("{tree}/."), "box:/home/"])?;
    let look = "cat /new /tmp/file /tmp/tree/link /home/sub/hard; stat -c '%a %h %u' \
        /made/file /made/sub; readlink /made/link";
    sh(case, look)?.prints("data\ndata\ndata\ndata\n4750 2 0\n1711 2 0\nfile\n")?;

    let out = path(case, "out")?;
    fs::create_dir(case.path("out"))?;
    cp(case, &["box:/made", &out])?;
    cp(case, &["box:/made/.", &out])?;
    cp(case, &["box:/made/link", &format!("{out}/copied")])?;
    cp(case, &["-L", "box:/made/link", &format!("{out}/followed")])?;
    // Into the directory that hrun runs in.
    case.with("sh", ["-c", "cd \"$0\" && exec \"$1\" cp box:/made ./new"])
        .args([&out])
        .args([case.built().hrun()])
        .run()?
        .exits(0)?;
    for name in ["made/file", "file", "followed", "new/sub/hard"] {
        ensure!(
            fs::read_to_string(case.path("out").join(name))? == "data\n",
            "{name}"
        );
    }
    ensure!(fs::read_link(case.path("out/copied"))? == Path::new("file"));
    // No program of a container's becomes one that is root's on the host.
    ensure!(mode(case.path("out/made/file"))? == 0o750);
    ensure!(mode(case.path("out/made/sub"))? == 0o1711);
    ensure!(fs::metadata(case.path("out/made/file"))?.nlink() == 2);
    crate::end(running)?;
    Ok(())
}

fn what_is_mounted_in_the_container_is_seen(case: &Case) -> Result<()> {
    for name in ["volume", "fixed"] {
        fs::create_dir(case.path(name))?;
    }
    let volume = format!("{}:/volume", path(case, "volume")?);
    let fixed = format!("{}:/fixed:ro", path(case, "fixed")?);
    let running = started(case, &["-v", &volume, "-v", &fixed])?;
    let file = path(case, "file")?;
    fs::write(&file, "from the host\n")?;
    cp(case, &[&file, "box:/dev/shm/memory"])?;
    cp(case, &[&file, "box:/volume"])?;
    sh(case, "cat /dev/shm/memory; echo written > /dev/shm/more")?.prints("from the host\n")?;
    ensure!(fs::read_to_string(case.path("volume/file"))? == "from the host\n");
    cp(case, &["box:/dev/shm", &path(case, "shm")?])?;
    ensure!(fs::read_to_string(case.path("shm/more"))? == "written\n");
    refused(case, &[&file, "box:/fixed"], "Read-only file system")?;
    // A whole root, with what the kernel shows in it left out, and devices named.
    let outcome = cp(case, &["box:/", &path(case, "root")?])?;
    ensure!(
        outcome
            .stderr
            .contains("note: device \"dev/null\" left out"),
        "{}",
        outcome.describe()
    );
    ensure!(fs::read_dir(case.path("root/proc"))?.next().is_none());
    ensure!(case.path("root/bin/busybox").exists() && !case.path("root/dev/null").exists());
    crate::end(running)?;
    Ok(())
}

fn archives_stream_both_ways(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let words: u32 = if crate::full() { 2 << 20 } else { 1 << 18 };
    let big: Vec<u8> = (0..words).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(case.path("src"))?;
    fs::write(case.path("src/big"), &big)?;
    let long = "long".repeat(50);
    fs::write(case.path("src").join(&long), "long\n")?;
    let src = path(case, "src")?;
    let archive = case.with("tar", ["-c", "-C", &src, "."]).run()?.exits(0)?;
    case.hrun(["cp", "-", "box:/tmp"])
        .stdin(archive.stdout)
        .run()?
        .prints("")?;
    sh(case, &format!("cat /tmp/{long}; wc -c < /tmp/big"))?
        .prints(&format!("long\n{}\n", big.len()))?;

    let stream = cp(case, &["box:/tmp/", "-"])?;
    fs::create_dir(case.path("dst"))?;
    let dst = path(case, "dst")?;
    case.with("tar", ["-x", "-C", &dst])
        .stdin(stream.stdout)
        .run()?
        .exits(0)?;
    ensure!(fs::read(case.path("dst/tmp/big"))? == big, "other bytes");
    cp(case, &["box:/tmp/big", &dst])?;
    ensure!(fs::read(case.path("dst/big"))? == big, "other bytes");

    for (args, message) in [
        (
            ["-", "box:/none"],
            "Could not find the file /none in container box",
        ),
        (["-", "box:/etc/passwd"], "/etc/passwd is not a directory"),
        (["-", "box:/tmp"], "is not valid"),
    ] {
        let outcome = case.hrun(["cp"].iter().chain(&args));
        let outcome = outcome.stdin("no archive".repeat(1000)).run()?.exits(1)?;
        ensure!(outcome.stderr.contains(message), "{}", outcome.describe());
    }
    crate::end(running)?;
    Ok(())
}

fn owners_are_kept_only_if_asked_for(case: &Case) -> Result<()> {
    let running = started(case, &["--cap-drop", "ALL"])?;
    let file = path(case, "file")?;
    fs::write(&file, "")?;
    chown(&file, Some(1234), Some(567))?;
    cp(case, &[&file, "box:/plain"])?;
    cp(case, &["-a", &file, "box:/kept"])?;
    sh(case, "stat -c '%u %g' /plain /kept")?.prints("0 0\n1234 567\n")?;
    let out = |name: &str| path(case, name);
    cp(case, &["box:/kept", &out("plain")?])?;
    cp(case, &["--archive", "box:/kept", &out("kept")?])?;
    for (name, owner) in [("plain", (0, 0)), ("kept", (1234, 567))] {
        let metadata = fs::metadata(case.path(name))?;
        ensure!((metadata.uid(), metadata.gid()) == owner, "{metadata:?}");
    }
    crate::end(running)?;
    Ok(())
}

fn links_of_a_container_lead_nowhere_on_the_host(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    fs::create_dir(case.path("outside"))?;
    let outside = path(case, "outside")?;
    let script = format!(
        "mkdir -p /h/in /etc/dir; echo mine > /etc/mine; ln -s /etc/mine /h/link; ln -s {outside} /h/in/out; \
         ln -s /etc/dir /dir; ln -s ../../../../../../../../../../etc/dir /up; ln -s /proc/self/root /self"
    );
    sh(case, &script)?.exits(0)?;
    // Copied as they are, or followed in the container.
    fs::create_dir(case.path("host"))?;
    let host = path(case, "host")?;
    cp(case, &["box:/h/link", &host])?;
    ensure!(fs::read_link(case.path("host/link"))? == Path::new("/etc/mine"));
    cp(case, &["-L", "box:/h/link", &format!("{host}/followed")])?;
    ensure!(fs::read_to_string(case.path("host/followed"))? == "mine\n");
    // What a second copy finds in the place of a directory is not followed.
    cp(case, &["box:/h", &host])?;
    sh(
        case,
        "rm /h/in/out; mkdir /h/in/out; echo bad > /h/in/out/bad",
    )?
    .exits(0)?;
    refused(
        case,
        &["box:/h", &host],
        "it would replace what is no directory",
    )?;
    ensure!(fs::read_dir(case.path("outside"))?.next().is_none());
    // Into the container, through links.
    let file = path(case, "file")?;
    fs::write(&file, "into\n")?;
    cp(case, &[&file, "box:/dir/one"])?;
    cp(case, &[&file, "box:/up"])?;
    cp(case, &[&file, "box:/h/link"])?;
    sh(
        case,
        "cat /etc/dir/one /etc/dir/file /etc/mine; [ -L /h/link ]",
    )?
    .prints("into\ninto\ninto\n")?;
    ensure!(!Path::new("/etc/dir").exists());
    refused(case, &[&file, "box:/self/x"], "Failed to find /self/x")?;
    crate::end(running)?;
    Ok(())
}

fn an_image_without_any_tool_is_enough(case: &Case) -> Result<()> {
    let root = case.path("root");
    fs::create_dir(&root)?;
    fs::copy("/bin/busybox", root.join("busybox")).context("busybox-static is missing")?;
    let tar = ["-c", "-C", root.to_str().context("a plain path")?, "."];
    let archive = case.with("tar", tar).run()?.exits(0)?;
    case.hrun(["import", "-", "bare:1"])
        .stdin(archive.stdout)
        .run()?
        .exits(0)?;
    let args = ["--name", "box", "bare:1", "/busybox", "sh", "-c"];
    let running = case.run(args.iter().chain(&[crate::PATIENT])).spawn()?;
    running.wait_for("ready")?;
    let file = path(case, "file")?;
    fs::write(&file, "here and back\n")?;
    cp(case, &[&file, "box:/"])?;
    cp(case, &["box:/file", &path(case, "back")?])?;
    ensure!(fs::read_to_string(case.path("back"))? == "here and back\n");
    crate::end(running)?;
    case.hrun(["image", "rm", "bare:1"]).run()?.exits(0)?;
    Ok(())
}

fn a_container_that_rests_is_read_and_written(case: &Case) -> Result<()> {
    let script = "cat /etc/new /made/file; rm /etc/group; ln -sfn /etc /link; echo x > /etc/left; \
        stat -c '%u %a' /etc/new";
    case.hrun(["create", "--name", "rest", "busybox", "sh", "-ec", script])
        .run()?
        .exits(0)?;
    fs::create_dir(case.path("tree"))?;
    fs::write(case.path("tree/file"), "tree\n")?;
    fs::write(case.path("new"), "new\n")?;
    chown(case.path("new"), Some(7), None)?;
    // One that has never run.
    cp(case, &["rest:/etc/group", &path(case, "group")?])?;
    cp(case, &[&path(case, "new")?, "rest:/etc"])?;
    cp(case, &[&path(case, "tree")?, "rest:/made"])?;
    let device = case.with("sh", ["-c", "cd \"$0\"; mknod x c 0 0; tar -c x"]);
    let archive = device.args([path(case, "tree")?]).run()?.exits(0)?;
    let outcome = case.hrun(["cp", "-", "rest:/made"]).stdin(archive.stdout);
    let outcome = outcome.run()?.exits(0)?;
    ensure!(
        outcome.stderr.contains("device \"x\" left out"),
        "{}",
        outcome.describe()
    );
    case.hrun(["start", "-a", "rest"])
        .run()?
        .prints("new\ntree\n0 644\n")?;
    // One that has ended: what it deleted is gone, and its links are its own.
    refused(
        case,
        &["rest:/etc/group", "-"],
        "Could not find the file /etc/group in container rest",
    )?;
    cp(case, &["-L", "rest:/link", &path(case, "etc")?])?;
    ensure!(fs::read_to_string(case.path("etc/left"))? == "x\n");
    ensure!(!case.path("etc/group").exists());
    let listed = cp(case, &["rest:/made/.", "-"])?;
    let listed = case.with("tar", ["-t"]).stdin(listed.stdout).run()?;
    listed.prints("./\nfile\n")?;
    cp(case, &[&path(case, "new")?, "rest:/link/again"])?;
    cp(case, &["rest:/etc/again", &path(case, "again")?])?;
    ensure!(fs::read_to_string(case.path("again"))? == "new\n");
    case.hrun(["rm", "rest"]).run()?.exits(0)?;
    Ok(())
}

fn what_cannot_be_copied_is_named(case: &Case) -> Result<()> {
    let running = started(case, &[])?;
    let file = path(case, "file")?;
    fs::write(&file, "")?;
    fs::create_dir(case.path("dir"))?;
    let dir = path(case, "dir")?;
    let none = path(case, "none")?;
    for (args, message) in [
        (["nobody:/etc", &dir], "No such container: nobody"),
        (
            ["box:/none", &dir],
            "Could not find the file /none in container box",
        ),
        (
            ["box:/etc/passwd/", &dir],
            "/etc/passwd/ is not a directory in container box",
        ),
        ([&none, "box:/tmp"], "/none"),
        (
            [&file, "box:/none/x"],
            "Could not find the file /none/x in container box",
        ),
        (
            [&file, "box:/none/"],
            "Could not find the file /none/ in container box",
        ),
        (
            [&dir, "box:/etc/passwd"],
            "Cannot copy a directory to /etc/passwd",
        ),
        (["box:/etc", &file], "Cannot copy a directory to"),
        (
            ["box:/etc/passwd", "/dev/null"],
            "Cannot copy over /dev/null",
        ),
        (
            ["box:/etc", &format!("{none}/x")],
            "Could not find the file",
        ),
        (["box:/etc", "box:/tmp"], "from one container to another"),
        ([&file, &dir], "CONTAINER:PATH"),
    ] {
        refused(case, &args, message)?;
    }
    case.hrun(["pause", "box"]).run()?.exits(0)?;
    refused(case, &["box:/etc", &dir], "box is paused")?;
    case.hrun(["unpause", "box"]).run()?.exits(0)?;
    crate::end(running)?;
    ensure!(fs::read_dir(case.path("dir"))?.next().is_none());
    Ok(())
}
