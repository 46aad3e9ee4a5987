//! An archive that comes out of a guest for `hrun cp`: whatever it is, nothing beside its place
//! changes, and it brings neither devices nor set-user-ID programs.
#![no_main]

use std::fs::{self, File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use cp::{Destination, Owner, Rights, What, unpack};
use libfuzzer_sys::fuzz_target;

#[path = "../tree.rs"]
mod tree;

use tree::{canary_lives, remove, with_checksums};

fuzz_target!(|data: &[u8]| {
    let Some((how, archive)) = data.split_first() else {
        return;
    };
    let dir = tree::bench();
    let root = dir.join("root");
    fs::create_dir_all(root.join("there/x/old")).expect("it was removed after the run before");
    let path = ["/there", "/there/x", "/new"][usize::from(how % 3)];
    // One that came out of a container follows no link; any other one is kept in the root.
    let (top, path, what) = if how & 4 == 0 {
        (dir, format!("/root{path}"), What::Copy { name: b"x" })
    } else {
        (root.as_path(), path.into(), What::Archive)
    };
    let to = Destination {
        path: path.as_bytes(),
        what,
        owner: if how & 8 == 0 {
            Owner::Always { uid: 0, gid: 0 }
        } else {
            Owner::Kept
        },
        rights: Rights {
            devices: false,
            set_id: false,
        },
    };
    let _ = unpack(
        File::open(top).expect("it is there").as_fd(),
        &to,
        &mut with_checksums(archive).as_slice(),
        &mut |_| {},
    );
    remove(&root, dir, harmless);
    canary_lives(dir);
});

fn harmless(file: &Metadata) {
    let kind = file.file_type();
    assert!(!kind.is_block_device() && !kind.is_char_device());
    assert!(file.is_symlink() || file.mode() & 0o6000 == 0);
}
