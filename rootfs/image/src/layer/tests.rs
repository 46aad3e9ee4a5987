mod changes;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::Digest;
use crate::testing::Tar;

/// Directories for one layer, and a canary beside them that nothing may touch.
struct Bench {
    dir: tempfile::TempDir,
    notes: Mutex<Vec<String>>,
    limits: Limits,
    lower: Vec<PathBuf>,
}

impl Progress for Bench {
    fn started(&self, _what: &Digest, _task: crate::Task, _total_bytes: u64) {}
    fn advanced(&self, _what: &Digest, _bytes: u64) {}
    fn finished(&self, _what: &Digest) {}
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/bird"), "alive").unwrap();
        Self {
            dir,
            notes: Mutex::default(),
            limits: Limits::default(),
            lower: Vec::new(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn unpack(&self, tar: Tar) -> Result<Summary, LayerError> {
        self.unpack_bytes(&tar.finish())
    }

    fn unpack_bytes(&self, bytes: &[u8]) -> Result<Summary, LayerError> {
        let trash = self.dir.path().join("trash");
        for path in [&self.root(), &trash] {
            let _ = fs::remove_dir_all(path);
            fs::create_dir(path).unwrap();
        }
        let result = unpack(
            bytes,
            fs::File::open(self.root()).unwrap().as_fd(),
            &self.lower,
            fs::File::open(&trash).unwrap().into(),
            &self.limits,
            self,
        );
        assert_eq!(
            fs::read_dir(&trash).unwrap().count(),
            0,
            "the trash was emptied"
        );
        self.assert_canary();
        result
    }

    fn assert_canary(&self) {
        let canary = self.dir.path().join("canary");
        assert_eq!(fs::read_to_string(canary.join("bird")).unwrap(), "alive");
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| {
                !["root", "trash", "canary"]
                    .iter()
                    .any(|known| name == known)
            })
            .filter(|name| !name.as_bytes().starts_with(b"lower"))
            .collect();
        assert!(names.is_empty(), "{names:?}");
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let n = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(n);
    Some(value)
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn is_whiteout_file(path: &Path) -> bool {
    let metadata = path.symlink_metadata().unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

#[test]
fn entries_get_their_contents_owner_mode_and_time() {
    let bench = Bench::new();
    let summary = bench
        .unpack(
            Tar::new()
                .entry(b'5', "./", "", 0o711, b"")
                .entry(b'5', "d", "", 0o1700, b"")
                .pax(&[("mtime", b"1000.123456789")])
                .entry(b'0', "d/suid", "", 0o6755, b"hello")
                .entry(b'6', "d/fifo", "", 0o2600, b"")
                .symlink("d/link", "/nowhere")
                .hard_link("again", "d/suid"),
        )
        .unwrap();
    assert_eq!(summary.bytes, 5);
    assert_eq!(
        (summary.entries, summary.depends_on_lower, summary.opaque),
        (6, false, false)
    );
    let root = bench.root().metadata().unwrap();
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.mtime()),
        (0o711, 1000, 1_234_567_890)
    );
    let dir = bench.at("d").metadata().unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o1700, 1_234_567_890));
    let suid = bench.at("d/suid").metadata().unwrap();
    assert_eq!(
        (suid.mode() & 0o7777, suid.uid(), suid.gid()),
        (0o6755, 1000, 1001)
    );
    assert_eq!((suid.mtime(), suid.mtime_nsec()), (1000, 123_456_789));
    assert_eq!(fs::read(bench.at("again")).unwrap(), b"hello");
    assert_eq!(bench.at("again").metadata().unwrap().ino(), suid.ino());
    let fifo = bench.at("d/fifo").symlink_metadata().unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(
        (fifo.mode() & 0o7777, fifo.mtime()),
        (0o2600, 1_234_567_890)
    );
    let link = bench.at("d/link").symlink_metadata().unwrap();
    assert_eq!(
        (link.uid(), link.gid(), link.mtime()),
        (1000, 1001, 1_234_567_890)
    );
    assert_eq!(
        fs::read_link(bench.at("d/link")).unwrap(),
        Path::new("/nowhere")
    );
    assert_eq!(bench.notes(), "");
}

#[test]
fn long_and_strange_names_are_kept() {
    let bench = Bench::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let target = "t".repeat(300);
    bench
        .unpack(
            Tar::new()
                .file(&long, b"x")
                .symlink("link", &target)
                .pax(&[("path", b"not\xffutf8\n")])
                .file("x", b"y"),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at(&long)).unwrap(), b"x");
    assert_eq!(
        fs::read_link(bench.at("link")).unwrap().as_os_str().len(),
        300
    );
    let strange = bench
        .root()
        .join(std::ffi::OsStr::from_bytes(b"not\xffutf8\n"));
    assert_eq!(fs::read(strange).unwrap(), b"y");
}

#[test]
fn whiteouts_take_overlayfs_form() {
    let bench = Bench::new();
    let summary = bench
        .unpack(
            Tar::new()
                .dir("a")
                .file("a/.wh.gone", b"")
                .dir("b")
                .file("b/.wh..wh..opq", b"")
                .file("b/new", b"n")
                .file(".wh..wh.plnk", b"")
                .file("c/.wh..wh.aufs/x", b""),
        )
        .unwrap();
    assert!(is_whiteout_file(&bench.at("a/gone")));
    assert!(!bench.at("a/.wh.gone").exists());
    assert!(is_opaque(&bench.at("b")));
    assert!(!is_opaque(&bench.at("a")));
    assert_eq!(fs::read_dir(bench.at("b")).unwrap().count(), 1);
    assert!(!bench.at(".wh..wh.plnk").exists() && !bench.at("c").exists());
    assert!(!summary.opaque);
    assert!(
        bench
            .unpack(Tar::new().file(".wh..wh..opq", b""))
            .unwrap()
            .opaque
    );
}

#[test]
fn a_whiteout_hides_what_is_below_not_what_its_layer_has() {
    let bench = Bench::new();
    bench
        .unpack(
            Tar::new()
                .file("file1", b"1")
                .file(".wh.file1", b"")
                .file(".wh.file2", b"")
                .file("file2", b"2")
                .dir("dir1")
                .file("dir1/x", b"")
                .file(".wh.dir1", b"")
                .file(".wh.dir2", b"")
                .dir("dir2")
                .file(".wh.dir3", b"")
                .file("dir3/sub/x", b""),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at("file1")).unwrap(), b"1");
    assert_eq!(fs::read(bench.at("file2")).unwrap(), b"2");
    for dir in ["dir1", "dir2", "dir3"] {
        assert!(is_opaque(&bench.at(dir)), "{dir}");
    }
    assert!(bench.at("dir1/x").exists() && bench.at("dir3/sub/x").exists());
}

#[test]
fn overlayfs_shows_layers_as_the_image_means_them() {
    let (lower, upper) = (Bench::new(), Bench::new());
    lower
        .unpack(
            Tar::new()
                .file("etc/a", b"a")
                .file("etc/b", b"b")
                .file("opt/old", b"o")
                .file("dir/x", b"x"),
        )
        .unwrap();
    upper
        .unpack(
            Tar::new()
                .file("etc/.wh.a", b"")
                .file("opt/.wh..wh..opq", b"")
                .file("opt/new", b"n")
                .file(".wh.dir", b"")
                .file("dir/y", b"y"),
        )
        .unwrap();
    let mount = tempfile::tempdir().unwrap();
    let lowerdir = format!(
        "lowerdir={}:{}",
        upper.root().display(),
        lower.root().display()
    );
    let status = std::process::Command::new("mount")
        .args(["-t", "overlay", "-o", &lowerdir, "none"])
        .arg(mount.path())
        .status()
        .unwrap();
    assert!(
        status.success(),
        "mounting an overlay needs root and its kernel module"
    );
    let list = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(mount.path().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    };
    let seen = [list("etc"), list("opt"), list("dir")];
    assert!(
        std::process::Command::new("umount")
            .arg(mount.path())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(seen, ["b", "new", "y"]);
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let bench = Bench::new();
    bench
        .unpack(
            Tar::new()
                .file("a", b"old")
                .hard_link("b", "a")
                .file("a", b"new")
                .dir("d")
                .file("d/deep/x", b"x")
                .file("d", b"now a file")
                .file("e", b"file")
                .dir("e")
                .file("e/x", b"x")
                .symlink("s", "e")
                .dir("s")
                .file("s/y", b"y")
                .dir("e")
                .symlink("l", "a")
                .file("l", b"own"),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at("a")).unwrap(), b"new");
    assert_eq!(
        fs::read(bench.at("b")).unwrap(),
        b"old",
        "a hard link keeps the old contents"
    );
    assert_eq!(fs::read(bench.at("d")).unwrap(), b"now a file");
    assert!(
        bench.at("e/x").exists(),
        "a directory again keeps what is in it"
    );
    assert!(bench.at("s").symlink_metadata().unwrap().is_dir());
    assert!(!bench.at("e/y").exists());
    assert_eq!(fs::read(bench.at("l")).unwrap(), b"own");
}

#[test]
fn implied_directories_take_after_the_layers_below() {
    let lower = Bench::new();
    lower
        .unpack(
            Tar::new()
                .entry(b'5', "tmp", "", 0o1777, b"")
                .dir("etc")
                .file("f", b""),
        )
        .unwrap();
    let top = Bench::new();
    top.unpack(Tar::new().file(".wh.etc", b"")).unwrap();
    let mut bench = Bench::new();
    bench.lower = vec![top.root(), lower.root()];
    let summary = bench
        .unpack(
            Tar::new()
                .file("tmp/x", b"")
                .file("etc/y", b"")
                .file("new/sub/z", b""),
        )
        .unwrap();
    assert!(summary.depends_on_lower);
    assert_eq!(summary.entries, 7);
    let tmp = bench.at("tmp").metadata().unwrap();
    assert_eq!(
        (tmp.mode() & 0o7777, tmp.uid(), tmp.mtime()),
        (0o1777, 1000, 1_234_567_890)
    );
    for dir in ["etc", "new", "new/sub"] {
        let metadata = bench.at(dir).metadata().unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid()),
            (0o755, 0),
            "{dir}"
        );
    }
}

#[test]
fn directories_keep_their_time_whatever_comes_into_them_and_when() {
    let bench = Bench::new();
    bench
        .unpack(
            Tar::new()
                .dir("a")
                .file("a/1", b"")
                .dir("b")
                .file("a/2", b"")
                .file("b/implied/x", b"")
                .file("a/1", b"again")
                .file("b/.wh.w", b"")
                .dir("b/w")
                .file("b/.wh.v", b"")
                .dir("c")
                .file("b/v/x", b""),
        )
        .unwrap();
    for dir in ["a", "b", "b/implied", "b/w", "b/v", "c"] {
        assert_eq!(
            bench.at(dir).metadata().unwrap().mtime(),
            1_234_567_890,
            "{dir}"
        );
    }
}
