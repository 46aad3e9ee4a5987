use std::{
    process::{Child, Command},
    thread,
    time::Duration,
};

use rustix::process::Pid;

use super::*;
use crate::process::ProcessIdentity;

struct Fixture {
    _dir: tempfile::TempDir,
    dirs: Dirs,
    containers: Containers,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(dir.path().join("state"), dir.path().join("store"));
    Fixture {
        containers: Containers::open(&dirs).unwrap(),
        _dir: dir,
        dirs,
    }
}

fn new(auto_remove: bool) -> NewRecord {
    NewRecord {
        image: "busybox".into(),
        image_id: "sha256:0".into(),
        command: vec!["sh".into()],
        instructions: Vec::new(),
        auto_remove,
    }
}

impl Fixture {
    /// Removes a container that nobody uses. A test that starts a process right now lends it our
    /// locks, until it executes its program.
    fn remove(&self, record: &Record) {
        for _ in 0..100 {
            match self.containers.remove(record, false) {
                Err(ContainerError::InUse(_)) => thread::sleep(Duration::from_millis(20)),
                removed => return removed.unwrap(),
            }
        }
        panic!("{} is in use for ever", record.name);
    }

    /// Takes a container that nobody uses, likewise.
    fn reopen(&self, record: &Record) -> Container {
        for _ in 0..100 {
            match self.containers.reopen(record) {
                Err(ContainerError::InUse(_)) => thread::sleep(Duration::from_millis(20)),
                reopened => return reopened.unwrap().unwrap(),
            }
        }
        panic!("{} is in use for ever", record.name);
    }

    fn entries(&self) -> usize {
        let count = |path: PathBuf| {
            fs::read_dir(path)
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().file_name() != STORE_LOCK)
                .count()
        };
        count(self.dirs.store.join("containers")) + count(self.dirs.state.join("containers"))
    }

    /// A container as its owner leaves it behind when it is killed.
    fn abandoned(&self, auto_remove: bool, vmm: Option<&Child>) -> Record {
        let mut container = self.containers.create(new(auto_remove), None).unwrap();
        if let Some(vmm) = vmm {
            let identity = ProcessIdentity::of(Pid::from_child(vmm)).unwrap();
            container.running(identity).unwrap();
        }
        let dir = self
            .dirs
            .store
            .join("containers")
            .join(container.record().id.as_str());
        fs::create_dir_all(dir.join("work/work")).unwrap();
        let record = container.record().clone();
        container.abandon();
        record
    }
}

fn vmm() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

#[test]
fn a_container_that_is_dropped_leaves_nothing() {
    let fixture = fixture();
    for auto_remove in [true, false] {
        let container = fixture.containers.create(new(auto_remove), None).unwrap();
        assert_eq!(fixture.entries(), 2);
        let image = tempfile::tempdir().unwrap();
        container.layer(image.path()).unwrap();
        fs::write(container.vsock_socket(), "").unwrap();
        drop(container);
        assert_eq!(fixture.entries(), 0);
    }
}

#[test]
fn a_settled_container_stays_unless_it_is_to_be_removed() {
    let fixture = fixture();
    let container = fixture.containers.create(new(true), None).unwrap();
    container.settle(0).unwrap();
    assert_eq!(fixture.entries(), 0);

    let container = fixture.containers.create(new(false), Some("web")).unwrap();
    let runtime_dir = container.record().runtime_dir.clone();
    container.settle(3).unwrap();
    assert!(!runtime_dir.exists());
    let [record] = &fixture.containers.list().unwrap()[..] else {
        panic!("one container is expected");
    };
    assert!(matches!(
        record.status,
        Status::Exited { code: Some(3), .. }
    ));
    fixture.remove(record);
    assert_eq!(fixture.entries(), 0);
}

#[test]
fn a_name_is_given_once() {
    let fixture = fixture();
    let first = fixture.containers.create(new(true), Some("web")).unwrap();
    let error = fixture
        .containers
        .create(new(true), Some("web"))
        .unwrap_err();
    assert!(
        error.to_string().contains(first.record().id.short()),
        "{error}"
    );
    drop(first);
    fixture.containers.create(new(true), Some("web")).unwrap();
}

#[test]
fn a_live_container_is_left_alone() {
    let fixture = fixture();
    let container = fixture.containers.create(new(true), Some("web")).unwrap();
    let records = fixture.containers.list().unwrap();
    assert_eq!(records, [container.record().clone()]);
    let error = fixture.containers.remove(&records[0], false).unwrap_err();
    assert!(matches!(error, ContainerError::Running(name) if name == "web"));
}

#[test]
fn what_a_dead_owner_was_making_vanishes() {
    let fixture = fixture();
    fixture.abandoned(false, None);
    fixture.abandoned(true, None);
    assert_eq!(fixture.containers.list().unwrap(), []);
    assert_eq!(fixture.entries(), 0);
}

#[test]
fn what_is_to_be_started_later_stays_and_a_start_that_fails_leaves_it_so() {
    let fixture = fixture();
    for auto_remove in [true, false] {
        let container = fixture.containers.create(new(auto_remove), None).unwrap();
        let runtime_dir = container.record().runtime_dir.clone();
        container.rest().unwrap();
        assert!(!runtime_dir.exists());
        for _ in 0..2 {
            let [record] = &fixture.containers.list().unwrap()[..] else {
                panic!("one container is expected");
            };
            assert_eq!(record.status, Status::Created);
            let mut waiting = fixture.containers.waiting(record).unwrap();
            assert_eq!(waiting.wait(None).unwrap().unwrap().code, Some(0));
            let started = fixture.reopen(record);
            assert!(runtime_dir.exists());
            let error = fixture.containers.reopen(record).unwrap_err();
            assert!(matches!(error, ContainerError::InUse(_)));
            drop(started);
            assert!(!runtime_dir.exists());
        }
        let records = fixture.containers.list().unwrap();
        fixture.remove(&records[0]);
        assert_eq!(fixture.entries(), 0);
    }
}

#[test]
fn a_directory_without_record_is_garbage() {
    let fixture = fixture();
    let id = Id::random().unwrap();
    let dir = fixture.dirs.store.join("containers").join(id.as_str());
    fs::create_dir_all(dir.join("upper/etc")).unwrap();
    fs::write(dir.join(LOCK), "").unwrap();
    let empty = dir.with_file_name(Id::random().unwrap().as_str());
    fs::create_dir(&empty).unwrap();
    assert_eq!(fixture.containers.list().unwrap(), []);
    assert_eq!(fixture.entries(), 0);
}

#[test]
fn the_vm_of_a_dead_owner_is_killed_and_its_container_removed() {
    let fixture = fixture();
    let mut vmm = vmm();
    fixture.abandoned(true, Some(&vmm));
    assert_eq!(fixture.containers.list().unwrap(), []);
    assert!(!vmm.wait().unwrap().success());
    assert_eq!(fixture.entries(), 0);
}

#[test]
fn a_container_to_be_kept_is_marked_exited_when_its_owner_dies() {
    let fixture = fixture();
    let mut vmm = vmm();
    let record = fixture.abandoned(false, Some(&vmm));
    let [found] = &fixture.containers.list().unwrap()[..] else {
        panic!("one container is expected");
    };
    assert!(matches!(found.status, Status::Exited { code: None, .. }));
    assert!(!record.runtime_dir.exists());
    assert!(!vmm.wait().unwrap().success());
}

#[test]
fn a_record_of_another_version_is_not_touched() {
    let fixture = fixture();
    let record = fixture.abandoned(true, None);
    let dir = fixture
        .dirs
        .store
        .join("containers")
        .join(record.id.as_str());
    fs::write(dir.join("state.json"), r#"{"version":99}"#).unwrap();
    assert_eq!(fixture.containers.list().unwrap(), []);
    assert!(dir.join("work").exists());
}

#[test]
fn containers_are_found_by_name_and_by_the_beginning_of_their_identifier() {
    let fixture = fixture();
    let a = fixture.containers.create(new(true), Some("one")).unwrap();
    let _b = fixture.containers.create(new(true), Some("two")).unwrap();
    let find = |wanted: &str| fixture.containers.find(wanted).map(|record| record.name);
    assert_eq!(find("one").unwrap(), "one");
    assert_eq!(find(a.record().id.short()).unwrap(), "one");
    assert!(matches!(find("three"), Err(ContainerError::NotFound(_))));
    assert!(matches!(find(""), Err(ContainerError::NotFound(_))));
}
