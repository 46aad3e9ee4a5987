//! Whiteouts and opaque markers where they do not belong.

use super::*;
use Then::{Becomes, Refused};

pub(super) const CASES: &[Case] = &[
    (
        "whiteout behind a link to the canary",
        |canary| layer(Tar::new().symlink("l", canary).file("l/.wh.bird", b"")),
        Becomes(|seen| {
            seen.noted("whiteout \"l/.wh.bird\" left out: it lies behind a symbolic link");
            assert_eq!(seen.list(""), ["l"]);
        }),
    ),
    (
        "opaque marker behind a link to the canary",
        |canary| layer(Tar::new().symlink("l", canary).file("l/.wh..wh..opq", b"")),
        Becomes(|seen| {
            seen.noted("whiteout \"l/.wh..wh..opq\" left out");
            assert_eq!(seen.list(""), ["l"]);
        }),
    ),
    (
        "whiteouts behind a link inside",
        |_| {
            layer(
                Tar::new()
                    .dir("target")
                    .symlink("link", "target")
                    .file("link/first", b"")
                    .file("link/.wh.x", b"")
                    .file("link/.wh..wh..opq", b""),
            )
        },
        Becomes(|seen| {
            assert!(!seen.is_opaque("target"));
            assert_eq!(seen.list("target"), ["first"]);
        }),
    ),
    (
        "whiteout behind a link of the layer below",
        |canary| {
            let below = Tar::new().symlink("d", canary).finish();
            stack(&[&below, &Tar::new().file("d/.wh.bird", b"").finish()])
        },
        Becomes(|seen| seen.is_whiteout("d/bird")),
    ),
    (
        "whiteout of nothing",
        |_| layer(Tar::new().file("d/.wh.", b"")),
        Refused(&["entry \"d/.wh.\" is refused: it is a whiteout of nothing"]),
    ),
    (
        "whiteout of the directory itself",
        |_| layer(Tar::new().file("d/.wh..", b"")),
        Refused(&["entry \"d/.wh..\" is refused: it is a whiteout of nothing"]),
    ),
    (
        "whiteout of the directory above",
        |_| layer(Tar::new().file("d/.wh...", b"")),
        Refused(&["entry \"d/.wh...\" is refused: it is a whiteout of nothing"]),
    ),
    (
        "file in a whiteout",
        |_| layer(Tar::new().file("d/.wh.x/y", b"")),
        Refused(&["entry \"d/.wh.x/y\" is refused: it lies in a whiteout"]),
    ),
    (
        "whiteout that is a directory",
        |_| layer(Tar::new().entry(b'5', ".wh.x", "", 0o777, b"")),
        Becomes(|seen| {
            seen.is_whiteout("x");
            seen.lacks(".wh.x");
        }),
    ),
    (
        "whiteout that is a link to the canary",
        |canary| layer(Tar::new().symlink(".wh.x", canary)),
        Becomes(|seen| seen.is_whiteout("x")),
    ),
    (
        "whiteout that is a hard link",
        |_| layer(Tar::new().hard_link(".wh.x", "../canary/bird")),
        Becomes(|seen| seen.is_whiteout("x")),
    ),
    (
        "whiteout with contents",
        |_| layer(Tar::new().file(".wh.x", &[7; 5000]).file("after", b"a")),
        Becomes(|seen| {
            seen.is_whiteout("x");
            assert_eq!(seen.read("after"), b"a");
        }),
    ),
    (
        "whiteout with a name that is too long",
        |_| layer(Tar::new().file(&format!(".wh.{}", "x".repeat(252)), b"")),
        Refused(&["a part of more than 255 bytes"]),
    ),
    (
        "whiteout as long as it can be",
        |_| layer(Tar::new().file(&format!(".wh.{}", "x".repeat(251)), b"")),
        Becomes(|seen| seen.is_whiteout(&"x".repeat(251))),
    ),
    (
        "bookkeeping of aufs",
        |_| {
            layer(
                Tar::new()
                    .file(".wh..wh.plnk/1.2", b"x")
                    .file(".wh..wh.aufs", b"x")
                    .file("d/.wh..wh.orph/x", b"x")
                    .file("kept", b"k"),
            )
        },
        Becomes(|seen| assert_eq!(seen.list(""), ["kept"])),
    ),
    (
        "files in an opaque marker",
        |_| {
            let marker = Tar::new().dir("d").dir("d/.wh..wh..opq");
            layer(marker.file("d/.wh..wh..opq/x", b"x"))
        },
        Becomes(|seen| {
            assert!(seen.is_opaque("d"));
            assert!(seen.list("d").is_empty());
        }),
    ),
    (
        "whiteouts below a file and a whiteout",
        |_| {
            // umoci writes such for a directory that became a file.
            layer(
                Tar::new()
                    .file("file", b"f")
                    .file("file/.wh.x", b"")
                    .file("file/sub/.wh..wh..opq", b"")
                    .file(".wh.gone", b"")
                    .file("gone/.wh.x", b""),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.read("file"), b"f");
            seen.is_whiteout("gone");
            assert_eq!(seen.list(""), ["file", "gone"]);
        }),
    ),
    (
        "whiteout of the layer's own file",
        |_| layer(Tar::new().file("own", b"o").file(".wh.own", b"")),
        Becomes(|seen| assert_eq!(seen.read("own"), b"o")),
    ),
    (
        "opaque root",
        |_| layer(Tar::new().file(".wh..wh..opq", b"").file("new", b"n")),
        Becomes(|seen| {
            assert_eq!(seen.image.layers().len(), 1);
            assert_eq!(seen.list(""), ["new"]);
        }),
    ),
    (
        "whiteout forged as a device",
        |_| {
            layer(
                Tar::new()
                    .entry(b'3', "base", "", 0, b"")
                    .file("after", b""),
            )
        },
        Becomes(|seen| {
            seen.lacks("base");
            seen.noted("device node \"base\" left out");
        }),
    ),
];
