use std::{fs, os::unix::fs::symlink, path::Path};

use super::*;
use crate::devices::fs::{Fs, Sharing};

const ROOT: u64 = 1;
/// The node of a name that is not there.
const NONE: u64 = 0;

/// A server on a directory, and a guest that uses it.
struct Guest {
    fs: Fs,
    session: Session,
    unique: u64,
}

impl Guest {
    fn on(directory: &Path) -> Self {
        Self {
            fs: Fs::new("root", directory, Sharing::Exclusive, true).unwrap(),
            session: Session::default(),
            unique: 0,
        }
    }

    fn ask(&mut self, opcode: Opcode, node: u64, body: &[u8], answer_size: usize) -> Vec<u8> {
        self.unique += 2;
        let mut request = Vec::new();
        let length = u32::try_from(IN_HEADER + body.len()).unwrap();
        request.extend(length.to_le_bytes());
        request.extend((opcode as u32).to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        let exchange = Exchange {
            request,
            answer: vec![0; answer_size],
        };
        let (fuse, session) = (&self.fs.fuse, &mut self.session);
        let mut scratch = Scratch::new().unwrap();
        scratch
            .exchange(&exchange, &mut |memory, chain| {
                fuse.answer(memory, &chain);
                session.record(memory, &chain);
            })
            .unwrap()
    }

    fn init(&mut self) {
        let mut body = Vec::new();
        for word in [7u32, 36, 128 << 10, !(1 << 30)] {
            body.extend(word.to_le_bytes());
        }
        let answer = self.ask(Opcode::Init, 0, &body, 80);
        assert_eq!(error(&answer), 0);
    }

    /// The node of a name, or the error.
    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let mut body = name.as_bytes().to_vec();
        body.push(0);
        let answer = self.ask(Opcode::Lookup, parent, &body, 144);
        match error(&answer) {
            0 => Ok(value::<EntryOut>(&answer[16..]).unwrap().nodeid),
            error => Err(error),
        }
    }

    fn replayed_on(&self, directory: &Path) -> Result<Self, SessionError> {
        let mut other = Self::on(directory);
        let fuse = &other.fs.fuse;
        self.session.replay(|memory, chain| {
            fuse.answer(memory, &chain);
        })?;
        other.session = self.session.clone();
        Ok(other)
    }
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("bin/busybox"), "program").unwrap();
    symlink("busybox", dir.path().join("bin/sh")).unwrap();
    dir
}

/// Another directory with the same content, as an overlay of the same layers is.
fn copy(of: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .args(["--archive", "--no-target-directory"])
        .args([of, dir.path()])
        .status()
        .unwrap();
    assert!(copied.success());
    dir
}

fn looked_around(directory: &Path) -> (Guest, u64) {
    let mut guest = Guest::on(directory);
    guest.init();
    let bin = guest.lookup(ROOT, "bin").unwrap();
    assert_eq!(guest.lookup(bin, "none"), Ok(NONE));
    let forgotten = guest.lookup(bin, "sh").unwrap();
    let program = guest.lookup(bin, "busybox").unwrap();
    let mut body = Vec::new();
    body.extend(1u64.to_le_bytes());
    guest.ask(Opcode::Forget, forgotten, &body, 0);
    (guest, program)
}

#[test]
fn a_new_server_knows_the_nodes_that_the_old_one_gave() {
    let tree = tree();
    let (guest, program) = looked_around(tree.path());
    let other = copy(tree.path());
    let mut clone = guest.replayed_on(other.path()).unwrap();
    let mut getattr = vec![0; 16];
    getattr.fill(0);
    let answer = clone.ask(Opcode::Getattr, program, &getattr, 120);
    assert_eq!(error(&answer), 0);
    let size = u64::from_le_bytes(answer[16 + 16 + 8..][..8].try_into().unwrap());
    assert_eq!(size, "program".len() as u64);
    // And it goes on with numbers that nobody has.
    let bin = clone.lookup(ROOT, "bin").unwrap();
    let new = clone.lookup(bin, "sh").unwrap();
    assert_ne!(new, program);
}

#[test]
fn that_a_name_is_not_there_may_be_remembered_only_if_the_guest_alone_makes_files() {
    let tree = tree();
    let missing = |sharing| {
        let mut guest = Guest {
            fs: Fs::new("root", tree.path(), sharing, true).unwrap(),
            session: Session::default(),
            unique: 0,
        };
        guest.init();
        guest.ask(Opcode::Lookup, ROOT, b"none\0", 144)
    };
    let answer = missing(Sharing::Exclusive);
    let header: OutHeader = value(&answer).unwrap();
    assert_eq!((header.len, header.error, header.unique), (144, 0, 4));
    let entry: EntryOut = value(&answer[16..]).unwrap();
    assert_eq!((entry.nodeid, entry.entry_valid), (NONE, 86_400));
    assert_eq!(error(&missing(Sharing::Shared)), -libc::ENOENT);
}

#[test]
fn where_entries_come_and_go_their_names_are_asked_for_each_time() {
    let tree = tree();
    let mut guest = Guest {
        fs: Fs::new("root", tree.path(), Sharing::Entries, false).unwrap(),
        session: Session::default(),
        unique: 0,
    };
    guest.init();
    let mut time = |parent, name: &[u8]| {
        let answer = guest.ask(Opcode::Lookup, parent, name, 144);
        let entry: EntryOut = value(&answer[16..]).unwrap();
        (error(&answer), entry.nodeid, entry.entry_valid)
    };
    let (found, bin, valid) = time(ROOT, b"bin\0");
    assert_eq!((found, valid), (0, 0));
    assert_eq!(time(ROOT, b"none\0").0, -libc::ENOENT);
    // Below them everything may be kept.
    assert_eq!(time(bin, b"sh\0").2, 86_400);
    assert_eq!(time(bin, b"none\0"), (0, NONE, 86_400));
}

#[test]
fn a_session_survives_being_written_down() {
    let tree = tree();
    let (mut guest, _) = looked_around(tree.path());
    let bytes = postcard::to_stdvec(&guest.session).unwrap();
    guest.session = postcard::from_bytes(&bytes).unwrap();
    guest.replayed_on(tree.path()).unwrap();
}

#[test]
fn another_file_in_the_place_of_a_known_one_is_found_out() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("busybox", |dir| {
            fs::write(dir.join("bin/busybox"), "another").unwrap();
        }),
        ("busybox", |dir| {
            fs::remove_file(dir.join("bin/busybox")).unwrap();
        }),
        ("none", |dir| fs::write(dir.join("bin/none"), "").unwrap()),
        ("sh", |dir| {
            fs::remove_file(dir.join("bin/sh")).unwrap();
            fs::write(dir.join("bin/sh"), "busybox").unwrap();
        }),
    ];
    for (name, change) in changes {
        let tree = tree();
        let (guest, _) = looked_around(tree.path());
        let other = copy(tree.path());
        change(other.path());
        match guest.replayed_on(other.path()) {
            Err(SessionError::Differs(found)) => assert_eq!(found, name),
            Err(error) => panic!("{name}: {error}"),
            Ok(_) => panic!("{name} was not missed"),
        }
    }
}

#[test]
fn a_directory_may_have_new_times() {
    let tree = tree();
    let (guest, _) = looked_around(tree.path());
    let other = copy(tree.path());
    fs::write(other.path().join("bin/added"), "").unwrap();
    guest.replayed_on(other.path()).unwrap();
}

#[test]
fn a_guest_that_has_written_cannot_be_saved() {
    let tree = tree();
    let (mut guest, _) = looked_around(tree.path());
    guest.session.checked().unwrap();
    // struct fuse_mkdir_in, and the name.
    let mut body = vec![0; 8];
    body.extend(b"new\0");
    guest.ask(Opcode::Mkdir, ROOT, &body, 144);
    let message = guest.session.checked().unwrap_err().to_string();
    assert!(message.contains("Mkdir"), "{message}");
    // With the file system unmounted all is forgotten.
    guest.ask(Opcode::Destroy, 0, &[], 0);
    assert_eq!(guest.session.checked().unwrap(), &Session::default());
}

#[test]
fn what_is_no_session_is_refused() {
    let tree = tree();
    let (guest, _) = looked_around(tree.path());
    for spoil in [
        |exchange: &mut Exchange| exchange.request = vec![0; MAX_REQUEST + 1],
        |exchange: &mut Exchange| exchange.answer = vec![0; MAX_ANSWER + 1],
        |exchange: &mut Exchange| exchange.request.truncate(3),
        |exchange: &mut Exchange| exchange.request.clear(),
    ] {
        let mut session = guest.session.clone();
        spoil(&mut session.exchanges[1]);
        let fresh = Guest::on(tree.path());
        let replayed = session.replay(|memory, chain| {
            fresh.fs.fuse.answer(memory, &chain);
        });
        assert!(replayed.is_err());
    }
}
