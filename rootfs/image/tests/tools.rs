//! Images that umoci makes and skopeo rewrites, compared with what umoci itself unpacks.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Progress, Store};

const TOOLS: [&str; 2] = ["umoci", "skopeo"];

fn tools_are_missing() -> bool {
    let missing: Vec<_> = TOOLS
        .into_iter()
        .filter(|tool| Command::new(tool).arg("--version").output().is_err())
        .collect();
    if missing.is_empty() {
        return false;
    }
    eprintln!(
        "==== SKIPPED: {} not installed; apt-get install them ====",
        missing.join(", ")
    );
    true
}

fn run(command: &str, args: &[&str]) {
    let output = Command::new(command).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{command} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The layers of an image stacked by overlayfs; unmounted on drop.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(layers: &[PathBuf]) -> Self {
        let lower: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let mount = Self(tempfile::tempdir().unwrap());
        let options = format!("lowerdir={}", lower.join(":"));
        run(
            "mount",
            &[
                "-t",
                "overlay",
                "-o",
                &options,
                "none",
                mount.path().to_str().unwrap(),
            ],
        );
        mount
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.path().to_str().unwrap()]);
    }
}

/// Everything about a tree that an image keeps, by path.
fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    let mut links: BTreeMap<u64, String> = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let kind = metadata.file_type();
        let mut text = format!(
            "{:o} {}:{} {}.{:09}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        if kind.is_symlink() {
            write!(text, " -> {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else if kind.is_file() {
            let data = fs::read(&path).unwrap();
            let sum = data
                .iter()
                .fold(0u64, |sum, b| sum.rotate_left(5) ^ u64::from(*b));
            write!(text, " {} bytes {sum:x}", data.len()).unwrap();
            if metadata.nlink() > 1 {
                let first = links.entry(metadata.ino()).or_insert_with(|| name.clone());
                write!(text, " linked {}", metadata.nlink()).unwrap();
                assert!(!first.is_empty());
            }
            let capability = xattr(&path, "security.capability");
            let user = xattr(&path, "user.comment");
            write!(text, " {capability:?} {user:?}").unwrap();
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                pending.push(entry.unwrap().path());
            }
        } else {
            assert!(kind.is_fifo(), "{name}");
        }
        found.insert(name, text);
    }
    found
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::getxattr(path, name, &mut value).ok()?;
    value.truncate(n);
    Some(value)
}

/// A small root file system with one of everything.
fn fill(root: &Path) {
    for dir in [
        "bin",
        "etc/conf.d",
        "tmp",
        "var/empty",
        "home/user",
        "opt/conf.d",
        "srv/a/b",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("bin/tool"), vec![0x7f; 100_000]).unwrap();
    fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/tool"), root.join("bin/other")).unwrap();
    symlink("tool", root.join("bin/sh")).unwrap();
    symlink("/bin/tool", root.join("etc/absolute")).unwrap();
    fs::write(root.join("etc/conf.d/a"), "a").unwrap();
    fs::write(root.join("etc/gone"), "gone").unwrap();
    fs::write(root.join("home/user/.profile"), "export X=1\n").unwrap();
    chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
    chown(root.join("home/user/.profile"), Some(1000), Some(100)).unwrap();
    let long = "long".repeat(50);
    fs::create_dir_all(root.join(&long)).unwrap();
    fs::write(root.join(&long).join(&long), "long").unwrap();
    fs::write(root.join("var/große Datei"), "ü").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("bin/tool"), "user.comment", b"one\ntwo", flags).unwrap();
    let capability = [&[1, 0, 0, 2, 0, 0x0a, 0, 0][..], &[0; 12]].concat();
    rustix::fs::setxattr(
        root.join("bin/tool"),
        "security.capability",
        &capability,
        flags,
    )
    .unwrap();
}

fn change(root: &Path) {
    fs::remove_file(root.join("etc/gone")).unwrap();
    fs::write(root.join("etc/new"), "new").unwrap();
    fs::remove_dir_all(root.join("home")).unwrap();
    fs::create_dir(root.join("home")).unwrap();
    fs::write(root.join("home/file"), "f").unwrap();
    fs::remove_dir_all(root.join("var")).unwrap();
    fs::write(root.join("var"), "now a file").unwrap();
    fs::remove_dir_all(root.join("opt")).unwrap();
    // Not to `etc`, which has a `conf.d` too: umoci follows the link and removes that one.
    symlink("tmp", root.join("opt")).unwrap();
    fs::remove_dir_all(root.join("srv")).unwrap();
    fs::write(root.join("bin/sh2"), "#!").unwrap();
}

struct Notes;

impl Progress for Notes {
    fn started(&self, _what: &image::Digest, _task: image::Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &image::Digest, _bytes: u64) {}
    fn finished(&self, _what: &image::Digest) {}
    fn note(&self, message: &str) {
        // umoci hides what was in a directory that became a link.
        let whiteout = message.starts_with("whiteout \"opt/.wh.conf.d\" left out");
        // skopeo 1.9 calls plain layers gzip.
        let plain = message.contains("is declared to be gzip, but is not compressed");
        assert!(whiteout || plain, "a good image causes a note: {message}");
    }
}

#[test]
fn images_of_other_tools_unpack_as_theirs_do() {
    if tools_are_missing() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let layout = at("busybox");
    let image = format!("{layout}:latest");
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    for (bundle, edit) in [("one", fill as fn(&Path)), ("two", change)] {
        run("umoci", &["unpack", "--image", &image, &at(bundle)]);
        edit(&dir.path().join(bundle).join("rootfs"));
        run("umoci", &["repack", "--image", &image, &at(bundle)]);
    }
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.cmd",
            "/bin/sh",
            "--config.user",
            "1000",
        ],
    );
    run("umoci", &["unpack", "--image", &image, &at("expected")]);
    let expected = describe(&dir.path().join("expected/rootfs"));
    assert!(expected.len() > 15);
    assert!(
        expected["bin/tool"].contains("[1, 0, 0, 2, 0, 10"),
        "{expected:?}"
    );

    for parent in ["zstd", "plain"] {
        fs::create_dir(dir.path().join(parent)).unwrap();
    }
    let copy = |to: &str, extra: &[&str]| {
        let from = format!("oci:{image}");
        let args = ["copy", "--insecure-policy", "-q"];
        run("skopeo", &[&args[..], extra, &[from.as_str(), to]].concat());
    };
    copy(&format!("oci-archive:{}:latest", at("busybox.tar")), &[]);
    copy(
        &format!("oci-archive:{}:example.org/app:v1", at("named.tar")),
        &[],
    );
    copy(
        &format!("docker-archive:{}:busybox:latest", at("saved.tar")),
        &[],
    );
    copy(
        &format!("oci:{}:latest", at("zstd/busybox")),
        &["--dest-compress-format", "zstd"],
    );
    // Layers of a docker archive are plain, and may stay so.
    let saved = format!("docker-archive:{}", at("saved.tar"));
    let plain = format!("oci:{}:latest", at("plain/busybox"));
    let accept = "--dest-oci-accept-uncompressed-layers";
    run(
        "skopeo",
        &["copy", "--insecure-policy", "-q", accept, &saved, &plain],
    );
    fs::create_dir(dir.path().join("saved")).unwrap();
    run("tar", &["-xf", &at("saved.tar"), "-C", &at("saved")]);
    run("gzip", &["-k", &at("busybox.tar")]);

    for (source, name) in [
        ("busybox", "busybox:latest"),
        ("busybox.tar", "busybox:latest"),
        ("busybox.tar.gz", "busybox:latest"),
        ("named.tar", "example.org/app:v1"),
        ("saved.tar", "busybox:latest"),
        ("saved", "busybox:latest"),
        ("zstd/busybox", "busybox:latest"),
        ("plain/busybox", "busybox:latest"),
    ] {
        let path = dir.path().join(source);
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let images = store.load(&path, &Notes).unwrap();
        let names: Vec<_> = images[0].names.iter().map(ToString::to_string).collect();
        assert_eq!(names, [name], "{source}");
        let mounted = Mounted::new(images[0].layers());
        let found = describe(mounted.path());
        for (path, text) in &expected {
            assert_eq!(found.get(path), Some(text), "{path} of {source}");
        }
        let more: Vec<_> = found
            .keys()
            .filter(|path| !expected.contains_key(*path))
            .collect();
        assert!(more.is_empty(), "{source} has {more:?}");
        let config = images[0].config.config().clone().unwrap();
        assert_eq!(config.cmd().as_deref(), Some(&["/bin/sh".to_owned()][..]));
        assert_eq!(config.user().as_deref(), Some("1000"));
    }
}
