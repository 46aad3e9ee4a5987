//! `hrun image`: what is loaded is what others packed.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Case, Store, Test};

pub(crate) fn tests() -> Vec<Test> {
    let empty = crate::tests![every_form_of_an_image_is_loaded_and_runs,];
    let without_vm = crate::tests![
        an_image_is_listed_inspected_and_removed,
        loading_twice_changes_nothing,
        a_flipped_bit_is_found,
        a_truncated_archive_is_refused,
        what_is_no_image_is_refused,
        limits_are_named_and_can_be_set,
        a_saved_image_is_what_others_load,
        the_store_is_measured_and_pruned,
    ];
    let layered = crate::tests![
        layers_are_stacked_as_they_say,
        the_configuration_of_an_image_is_honoured,
    ];
    empty
        .into_iter()
        .map(|test| test.on(Store::Empty))
        .chain(
            without_vm
                .into_iter()
                .map(|test| test.on(Store::Empty).without_vm()),
        )
        .chain(layered.into_iter().map(|test| test.on(Store::Layered)))
        .collect()
}

fn load(case: &Case, path: &Path) -> Result<tests::Outcome> {
    case.hrun(["image", "load"]).args([path]).run()
}

/// Removes all images, so that the store is as it was.
fn clear(case: &Case) -> Result<()> {
    for image in listed(case)? {
        let names = image["names"].as_array().context("an image has names")?;
        for name in names {
            let name = name.as_str().context("a name is text")?;
            case.hrun(["image", "rm", name]).run()?.exits(0)?;
        }
    }
    Ok(())
}

fn listed(case: &Case) -> Result<Vec<Value>> {
    let outcome = case
        .hrun(["image", "ls", "--format", "json"])
        .run()?
        .exits(0)?;
    serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())
}

fn every_form_of_an_image_is_loaded_and_runs(case: &Case) -> Result<()> {
    let variants = case.built().image("variants");
    for (file, name) in [
        (case.built().image("busybox/busybox"), "busybox"),
        (variants.join("oci.tar"), "busybox-oci"),
        (variants.join("docker.tar"), "busybox-docker"),
        (variants.join("zstd"), "busybox-zstd"),
    ] {
        load(case, &file)?.exits(0)?;
        let script = "[ \"$(busybox --list | wc -l)\" = \"$(ls /bin | wc -l)\" ] && id app";
        case.run([name, "sh", "-c", script])
            .run()?
            .prints("uid=1000(app) gid=1000(app) groups=1000(app),29(audio),50(staff)\n")
            .with_context(|| format!("{name} from {}", file.display()))?;
    }
    clear(case)
}

fn an_image_is_listed_inspected_and_removed(case: &Case) -> Result<()> {
    load(case, &case.built().image("busybox/busybox"))?.exits(0)?;
    let table = case.hrun(["image", "ls"]).run()?.exits(0)?;
    ensure!(table.text().contains("busybox"), "{}", table.describe());
    ensure!(listed(case)?.len() == 1);

    let outcome = case.hrun(["image", "inspect", "busybox"]).run()?.exits(0)?;
    let inspected: Value =
        serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())?;
    ensure!(
        inspected.to_string().contains("sha256:"),
        "{}",
        outcome.describe()
    );
    ensure!(
        inspected.to_string().contains("PATH=/usr/local/sbin"),
        "{}",
        outcome.describe()
    );

    case.hrun(["image", "rm", "busybox"]).run()?.exits(0)?;
    ensure!(listed(case)?.is_empty());
    for command in ["rm", "inspect"] {
        let outcome = case.hrun(["image", command, "busybox"]).run()?;
        ensure!(!outcome.status.success(), "{}", outcome.describe());
        ensure!(outcome.stderr.contains("busybox"), "{}", outcome.describe());
    }
    Ok(())
}

fn loading_twice_changes_nothing(case: &Case) -> Result<()> {
    for _ in 0..2 {
        load(case, &case.built().image("busybox/busybox"))?.exits(0)?;
        ensure!(listed(case)?.len() == 1);
    }
    clear(case)
}

/// A copy of the busybox layout that may be damaged.
fn copy(case: &Case) -> Result<std::path::PathBuf> {
    let copied = case.path("layout");
    let from = case.built().image("busybox/busybox");
    let from = from.to_str().context("a plain path")?;
    let to = copied.to_str().context("a plain path")?;
    case.with("cp", ["-r", from, to]).run()?.exits(0)?;
    Ok(copied)
}

fn a_flipped_bit_is_found(case: &Case) -> Result<()> {
    let layout = copy(case)?;
    let blobs: Vec<_> = fs::read_dir(layout.join("blobs/sha256"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(blobs.len() == 3, "{blobs:?}");
    for blob in blobs {
        let good = fs::read(&blob)?;
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&blob, bad)?;
        let outcome = load(case, &layout)?;
        ensure!(
            !outcome.status.success(),
            "{} in {}",
            outcome.describe(),
            blob.display()
        );
        let name = blob
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        ensure!(
            outcome.stderr.contains(&name[..12]),
            "the digest {name} is not named: {}",
            outcome.describe()
        );
        ensure!(listed(case)?.is_empty());
        fs::write(&blob, good)?;
    }
    Ok(())
}

fn a_truncated_archive_is_refused(case: &Case) -> Result<()> {
    let bytes = fs::read(case.built().image("variants/docker.tar"))?;
    let archive = case.path("short.tar");
    for length in [bytes.len() / 2, 1000, 0] {
        fs::write(&archive, &bytes[..length])?;
        let outcome = load(case, &archive)?;
        ensure!(
            !outcome.status.success(),
            "{length} bytes: {}",
            outcome.describe()
        );
        ensure!(listed(case)?.is_empty());
    }
    Ok(())
}

fn what_is_no_image_is_refused(case: &Case) -> Result<()> {
    let text = case.path("text");
    fs::write(&text, "no image\n".repeat(1000))?;
    let empty = case.path("empty");
    fs::create_dir(&empty)?;
    for path in [text, empty, case.path("nowhere")] {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        load(case, &path)?.is_refused_saying(&[&*name])?;
    }
    Ok(())
}

fn limits_are_named_and_can_be_set(case: &Case) -> Result<()> {
    let image = case.built().image("busybox/busybox");
    let load = |limits: &[(&str, &str)]| {
        let args = case.hrun(["image", "load"]).args([&image]);
        let set = |invocation: tests::Invocation, (name, value): &(&str, &str)| {
            invocation.env(format!("HRUN_LIMIT_{name}"), value)
        };
        limits.iter().fold(args, set).run()
    };
    for (name, value) in [
        ("ENTRIES", "3"),
        ("LAYER_SIZE", "100k"),
        ("MANIFEST_SIZE", "10"),
        ("LAYERS", "none"),
    ] {
        let variable = format!("HRUN_LIMIT_{name}");
        load(&[(name, value)])?.is_refused_saying(&[&variable])?;
        ensure!(listed(case)?.is_empty());
    }
    load(&[
        ("ENTRIES", "20000000"),
        ("LAYER_SIZE", "1t"),
        ("RATIO", "5"),
    ])?
    .exits(0)?;
    clear(case)
}

fn a_saved_image_is_what_others_load(case: &Case) -> Result<()> {
    load(case, &case.built().image("variants/layered"))?.exits(0)?;
    load(case, &case.built().image("busybox/busybox"))?.exits(0)?;
    let before = listed(case)?;
    let archive = case.path("saved.tar");
    let file = archive.to_str().context("a plain path")?;
    case.hrun(["image", "save", "-o", file, "layered", "busybox"])
        .run()?
        .exits(0)?;
    for name in ["layered", "busybox"] {
        let full = format!("docker.io/library/{name}:latest");
        for source in [
            format!("oci-archive:{file}:{full}"),
            format!("docker-archive:{file}:{full}"),
        ] {
            let to = format!("dir:{}", case.path("copied").display());
            case.with("skopeo", ["copy", "--quiet", &source, &to])
                .run()?
                .exits(0)
                .with_context(|| source.clone())?;
            fs::remove_dir_all(case.path("copied"))?;
        }
    }
    clear(case)?;
    load(case, &archive)?.exits(0)?;
    let ids = |images: &[Value]| -> Vec<(Value, Value)> {
        let pair = |image: &Value| (image["name"].clone(), image["id"].clone());
        images.iter().map(pair).collect()
    };
    ensure!(ids(&listed(case)?) == ids(&before));

    let outcome = case.hrun(["image", "save", "none"]).run()?;
    ensure!(outcome.status.code() == Some(1), "{}", outcome.describe());
    let gone = case.path("nowhere/x.tar");
    case.hrun(["image", "save", "busybox", "-o"])
        .args([gone])
        .run()?
        .is_refused_saying(&["nowhere"])?;
    clear(case)
}

fn the_store_is_measured_and_pruned(case: &Case) -> Result<()> {
    let measured = || -> Result<Value> {
        let outcome = case
            .hrun(["system", "df", "--format", "json"])
            .run()?
            .exits(0)?;
        Ok(serde_json::from_str(&outcome.text())?)
    };
    load(case, &case.built().image("busybox/busybox"))?.exits(0)?;
    load(case, &case.built().image("variants/layered"))?.exits(0)?;
    let before = measured()?;
    let images = &before["kinds"][0];
    ensure!(
        images["count"] == 2 && images["kind"] == "images",
        "{before}"
    );
    ensure!(images["reclaimable"] == images["size"], "{before}");
    // What du finds, but for directories, and documents and blocks that are not full.
    let store = case.store().join("images");
    let script = "cd \"$0\" && find blobs layers -type f -printf '%i %s\\n' | sort -u";
    let found = case
        .with(
            "sh",
            ["-c", script, store.to_str().context("a plain path")?],
        )
        .run()?
        .exits(0)?;
    let bytes: u64 = found
        .lines()
        .iter()
        .filter_map(|line| line.split_once(' ')?.1.parse::<u64>().ok())
        .sum();
    let size = images["size"].as_u64().context("a size")?;
    ensure!(
        size <= bytes && bytes - size < 64 << 10,
        "{size} and {bytes}"
    );

    let history = case
        .hrun(["image", "history", "busybox", "--format", "json"])
        .run()?
        .exits(0)?;
    let steps: Vec<Value> = serde_json::from_str(&history.text())?;
    let layers = steps.iter().filter(|step| step["size"].is_u64()).count();
    ensure!(layers == 1, "{steps:?}");

    case.hrun(["image", "prune", "-f"])
        .run()?
        .prints("0 B freed\n")?;
    ensure!(listed(case)?.len() == 2, "images with a name were removed");
    case.hrun(["image", "prune", "-a", "-f"]).run()?.exits(0)?;
    ensure!(listed(case)?.is_empty());
    let after = measured()?;
    ensure!(after["kinds"][0]["size"] == 0, "{after}");
    let table = case.hrun(["system", "df"]).run()?.exits(0)?;
    ensure!(table.text().contains("RECLAIMABLE"), "{}", table.describe());
    Ok(())
}

fn layers_are_stacked_as_they_say(case: &Case) -> Result<()> {
    let script = r#"
        cd /data
        ls
        cat kept/file becomes-dir/inside soft opaque/fresh
        ls opaque
        stat -c %h hard
        readlink absolute
        stat -c '%u %g %a' /srv/secret /srv/setuid
        [ -e /device ] || echo no device
        cat /tagged
    "#;
    let expected = "absolute\nbecomes-dir\nhard\nkept\nopaque\noriginal\nsoft\n\
                    kept\ninside\nlinked\nfresh\nfresh\n2\n/etc/passwd\n\
                    1000 50 640\n1000 50 4755\nno device\ntagged\n";
    case.run([
        "--entrypoint",
        "sh",
        "-u",
        "root",
        "-w",
        "/",
        "layered",
        "-c",
        script,
    ])
    .run()?
    .prints(expected)?;
    Ok(())
}

fn the_configuration_of_an_image_is_honoured(case: &Case) -> Result<()> {
    case.run(["layered"]).run()?.prints("entry default\n")?;
    case.run(["layered", "mine"])
        .run()?
        .prints("entry mine\n")?;
    let script = "id -un; pwd; echo $FROM_IMAGE $ADDED";
    case.run([
        "--entrypoint",
        "sh",
        "-e",
        "ADDED=yes",
        "layered",
        "-c",
        script,
    ])
    .run()?
    .prints("app\n/data/made\nyes yes\n")?;
    Ok(())
}
