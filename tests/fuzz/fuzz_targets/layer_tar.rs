//! A layer's archive, unpacked for real: whatever it is, nothing beside its directory changes.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;

use image::Limits;
use image::layer::unpack;
use libfuzzer_sys::fuzz_target;

#[path = "../tree.rs"]
mod tree;

use tree::{canary_lives, remove, with_checksums};

fuzz_target!(|data: &[u8]| {
    let dir = tree::bench();
    let (root, trash) = (dir.join("root"), dir.join("trash"));
    for path in [&root, &trash] {
        fs::create_dir(path).expect("the directory was removed after the run before");
    }
    let mut limits = Limits::default();
    limits.entries = 200;
    limits.layer_bytes = 1 << 20;
    let _ = unpack(
        with_checksums(data).as_slice(),
        File::open(&root).expect("it was just made").as_fd(),
        &[],
        File::open(&trash).expect("it was just made").into(),
        &limits,
        &(),
    );
    fs::remove_dir(&trash).expect("what was replaced is gone");
    remove(&root, dir, |_| {});
    canary_lives(dir);
});
