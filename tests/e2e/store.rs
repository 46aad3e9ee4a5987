//! The image store under commands at once, kills and power cuts.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Case, Login, Registry, Store, Test};

/// Images that share their lower layers, each two, four or all of them.
const IMAGES: usize = 8;
/// How often a command is killed, and how often the power is cut.
const KILLS: u64 = 16;
const CUTS: u64 = 10;

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![
        pulls_and_prunes_at_once_do_not_disturb_each_other,
        a_pull_or_load_may_be_killed_at_any_moment,
        the_power_may_go_at_any_moment,
    ];
    let with_vm = crate::tests![pulls_runs_and_prunes_at_once_do_not_disturb_each_other];
    without_vm
        .map(Test::without_vm)
        .into_iter()
        .chain(with_vm)
        .map(|test| test.on(Store::Empty))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Writes a blob and gives its descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = hex(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest), bytes)?;
    let media_type = format!("application/vnd.oci.image.{kind}");
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
}

/// A layer with a file `name` and many small ones beside it.
fn layer(name: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes)
    };
    // Each digest of the one before: nothing that gzip makes smaller.
    let mut noise = hex(name.as_bytes());
    let mut bytes = Vec::new();
    while bytes.len() < 200_000 {
        noise = hex(noise.as_bytes());
        bytes.extend_from_slice(&Sha256::digest(&noise));
    }
    add(name, &bytes)?;
    for n in 0..60 {
        add(&format!("{name}.d/{n}"), noise.as_bytes())?;
    }
    Ok(archive.into_inner()?)
}

/// The layers of image `n`, bottom first.
fn layers_of(n: usize) -> [String; 4] {
    let (half, quarter) = (n % 2, n % 4);
    [
        "all".into(),
        format!("half{half}"),
        format!("quarter{quarter}"),
        format!("own{n}"),
    ]
}

/// All layers that there are.
fn all_layers() -> BTreeSet<String> {
    (0..IMAGES).flat_map(layers_of).collect()
}

/// Writes an OCI layout with the images `image0` and so on.
fn layout(case: &Case) -> Result<PathBuf> {
    let layout = case.path("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for n in 0..IMAGES {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for name in layers_of(n) {
            let layer = blob(&layout, "layer.v1.tar", &layer(&name)?)?;
            diff_ids.push(layer["digest"].clone());
            layers.push(layer);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = blob(&layout, "config.v1+json", config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = blob(&layout, "manifest.v1+json", manifest.to_string().as_bytes())?;
        let name = json!({"org.opencontainers.image.ref.name": format!("image{n}")});
        manifest["annotations"] = name;
        manifests.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(layout.join("index.json"), index.to_string())?;
    let version = r#"{"imageLayoutVersion": "1.0.0"}"#;
    fs::write(layout.join("oci-layout"), version)?;
    Ok(layout)
}

/// A registry that has all images.
fn registry(case: &Case, layout: &Path) -> Result<Registry> {
    let registry = Registry::start(case, "registry", Login::None)?;
    for n in 0..IMAGES {
        let source = format!("oci:{}:image{n}", layout.display());
        registry.push(case, &source, &format!("image{n}:1"), &[])?;
    }
    Ok(registry)
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn images(case: &Case) -> Result<Vec<Value>> {
    let args = ["image", "ls", "--format", "json"];
    let outcome = case.hrun(args).run()?.exits(0)?;
    serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())
}

/// Demands that the store is what its index says: every blob whole, every layer there, and nothing
/// else but interrupted downloads.
fn check(case: &Case) -> Result<()> {
    images(case)?;
    let store = case.store().join("images");
    let index: Value = serde_json::from_slice(&fs::read(store.join("index.json"))?)?;
    let mut blobs = BTreeSet::new();
    let mut digest = |value: &Value| {
        let text = value.as_str().context("a digest")?;
        blobs.insert(text.trim_start_matches("sha256:").to_owned());
        anyhow::Ok(())
    };
    for image in index["images"].as_array().context("images")? {
        digest(&image["id"])?;
        digest(&image["manifest"])?;
        for layer in image["layers"].as_array().context("layers")? {
            digest(&layer["blob"]["digest"])?;
        }
    }
    ensure!(names(&store.join("blobs/sha256"))? == blobs, "blobs");
    for name in &blobs {
        let bytes = fs::read(store.join("blobs/sha256").join(name))?;
        ensure!(hex(&bytes) == *name, "blob {name} is damaged");
    }
    let layers = index["layers"].as_object().context("layers")?;
    let layers: BTreeSet<_> = layers.keys().cloned().collect();
    ensure!(names(&store.join("layers"))? == layers, "layers");
    for layer in &layers {
        let unpacked = store.join("layers").join(layer);
        let found = names(&unpacked)?;
        let name = found.first().context("a layer has files")?;
        let many = names(&unpacked.join(format!("{name}.d")))?.len();
        ensure!(many == 60, "layer {name} has {many} files");
    }
    ensure!(names(&store.join("tmp"))?.is_empty(), "work is left");
    Ok(())
}

/// Removes everything and demands that nothing is left.
fn clear(case: &Case) -> Result<()> {
    case.hrun(["image", "prune", "-a", "-f"]).run()?.exits(0)?;
    ensure!(images(case)?.is_empty());
    check(case)?;
    let store = case.store().join("images");
    ensure!(names(&store.join("downloads"))?.is_empty(), "downloads");
    Ok(())
}

/// Pulls all images at once, while `prune` runs again and again.
fn pull_all(case: &Case, registry: &Registry, prune: &[&str]) -> Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pruned = scope.spawn(|| {
            let mut times = 0;
            while !done.load(Ordering::Relaxed) {
                case.hrun(prune.iter().copied()).run()?.exits(0)?;
                times += 1;
            }
            anyhow::Ok(times)
        });
        let pulls: Vec<_> = (0..IMAGES)
            .map(|n| {
                let name = registry.name(&format!("image{n}:1"));
                scope.spawn(move || case.hrun(["pull", &name]).run()?.exits(0))
            })
            .collect();
        let joined: Vec<_> = pulls
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        let times = pruned.join().map_err(|_| anyhow!("a thread panicked"))??;
        for pulled in joined {
            pulled.map_err(|_| anyhow!("a thread panicked"))??;
        }
        ensure!(times > 0, "nothing was pruned");
        Ok(())
    })
}

fn pulls_and_prunes_at_once_do_not_disturb_each_other(case: &Case) -> Result<()> {
    let registry = registry(case, &layout(case)?)?;
    let store = case.store().join("images");
    pull_all(case, &registry, &["image", "prune", "-f"])?;
    check(case)?;
    ensure!(images(case)?.len() == IMAGES);
    let layers = names(&store.join("layers"))?.len();
    ensure!(layers == all_layers().len(), "{layers} layers are stored");
    let blobs = names(&store.join("blobs/sha256"))?.len();
    ensure!(blobs == layers + 2 * IMAGES, "{blobs} blobs are stored");

    // Somebody uses one image, as a container does; all others may go at any time.
    let name = registry.name("image3:1");
    let inspected = case.hrun(["image", "inspect", &name]).run()?.exits(0)?;
    let inspected: Value = serde_json::from_str(&inspected.text())?;
    let id = inspected[0]["id"].as_str().context("an id")?;
    let lock = store.join("use").join(id.trim_start_matches("sha256:"));
    let lock = lock.to_str().context("a plain path")?;
    fs::write(lock, "")?;
    let user = [
        "--shared",
        "--no-fork",
        lock,
        "sh",
        "-c",
        "echo ready; read line",
    ];
    let user = case.with("flock", user).stdin_open().spawn()?;
    user.wait_for("ready")?;
    for _ in 0..3 {
        pull_all(case, &registry, &["image", "prune", "-a", "-f"])?;
        check(case)?;
        case.hrun(["image", "inspect", id]).run()?.exits(0)?;
        for layer in inspected[0]["layers"].as_array().context("layers")? {
            let layer = Path::new(layer.as_str().context("a path")?);
            ensure!(layer.is_dir(), "{} is gone", layer.display());
        }
    }
    drop(user);
    clear(case)
}

/// Four images that share their layers are pulled and run at once, while `prune` runs.
fn pulls_runs_and_prunes_at_once_do_not_disturb_each_other(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::None)?;
    case.hrun(["image", "load"])
        .args([case.built().image("busybox/busybox")])
        .run()?
        .exits(0)?;
    let made = [
        "run",
        "--name",
        "made",
        "busybox",
        "sh",
        "-c",
        "echo new >/new",
    ];
    case.hrun(made).run()?.exits(0)?;
    let names: Vec<String> = (0..4)
        .map(|n| registry.name(&format!("app{n}:1")))
        .collect();
    for (n, name) in names.iter().enumerate() {
        let change = format!("ENV NUMBER={n}");
        let commit = ["commit", "-c", &change, "made", name];
        case.hrun(commit).run()?.exits(0)?;
        case.hrun(["push", name]).run()?.exits(0)?;
        case.hrun(["image", "rm", name]).run()?.exits(0)?;
    }
    case.hrun(["rm", "made"]).run()?.exits(0)?;
    case.hrun(["image", "rm", "busybox"]).run()?.exits(0)?;
    case.hrun(["image", "prune", "-f"]).run()?.exits(0)?;
    ensure!(images(case)?.is_empty());

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let prune = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                case.hrun(["image", "prune", "-f"]).run()?.exits(0)?;
            }
            anyhow::Ok(())
        });
        let pulls = names
            .iter()
            .map(|name| scope.spawn(move || case.hrun(["pull", name]).run()?.exits(0)));
        let pulls: Vec<_> = pulls.collect();
        let script = "cat /new; echo $NUMBER";
        let run = |name| {
            case.run(["--pull", "always", name, "sh", "-c", script])
                .timeout(Duration::from_secs(120))
        };
        let runs = names
            .iter()
            .enumerate()
            .map(|(n, name)| scope.spawn(move || run(name).run()?.prints(&format!("new\n{n}\n"))));
        let runs: Vec<_> = runs.collect();
        let joined: Vec<_> = pulls
            .into_iter()
            .chain(runs)
            .map(|one| one.join())
            .collect();
        done.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        prune.join().map_err(panicked)??;
        for one in joined {
            one.map_err(panicked)??;
        }
        anyhow::Ok(())
    })?;
    ensure!(images(case)?.len() == names.len());
    let layers = layers_stored(case)?;
    ensure!(layers == 2, "{layers} layers are stored");
    clear(case)
}

fn layers_stored(case: &Case) -> Result<usize> {
    Ok(names(&case.store().join("images/layers"))?.len())
}

fn a_pull_or_load_may_be_killed_at_any_moment(case: &Case) -> Result<()> {
    let layout = layout(case)?;
    let registry = registry(case, &layout)?;
    let layout = layout.to_str().context("a plain path")?;
    let name = registry.name("image1:1");
    let commands = [["image", "load", layout].to_vec(), ["pull", &name].to_vec()];
    let mut killed = 0;
    for command in &commands {
        let started = Instant::now();
        case.hrun(command.iter().copied()).run()?.exits(0)?;
        let whole = started.elapsed();
        clear(case)?;
        for n in 0..KILLS {
            let running = case.hrun(command.iter().copied()).spawn()?;
            // Evenly over the time that it takes; the machine makes it random.
            thread::sleep(whole.mul_f64((n as f64 + 0.5) / KILLS as f64));
            let ended = running.signal(Signal::KILL).is_err();
            let outcome = running.wait()?;
            if !ended && outcome.status.code().is_none() {
                killed += 1;
            }
            check(case)?;
        }
        case.hrun(command.iter().copied()).run()?.exits(0)?;
        check(case)?;
        clear(case)?;
    }
    ensure!(killed > KILLS / 2, "{killed} commands were killed");
    Ok(())
}

/// Cuts the power: `sh -c CUT HRUN DISK MOUNT LAYOUT SECONDS`.
///
/// The store is on an ext4 of its own, on a loop device that writes to a file. What the file
/// system has not written to the file is in memory only, and lost if the power goes: so hrun is
/// stopped at some moment, in which it waits for no write, and the file is copied. Nothing else
/// makes the file system write meanwhile, as its commit interval is long. The copy is mounted as
/// after a power cut: its journal is replayed, and hrun has to live with what there is.
const CUT: &str = r#"
set -eu
disk=$1 at=$2 layout=$3 seconds=$4
export HRUN_STORE="$at/store"
mount -o loop,commit=300 "$disk" "$at"
"$0" image load --quiet "$layout" >/dev/null & pid=$!
if [ "$seconds" = all ]; then
    wait $pid
else
    sleep "$seconds"
    if kill -STOP $pid 2>/dev/null; then
        while cut -d' ' -f3 /proc/$pid/task/*/stat | grep -qv '[TZ]'; do sleep 0.01; done
    fi
fi
cp --sparse=always "$disk" "$disk.cut"
kill -KILL $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
umount "$at"

mount -o loop "$disk.cut" "$at"
contents() {
    "$0" image ls --quiet --no-trunc | sort
    for id in $("$0" image ls --quiet --no-trunc); do "$0" image save "$id" >/dev/null; done
    (cd "$at/store/images" && find layers blobs tmp -type f -exec sha256sum {} + | sort -k 2)
}
contents
echo ---
"$0" image load --quiet "$layout" >/dev/null
contents
umount "$at"
rm "$disk.cut"
"#;

fn the_power_may_go_at_any_moment(case: &Case) -> Result<()> {
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("==== SKIPPED: there are no loop devices here ====");
        return Ok(());
    }
    let layout = layout(case)?;
    let layout = layout.to_str().context("a plain path")?;
    let (disk, at) = (case.path("disk"), case.path("mount"));
    fs::create_dir(&at)?;
    let (disk_name, at) = (
        disk.to_str().context("a path")?,
        at.to_str().context("a path")?,
    );
    let hrun = case.built().hrun();
    let hrun = hrun.to_str().context("a plain path")?;
    // Gives what was there after the cut and after another load, and how long all took.
    let cut = |seconds: &str| {
        let make = ["--size=160M", disk_name];
        case.with("truncate", make).run()?.exits(0)?;
        case.with("mkfs.ext4", ["-q", "-F", disk_name])
            .run()?
            .exits(0)?;
        let outcome = case
            .with(
                "unshare",
                ["--mount", "--propagation", "private", "sh", "-c"],
            )
            .args([CUT, hrun, disk_name, at, layout, seconds])
            .run()?
            .exits(0)
            .with_context(|| format!("the power went after {seconds} seconds"))?;
        fs::remove_file(&disk)?;
        let text = outcome.text();
        let (cut, loaded) = text.split_once("---\n").context("two lists")?;
        anyhow::Ok((cut.to_owned(), loaded.to_owned()))
    };
    // A load that said that it was done is done.
    let started = Instant::now();
    let (whole, again) = cut("all")?;
    let took = started.elapsed();
    ensure!(whole == again, "a load was lost:\n{whole}\n{again}");
    ensure!(whole.lines().count() > IMAGES + all_layers().len() * 61);
    let mut unfinished = 0;
    for n in 0..CUTS {
        let seconds = took.mul_f64((n as f64 + 0.5) / CUTS as f64 / 2.0);
        let seconds = seconds.max(Duration::from_millis(1)).as_secs_f64();
        let (found, loaded) = cut(&format!("{seconds:.3}"))?;
        ensure!(loaded == whole, "after {seconds} s:\n{loaded}\n{whole}");
        let mut lines = found.lines();
        let strange = lines.find(|line| !whole.lines().any(|good| good == *line));
        ensure!(strange.is_none(), "after {seconds} s: {strange:?}");
        unfinished += u64::from(found != whole);
    }
    ensure!(unfinished > 0, "every load was done before its cut");
    Ok(())
}
