//! Disks that are full, at every step: each test works through all sizes of a disk, page by page
//! and inode by inode, from one on which nothing fits to one on which all does.

use super::*;
use crate::registry::{Access, AuthFiles};
use crate::testing::registry::Registry;
use crate::{PullError, PullOptions};

/// Where the child of the tests below mounts its disks.
const CHILD_DIR: &str = "HRUN_TEST_MOUNT";
const PAGE: u64 = 4096;
/// Room enough for everything here.
const ROOMY: &str = "size=64m,nr_inodes=10k";

/// Runs an ignored test of this module in a mount namespace of its own: what it mounts nobody else
/// sees, and nothing stays mounted.
fn in_namespace(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("store::tests::full::{test}"))
        .env(CHILD_DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{failed}");
    assert!(said.contains("1 passed"), "{said}");
}

/// A disk of a limited size; what is on it goes with it.
struct Disk {
    mount: PathBuf,
}

impl Disk {
    /// None if this is not the child.
    fn new(options: &str) -> Option<Self> {
        let mount = PathBuf::from(std::env::var_os(CHILD_DIR)?);
        mounting(
            &["-t", "tmpfs", "-o", &format!("mode=0700,{options}"), "none"],
            &mount,
        );
        Some(Self { mount })
    }

    fn resize(&self, options: &str) {
        mounting(&["-o", &format!("remount,{options}")], &self.mount);
    }

    /// Pages and inodes in use.
    fn used(&self) -> (u64, u64) {
        let space = rustix::fs::statvfs(&self.mount).unwrap();
        (
            space.f_blocks - space.f_bfree,
            space.f_files - space.f_ffree,
        )
    }

    fn root(&self) -> PathBuf {
        self.mount.join("store")
    }

    /// Takes all the room that there is.
    fn fill(&self) {
        let _ = fs::write(self.mount.join("fill"), vec![1; 64 << 20]);
        for n in 0.. {
            if fs::write(self.mount.join(format!("fill{n}")), "").is_err() {
                break;
            }
        }
        assert!(fs::create_dir(self.mount.join("one more")).is_err());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.mount).status();
        if !std::thread::panicking() {
            assert!(status.unwrap().success());
        }
    }
}

fn mounting(args: &[&str], mount: &Path) {
    let status = Command::new("mount")
        .args(args)
        .arg(mount)
        .status()
        .unwrap();
    assert!(status.success(), "mounting a tmpfs needs root");
}

/// Two layers: many files, and bytes that do not compress.
fn image() -> Layout {
    let files = (0..10).fold(Tar::new(), |tar, n| tar.file(&format!("d/{n}"), &[7; 5000]));
    let noise: Vec<u8> = (0..20_000u32)
        .scan(1u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(state.to_le_bytes()[3])
        })
        .collect();
    let mut layout = Layout::new();
    let noise = Tar::new().file("noise", &noise).finish();
    layout.image(&[&files.finish(), &noise], Some("full:1"));
    layout
}

/// Tries `put` on disks with ever more of something, until it fits.
///
/// On each that is too small it must say so, leave a store that can be read and that takes no more
/// room than before, and work as soon as there is room. Gives the number of those.
fn sweep(limits: impl Fn(u64) -> String, put: impl Fn(&Store) -> Result<(), String>) -> u64 {
    let mut failures = 0;
    for step in 1.. {
        let Some(disk) = Disk::new(&limits(step)) else {
            return failures;
        };
        match Store::open(&disk.root()) {
            Ok(_) => {}
            Err(err) => {
                assert!(matches!(err, StoreError::Full { .. }), "{step}: {err:?}");
                disk.resize(ROOMY);
                Store::open(&disk.root()).unwrap();
                continue;
            }
        }
        let before = disk.used();
        let put = || put(&Store::open(&disk.root()).unwrap());
        if let Err(err) = put() {
            failures += 1;
            for words in ["disk of the image store", "is full", "hrun image prune"] {
                assert!(err.contains(words), "{step}: {err}");
            }
            let store = Store::open(&disk.root()).unwrap();
            assert!(store.images().unwrap().is_empty(), "{step}");
            assert_eq!(disk.used(), before, "{step}: room is lost");
            disk.resize(ROOMY);
            put().unwrap();
        } else if failures == 0 {
            panic!("the first disk was large enough");
        } else {
            return failures;
        }
        let store = Store::open(&disk.root()).unwrap();
        let image = store.images().unwrap().remove(0);
        assert_eq!(
            fs::read_dir(image.layers()[1].join("d")).unwrap().count(),
            10
        );
        store.remove(image.id.digest()).unwrap();
        assert_eq!(disk.used(), before, "{step}: room is lost after a removal");
    }
    failures
}

/// [`sweep`] over pages, and over inodes.
///
/// Disks grow by so many `pages` from one to the next, or by an inode.
fn sweep_both(pages: u64, put: impl Fn(&Store) -> Result<(), String>) {
    let page = pages * PAGE;
    let pages = sweep(|step| format!("size={},nr_inodes=10k", step * page), &put);
    let inodes = sweep(|step| format!("size=64m,nr_inodes={}", step + 2), &put);
    // Blobs and files alone are more.
    assert!(pages > 8 && inodes > 15, "{pages} pages, {inodes} inodes");
}

fn chain(err: &dyn std::error::Error) -> String {
    std::iter::successors(Some(err), |err| err.source())
        .map(|err| format!("{err}: "))
        .collect()
}

#[test]
fn a_load_may_find_the_disk_full_at_every_step() {
    in_namespace("loads_to_full_disks");
}

#[test]
#[ignore = "started by the test above, in a mount namespace"]
fn loads_to_full_disks() {
    let dir = tempfile::tempdir().unwrap();
    image().write_dir(dir.path());
    sweep_both(1, |store| match store.load(dir.path(), &()) {
        Ok(_) => Ok(()),
        Err(err) => {
            assert!(matches!(err, LoadError::Store(StoreError::Full { .. })));
            Err(chain(&err))
        }
    });
}

#[test]
fn a_load_of_a_compressed_archive_may_find_the_disk_full_at_every_step() {
    in_namespace("loads_archives_to_full_disks");
}

#[test]
#[ignore = "started by the test above, in a mount namespace"]
fn loads_archives_to_full_disks() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive");
    fs::write(&archive, compress(&image().tar(), Compression::Zstd)).unwrap();
    sweep_both(3, |store| {
        let loaded = store.load(&archive, &());
        loaded.map(|_| ()).map_err(|err| chain(&err))
    });
}

#[test]
fn a_pull_may_find_the_disk_full_at_every_step() {
    in_namespace("pulls_to_full_disks");
}

#[test]
#[ignore = "started by the test above, in a mount namespace"]
fn pulls_to_full_disks() {
    let registry = Registry::serve(&image(), |_, reply| reply);
    let reference = format!("{}/app:test", registry.name()).parse().unwrap();
    let options = PullOptions {
        platform: "linux/amd64".parse().unwrap(),
        access: Access::default(),
        credentials: AuthFiles::default(),
        ..PullOptions::default()
    };
    sweep_both(3, |store| match store.pull(&reference, &options, &()) {
        Ok(_) => Ok(()),
        Err(err) => {
            let full = matches!(
                err,
                PullError::Store(StoreError::Full { .. })
                    | PullError::Load(LoadError::Store(StoreError::Full { .. }))
            );
            assert!(full, "{err:?}");
            Err(chain(&err))
        }
    });
}

#[test]
fn a_store_on_a_full_disk_can_be_read_cleared_and_emptied() {
    in_namespace("uses_a_store_on_a_full_disk");
}

#[test]
#[ignore = "started by the test above, in a mount namespace"]
fn uses_a_store_on_a_full_disk() {
    let Some(disk) = Disk::new("size=2m,nr_inodes=300") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    image().write_dir(dir.path());
    let store = Store::open(&disk.root()).unwrap();
    let empty = disk.used();
    store.load(dir.path(), &()).unwrap();
    // A load that was killed: it left work, and what it had moved into place.
    let dead = store.tmp_path().join("wdead");
    fs::create_dir_all(dead.join("layer-x/deep/er")).unwrap();
    fs::write(dead.join("blob-x"), vec![1; 100_000]).unwrap();
    fs::write(store.blobs_path().join("0".repeat(64)), "orphan").unwrap();
    disk.fill();
    let full = disk.used();

    let store = Store::open(&disk.root()).unwrap();
    assert!(!dead.exists());
    assert!(!store.blobs_path().join("0".repeat(64)).exists());
    let cleared = disk.used();
    assert!(cleared.0 + 100_000 / PAGE < full.0 && cleared.1 + 4 < full.1);

    disk.fill();
    let names = names(&Store::open(&disk.root()).unwrap().find("full:1").unwrap());
    assert_eq!(names, ["full:1"]);
    // There is no room for a new index, but there will be.
    store.remove("full:1").unwrap();
    assert!(store.images().unwrap().is_empty());
    for entry in fs::read_dir(&disk.mount).unwrap() {
        let path = entry.unwrap().path();
        if path != disk.root() {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(disk.used(), empty);
}
