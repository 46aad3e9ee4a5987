//! What becomes of a container that has run: diff, commit, export, import.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Case, Outcome, Store, Test};

use crate::PATIENT;

pub(crate) fn tests() -> Vec<Test> {
    let with_vm = crate::tests![
        what_a_container_changed_is_shown_and_becomes_an_image,
        what_was_committed_is_what_others_load,
        a_container_that_runs_can_be_committed,
        an_image_of_a_container_runs_what_that_ran,
        an_export_becomes_an_image_of_one_layer,
        an_image_that_a_container_needs_stays,
        a_container_that_changed_nothing_has_no_diff,
    ];
    let without_vm = crate::tests![
        a_root_file_system_is_imported,
        what_cannot_be_committed_is_refused,
    ];
    with_vm
        .into_iter()
        .chain(without_vm.into_iter().map(Test::without_vm))
        .map(|test| test.on(Store::Busybox))
        .collect()
}

/// Runs a script in a container that stays.
fn leave(case: &Case, name: &str, script: &str) -> Result<()> {
    case.hrun(["run", "--name", name, "busybox", "sh", "-c", script])
        .run()?
        .exits(0)?;
    Ok(())
}

fn hrun(case: &Case, args: &[&str]) -> Result<Outcome> {
    case.hrun(args).run()?.exits(0)
}

/// Removes everything that a test made, so that the store is as it was.
fn clear(case: &Case, containers: &[&str]) -> Result<()> {
    for name in containers {
        hrun(case, &["rm", "-f", name])?;
    }
    let listed = hrun(case, &["image", "ls", "--format", "json"])?;
    let images: Vec<Value> = serde_json::from_str(&listed.text())?;
    for image in images {
        if image["name"] != "busybox:latest" {
            let id = image["id"].as_str().context("an image has an id")?;
            hrun(case, &["image", "rm", "-f", id])?;
        }
    }
    Ok(())
}

fn inspect(case: &Case, image: &str) -> Result<Value> {
    let outcome = hrun(case, &["image", "inspect", image])?;
    let mut images: Vec<Value> = serde_json::from_str(&outcome.text())?;
    images.pop().context("one image was asked for")
}

/// Something of everything that a layer can say.
const CHANGES: &str = "echo x > /new; ln /new /hard; ln -s /new /soft; rm /etc/group; \
    rm -r /home; mkdir /home; echo y > /home/fresh; chmod 700 /var; chown 7:8 /tmp; \
    mkdir -p /a/b; echo me >> /etc/passwd";

/// What looks at that.
const LOOK: &str = "cat /new /soft; stat -c %h /new; ls /home /etc; \
    stat -c '%a %u %g %n' /var /tmp /a/b; tail -n 1 /etc/passwd";
const SEEN: &str = "x\nx\n2\n/etc:\nhostname\nhosts\nmachine-id\npasswd\n\n/home:\nfresh\n\
    700 0 0 /var\n1777 7 8 /tmp\n755 0 0 /a/b\nme\n";

fn what_a_container_changed_is_shown_and_becomes_an_image(case: &Case) -> Result<()> {
    leave(case, "changed", CHANGES)?;
    case.hrun(["diff", "changed"]).run()?.prints(
        "A /a\nA /a/b\nC /etc\nD /etc/group\nC /etc/passwd\nA /hard\nC /home\nD /home/app\n\
         A /home/fresh\nA /new\nA /soft\nC /tmp\nC /var\n",
    )?;
    let json = hrun(case, &["diff", "--format", "json", "changed"])?;
    let changes: Vec<Value> = serde_json::from_str(&json.text())?;
    ensure!(changes.len() == 13, "{changes:?}");
    ensure!(
        changes[3] == serde_json::json!({"kind": "deleted", "path": "/etc/group"}),
        "{changes:?}"
    );

    let id = hrun(
        case,
        &["commit", "-a", "me", "-m", "why", "changed", "new:1"],
    )?;
    let image = inspect(case, "new:1")?;
    ensure!(image["id"] == id.text().trim(), "{}", id.describe());
    ensure!(image["config"]["author"] == "me", "{image}");
    ensure!(image["config"]["history"][2]["comment"] == "why", "{image}");
    let layers = image["manifest"]["layers"].as_array().context("layers")?;
    ensure!(layers.len() == 2, "{image}");
    case.run(["new:1", "sh", "-c", LOOK]).run()?.prints(SEEN)?;
    clear(case, &["changed"])
}

fn what_was_committed_is_what_others_load(case: &Case) -> Result<()> {
    leave(case, "changed", CHANGES)?;
    hrun(case, &["commit", "changed", "new:1"])?;
    let archive = case.path("saved.tar");
    let file = archive.to_str().context("a plain path")?;
    hrun(case, &["image", "save", "-o", file, "new:1"])?;

    // What umoci unpacks is what the container had.
    let layout = case.path("layout");
    let copied = format!("oci:{}:new", layout.display());
    for source in ["oci-archive", "docker-archive"] {
        let source = format!("{source}:{file}:docker.io/library/new:1");
        case.with("skopeo", ["copy", "--quiet", &source, &copied])
            .run()?
            .exits(0)?;
    }
    let bundle = case.path("bundle");
    let image = format!("{}:new", layout.display());
    case.with("umoci", ["unpack", "--image", &image])
        .args([&bundle])
        .run()?
        .exits(0)?;
    let root = bundle.join("rootfs");
    let read = |path: &str| fs::read_to_string(root.join(path));
    ensure!(read("new")? == "x\n" && read("home/fresh")? == "y\n");
    ensure!(!root.join("etc/group").exists() && !root.join("home/app").exists());

    // What umoci makes of it is loaded here.
    fs::write(root.join("by-umoci"), "z\n")?;
    case.with("umoci", ["repack", "--image", &format!("{image}-2")])
        .args([&bundle])
        .run()?
        .exits(0)?;
    let loaded = case.hrun(["image", "load"]).args([&layout]).run()?;
    loaded.exits(0)?;
    case.run(["layout:new-2", "sh", "-c", "cat /by-umoci /new; ls /home"])
        .run()?
        .prints("z\nx\nfresh\n")?;
    clear(case, &["changed"])
}

fn a_container_that_runs_can_be_committed(case: &Case) -> Result<()> {
    let script = format!("echo x > /new; {PATIENT}");
    let running = case
        .hrun(["run", "--name", "runs", "busybox", "sh", "-c", &script])
        .spawn()?;
    running.wait_for("ready")?;
    case.hrun(["diff", "runs"]).run()?.prints("A /new\n")?;
    hrun(case, &["commit", "runs", "new"])?;
    hrun(case, &["commit", "--pause=false", "runs", "new:2"])?;
    case.hrun(["image", "rm", "--force", "busybox"])
        .run()?
        .is_refused_saying(&["runs", "hrun rm -f runs"])?;
    // It goes on.
    crate::end(running)?;
    case.run(["new", "cat", "/new"]).run()?.prints("x\n")?;
    clear(case, &["runs"])
}

fn an_image_of_a_container_runs_what_that_ran(case: &Case) -> Result<()> {
    case.hrun([
        "run",
        "--name",
        "ran",
        "-e",
        "A=b",
        "-u",
        "app",
        "-w",
        "/tmp",
        "busybox",
        "sh",
        "-c",
        "id -un; pwd; echo $A $C",
    ])
    .run()?
    .prints("app\n/tmp\nb\n")?;
    hrun(case, &["commit", "ran", "same"])?;
    case.run(["same"]).run()?.prints("app\n/tmp\nb\n")?;
    hrun(
        case,
        &[
            "commit",
            "-c",
            "ENV C=\"c d\"",
            "-c",
            "USER root",
            "-c",
            "WORKDIR /",
            "ran",
            "other",
        ],
    )?;
    case.run(["other"]).run()?.prints("root\n/\nb c d\n")?;
    clear(case, &["ran"])
}

fn an_export_becomes_an_image_of_one_layer(case: &Case) -> Result<()> {
    leave(case, "changed", CHANGES)?;
    let archive = case.path("export.tar");
    let file = archive.to_str().context("a plain path")?;
    hrun(case, &["export", "-o", file, "changed"])?;
    let listed = case.with("tar", ["-tf", file]).run()?.exits(0)?;
    for (name, is_there) in [("new", true), ("bin/busybox", true), ("etc/group", false)] {
        let found = listed.lines().iter().any(|line| *line == name);
        ensure!(found == is_there, "{name}: {}", listed.describe());
    }
    hrun(
        case,
        &["import", "-c", "CMD [\"cat\", \"/new\"]", file, "flat:1"],
    )?;
    ensure!(inspect(case, "flat:1")?["layers"].as_array().map(Vec::len) == Some(1));
    case.run(["flat:1"]).run()?.prints("x\n")?;
    case.run(["flat:1", "sh", "-c", LOOK]).run()?.prints(SEEN)?;
    clear(case, &["changed"])
}

fn an_image_that_a_container_needs_stays(case: &Case) -> Result<()> {
    leave(case, "needs-it", "true")?;
    hrun(case, &["image", "tag", "busybox", "again"])?;
    hrun(case, &["image", "rm", "busybox"])?;
    case.hrun(["image", "rm", "again"])
        .run()?
        .is_refused_saying(&["needs-it", "hrun rm needs-it"])?;
    // Pruning takes the container first, and then nothing holds the image.
    let pruned = hrun(case, &["system", "prune", "-f"])?;
    ensure!(
        pruned.text().contains("Removed container needs-it") && pruned.text().contains("freed"),
        "{}",
        pruned.describe()
    );
    ensure!(!pruned.text().contains("Deleted"), "{}", pruned.describe());
    hrun(case, &["image", "tag", "again", "busybox"])?;
    hrun(case, &["image", "rm", "again"])?;

    leave(case, "needs-it", "true")?;
    hrun(case, &["commit", "needs-it", "child"])?;
    let id = inspect(case, "child")?["id"].clone();
    case.hrun(["run", "--name", "of-child", "child"])
        .run()?
        .exits(0)?;
    let id = id.as_str().context("an image has an id")?;
    hrun(case, &["image", "rm", "--force", id])?;
    case.hrun(["diff", "of-child"])
        .run()?
        .is_refused_saying(&["of-child", "child"])?;
    clear(case, &["needs-it", "of-child"])
}

fn a_container_that_changed_nothing_has_no_diff(case: &Case) -> Result<()> {
    leave(case, "idle", "cat /etc/passwd > /dev/null")?;
    case.hrun(["diff", "idle"]).run()?.prints("")?;
    hrun(case, &["commit", "idle", "same"])?;
    let (old, new) = (inspect(case, "busybox")?, inspect(case, "same")?);
    ensure!(old["size"] == new["size"], "{new}");
    clear(case, &["idle"])
}

fn a_root_file_system_is_imported(case: &Case) -> Result<()> {
    let root = case.path("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::write(root.join("bin/sh"), "#!")?;
    let archive = |form: &str, name: &str| -> Result<std::path::PathBuf> {
        let path = case.path(name);
        let tar = case.with("tar", ["-C", root.to_str().context("a path")?, form, "-cf"]);
        tar.args([path.as_path(), Path::new(".")]).run()?.exits(0)?;
        Ok(path)
    };
    let plain = archive("--format=gnu", "plain.tar")?;
    let gzip = archive("--gzip", "root.tar.gz")?;
    for path in [&plain, &gzip] {
        case.hrun(["image", "import", "-m", "mine"])
            .args([path.as_path(), Path::new("root:1")])
            .run()?
            .exits(0)?;
        let image = inspect(case, "root:1")?;
        ensure!(
            image["config"]["history"][0]["comment"] == "mine",
            "{image}"
        );
        let layer = image["layers"][0].as_str().context("a layer")?;
        ensure!(fs::read_to_string(Path::new(layer).join("bin/sh"))? == "#!");
    }
    case.hrun(["import", "-"])
        .stdin(fs::read(&gzip)?)
        .run()?
        .exits(0)?;
    clear(case, &[])
}

fn what_cannot_be_committed_is_refused(case: &Case) -> Result<()> {
    for command in ["diff", "commit", "export"] {
        case.hrun([command, "nobody"])
            .run()?
            .is_refused_saying(&["No such container: nobody"])?;
    }
    let change = case
        .hrun(["commit", "-c", "RUN x", "nobody"])
        .run()?
        .exits(2)?;
    ensure!(change.stderr.contains("CMD"), "{}", change.describe());
    let text = case.path("text");
    fs::write(&text, "no archive\n".repeat(1000))?;
    case.hrun(["import"])
        .args([&text])
        .run()?
        .is_refused_saying(&["text"])?;
    fs::write(&text, "")?;
    case.hrun(["import"])
        .args([&text])
        .run()?
        .is_refused_saying(&["text", "empty"])?;
    Ok(())
}
