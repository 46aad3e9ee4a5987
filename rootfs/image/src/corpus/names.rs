//! Names that lead out of the image, or cannot be names.

use super::*;
use Then::{Becomes, Refused};

const THROUGH: &[&str] = &["its name leads out through .."];

pub(super) const CASES: &[Case] = &[
    (
        "file through ..",
        |_| layer(Tar::new().file("../canary/new", b"x")),
        Refused(&["entry \"../canary/new\" is refused: its name leads out"]),
    ),
    (
        "file through .. in the middle",
        |_| layer(Tar::new().file("a/../../canary/bird", b"dead")),
        Refused(&["entry \"a/../../canary/bird\" is refused"]),
    ),
    (
        "directory through ..",
        |_| layer(Tar::new().entry(b'5', "../canary", "", 0o777, b"")),
        Refused(THROUGH),
    ),
    (
        "link through ..",
        |_| layer(Tar::new().symlink("../canary/link", "bird")),
        Refused(THROUGH),
    ),
    (
        "hard link made through ..",
        |_| layer(Tar::new().file("f", b"").hard_link("../canary/hard", "f")),
        Refused(THROUGH),
    ),
    (
        "fifo through ..",
        |_| layer(Tar::new().entry(b'6', "../canary/fifo", "", 0o666, b"")),
        Refused(THROUGH),
    ),
    (
        "whiteout through ..",
        |_| layer(Tar::new().file("../canary/.wh.bird", b"")),
        Refused(THROUGH),
    ),
    (
        "opaque marker through ..",
        |_| layer(Tar::new().file("../canary/.wh..wh..opq", b"")),
        Refused(THROUGH),
    ),
    (
        ".. that would stay inside",
        |_| layer(Tar::new().dir("d").file("d/../x", b"")),
        Refused(&["entry \"d/../x\" is refused"]),
    ),
    (
        "nothing but ..",
        |_| layer(Tar::new().entry(b'5', "..", "", 0o777, b"")),
        Refused(THROUGH),
    ),
    (
        ".. from the top",
        |_| layer(Tar::new().file("/../x", b"")),
        Refused(THROUGH),
    ),
    (
        ".. in a PAX path behind a good name",
        |_| {
            let pax = Tar::new().pax(&[("path", b"../canary/new")]);
            layer(pax.file("good", b"x"))
        },
        Refused(&["entry \"../canary/new\" is refused"]),
    ),
    (
        ".. in the name of a sparse file",
        |_| {
            let pax = Tar::new().pax(&[
                ("GNU.sparse.name", b"../canary/new"),
                ("GNU.sparse.size", b"1"),
                ("GNU.sparse.map", b"0,1"),
            ]);
            layer(pax.file("good", b"x"))
        },
        Refused(&["entry \"../canary/new\" is refused"]),
    ),
    (
        "absolute name of the canary",
        |canary| layer(Tar::new().file(&format!("{canary}/bird"), b"inside")),
        Becomes(|seen| {
            let inside = format!("{}/bird", seen.canary.trim_start_matches('/'));
            assert_eq!(seen.read(&inside), b"inside");
            seen.noted("is absolute");
        }),
    ),
    (
        "absolute directory of the canary",
        |canary| layer(Tar::new().entry(b'5', canary, "", 0o777, b"")),
        Becomes(|seen| assert_eq!(seen.mode(seen.canary.trim_start_matches('/')), 0o777)),
    ),
    (
        "backslashes are no slashes",
        |_| layer(Tar::new().file("..\\..\\canary\\bird", b"x")),
        Becomes(|seen| assert_eq!(seen.read("..\\..\\canary\\bird"), b"x")),
    ),
    (
        "name that is no UTF-8",
        |_| {
            let pax = Tar::new().pax(&[("path", b"dir/not\xff\xfeutf8\n")]);
            layer(pax.file("x", b"kept"))
        },
        Becomes(|seen| {
            use std::os::unix::ffi::OsStrExt;
            let name = std::ffi::OsStr::from_bytes(b"not\xff\xfeutf8\n");
            assert_eq!(fs::read(seen.at("dir").join(name)).unwrap(), b"kept");
        }),
    ),
    (
        "name that steers the terminal",
        |_| layer(Tar::new().symlink("a\x1b[2Jb", "")),
        Refused(&[r#"entry "a\x1b[2Jb" is refused"#]),
    ),
    (
        "part of 256 bytes",
        |_| layer(Tar::new().file(&"x".repeat(256), b"")),
        Refused(&["a part of more than 255 bytes"]),
    ),
    (
        "name of 4096 bytes",
        |_| layer(Tar::new().file(&"a/".repeat(2048), b"")),
        Becomes(|seen| assert_eq!(seen.list("a/a/a"), ["a"])),
    ),
    (
        "name of more than 4095 bytes",
        |_| layer(Tar::new().file(&"ab/".repeat(1400), b"")),
        Refused(&["its name has more than 4095 bytes"]),
    ),
    (
        "NUL in a GNU long name",
        |_| {
            let name = format!("{}\0{}", "a".repeat(60), "b".repeat(60));
            layer(Tar::new().file(&name, b""))
        },
        Refused(&["its name has a NUL"]),
    ),
    (
        "NUL in a PAX path",
        |_| layer(Tar::new().pax(&[("path", b"a\0b")]).file("x", b"")),
        Refused(&["a PAX path has a NUL"]),
    ),
    (
        "one name of PAX and another of GNU",
        |_| {
            let pax = Tar::new().pax(&[("path", b"one")]);
            layer(pax.file(&"another".repeat(20), b""))
        },
        Refused(&["two names for one entry"]),
    ),
    (
        "file without a name",
        |_| layer(Tar::new().file("", b"")),
        Refused(&["entry \"\" is refused: the root of an image can only be a directory"]),
    ),
    (
        "file in the place of the root",
        |_| layer(Tar::new().file("/", b"")),
        Refused(&["entry \"/\" is refused"]),
    ),
    (
        "link in the place of the root",
        |canary| layer(Tar::new().symlink("./.", canary)),
        Refused(&["entry \"./.\" is refused"]),
    ),
    (
        "deepest paths, replaced by a file",
        |_| {
            let deep = vec!["d"; 2000].join("/");
            layer(
                Tar::new()
                    .file(&deep, b"bottom")
                    .symlink("s", &vec!["d"; 1000].join("/"))
                    .file(&format!("s/{}", vec!["e"; 1500].join("/")), b"deeper")
                    .file("d", b"gone"),
            )
        },
        Becomes(|seen| assert_eq!(seen.read("d"), b"gone")),
    ),
];
