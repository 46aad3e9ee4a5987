//! Links that lead out of the image, and entries behind them.

use super::*;
use Then::{Becomes, Refused};

pub(super) const CASES: &[Case] = &[
    (
        "hard link to a file through ..",
        |_| layer(Tar::new().hard_link("h", "../canary/bird")),
        Refused(&["entry \"h\" is refused: it links to a name that cannot be"]),
    ),
    (
        "hard link to an absolute file",
        |canary| layer(Tar::new().hard_link("h", &format!("{canary}/bird"))),
        Refused(&["entry \"h\" is refused: it links to a file that the layer does not have"]),
    ),
    (
        "hard link through a link to the canary",
        |canary| layer(Tar::new().symlink("l", canary).hard_link("h", "l/bird")),
        Refused(&["entry \"h\" is refused"]),
    ),
    (
        "hard link to a link to the canary",
        |canary| {
            let bird = format!("{canary}/bird");
            layer(
                Tar::new()
                    .symlink("l", &bird)
                    .hard_link("h", "l")
                    .file("h", b"x"),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.read("h"), b"x");
            assert!(seen.at("l").symlink_metadata().unwrap().is_symlink());
        }),
    ),
    (
        "hard link to itself",
        |_| layer(Tar::new().file("h", b"").hard_link("./h", "h")),
        Refused(&["it links to itself"]),
    ),
    (
        "hard link to a directory",
        |_| layer(Tar::new().dir("d").hard_link("h", "d")),
        Refused(&["entry \"h\" is refused: it links to a directory"]),
    ),
    (
        "hard link to the root",
        |_| layer(Tar::new().hard_link("h", "/")),
        Refused(&["it links to the root directory"]),
    ),
    (
        "hard link to what is not there",
        |_| layer(Tar::new().hard_link("h", "missing")),
        Refused(&["entry \"h\" is refused"]),
    ),
    (
        "hard link to a file of the layer below",
        |_| layer(Tar::new().hard_link("h", "base")),
        Refused(&["entry \"h\" is refused: it links to a file that the layer does not have"]),
    ),
    (
        "hard link to a whiteout",
        |_| layer(Tar::new().file(".wh.w", b"").hard_link("h", "w")),
        Refused(&["entry \"h\" is refused"]),
    ),
    (
        "hard link in the place of its target's directory",
        |_| layer(Tar::new().file("d/f", b"x").hard_link("d", "d/f")),
        Refused(&["entry \"d\" is refused"]),
    ),
    (
        "file in the place of a link to the canary",
        |_| {
            let link = Tar::new().symlink("l", "../../../canary/bird");
            layer(link.file("l", b"dead"))
        },
        Becomes(|seen| assert_eq!(seen.read("l"), b"dead")),
    ),
    (
        "directory in the place of a link to the canary",
        |canary| {
            layer(
                Tar::new()
                    .symlink("l", canary)
                    .entry(b'5', "l", "", 0o700, b""),
            )
        },
        Becomes(|seen| assert_eq!(seen.mode("l"), 0o700)),
    ),
    (
        "fifo in the place of a link to the canary",
        |canary| {
            let link = Tar::new().symlink("l", &format!("{canary}/bird"));
            layer(link.entry(b'6', "l", "", 0o777, b""))
        },
        Becomes(|seen| {
            let kind = seen.at("l").symlink_metadata().unwrap().file_type();
            assert!(kind.is_fifo());
        }),
    ),
    (
        "file behind an absolute link",
        |canary| layer(Tar::new().symlink("l", canary).file("l/new", b"x")),
        Refused(&["entry \"l/new\" is refused: a symbolic link above it"]),
    ),
    (
        "file behind a relative link",
        |_| {
            layer(
                Tar::new()
                    .symlink("l", "../../../canary")
                    .file("l/new", b"x"),
            )
        },
        Refused(&["entry \"l/new\" is refused: a symbolic link above it"]),
    ),
    (
        "file behind a link of /proc",
        |canary| {
            let target = format!("/proc/self/root{canary}");
            layer(Tar::new().symlink("l", &target).file("l/new", b"x"))
        },
        Refused(&["entry \"l/new\" is refused: a symbolic link above it"]),
    ),
    (
        "directory behind a link",
        |canary| {
            let link = Tar::new().symlink("l", canary);
            layer(link.entry(b'5', "l/nest", "", 0o777, b""))
        },
        Refused(&["entry \"l/nest\" is refused"]),
    ),
    (
        "link behind a link",
        |canary| layer(Tar::new().symlink("l", canary).symlink("l/bird", "x")),
        Refused(&["entry \"l/bird\" is refused"]),
    ),
    (
        "file behind a chain of links",
        |canary| {
            layer(
                Tar::new()
                    .symlink("a", "b/c")
                    .symlink("b", ".")
                    .symlink("c", canary)
                    .file("a/new", b"x"),
            )
        },
        Refused(&["entry \"a/new\" is refused"]),
    ),
    (
        "file behind a link to itself",
        |_| layer(Tar::new().symlink("loop", "loop").file("loop/x", b"")),
        Refused(&["entry \"loop/x\" is refused"]),
    ),
    (
        "file behind links that stay inside",
        |_| {
            layer(
                Tar::new()
                    .dir("usr/bin")
                    .symlink("bin", "/../../usr/bin")
                    .file("bin/sh", b"#!")
                    .symlink("up", "..")
                    .file("up/up/up/x", b"x"),
            )
        },
        Becomes(|seen| {
            assert_eq!(seen.read("usr/bin/sh"), b"#!");
            assert_eq!(seen.read("x"), b"x");
            seen.noted("\"bin/sh\" lies behind a symbolic link");
        }),
    ),
    (
        // The descriptor of the directory is remembered from the entry before.
        "directory replaced by a link between two files",
        |canary| {
            layer(
                Tar::new()
                    .dir("d")
                    .file("d/a", b"")
                    .symlink("d", canary)
                    .file("d/b", b"x"),
            )
        },
        Refused(&["entry \"d/b\" is refused"]),
    ),
    (
        "directory replaced by a link before it gets its mode and time",
        |canary| {
            layer(
                Tar::new()
                    .dir("other")
                    .entry(b'5', "d", "", 0o777, b"")
                    .symlink("d", canary)
                    .file("z", b""),
            )
        },
        Becomes(|seen| assert!(seen.at("d").symlink_metadata().unwrap().is_symlink())),
    ),
    (
        "parent of a directory replaced by a link before its time is set",
        |canary| {
            layer(
                Tar::new()
                    .dir("p")
                    .entry(b'5', "p/nest", "", 0o777, b"")
                    .symlink("p", canary)
                    .file("z", b""),
            )
        },
        Becomes(|seen| assert!(seen.at("p").symlink_metadata().unwrap().is_symlink())),
    ),
    (
        // `s/s` is `s` itself: the second entry replaces the link that the third relies on.
        "link replaced through itself",
        |_| {
            let link = Tar::new().symlink("s", ".");
            layer(link.file("s/s", b"now a file").file("s/x", b""))
        },
        Refused(&["entry \"s/x\" is refused"]),
    ),
    (
        "file behind a link of the layer below",
        |canary| {
            let below = Tar::new().symlink("d", canary).finish();
            stack(&[&below, &Tar::new().file("d/bird", b"inside").finish()])
        },
        Becomes(|seen| assert_eq!(seen.read("d/bird"), b"inside")),
    ),
    (
        "link without a target",
        |_| layer(Tar::new().symlink("s", "")),
        Refused(&["entry \"s\" is refused: the target of a link has 1 to 4095 bytes"]),
    ),
    (
        "link with an endless target",
        |_| layer(Tar::new().symlink("s", &"x".repeat(4096))),
        Refused(&["entry \"s\" is refused: the target of a link has 1 to 4095 bytes"]),
    ),
    (
        "one target of PAX and another of GNU",
        |_| {
            let pax = Tar::new().pax(&[("linkpath", b"one")]);
            layer(pax.symlink("s", &"another".repeat(20)))
        },
        Refused(&["two names for one entry"]),
    ),
];
