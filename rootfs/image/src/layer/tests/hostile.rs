//! Layers that mean harm, or make no sense.

use super::*;

/// Names that lead out of the image, through `..` and through links: refused, or taken inside.
#[test]
fn nothing_leads_out_of_the_image() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("canary");
    let outside = outside.to_str().unwrap();
    for path in [
        "../canary/new",
        "a/../../canary/bird",
        "..",
        "d/..",
        "/../x",
    ] {
        assert!(
            bench
                .refused(Tar::new().dir("d").file(path, b"x"))
                .contains(".."),
            "{path}"
        );
        bench.refused(Tar::new().dir("d").entry(b'5', path, "", 0o777, b""));
        bench.refused(Tar::new().dir("d").symlink(path, "x"));
    }
    for target in ["../canary/bird", "/../canary/bird", "../../etc/passwd"] {
        bench.refused(Tar::new().hard_link("h", target));
    }
    // A link to the outside as the last component is replaced, not followed.
    for target in [format!("{outside}/bird"), "../canary/bird".to_owned()] {
        bench
            .unpack(Tar::new().symlink("l", &target).file("l", b"dead"))
            .unwrap();
        assert!(bench.at("l").symlink_metadata().unwrap().is_file());
        bench
            .unpack(
                Tar::new()
                    .symlink("l", &target)
                    .entry(b'5', "l", "", 0o700, b""),
            )
            .unwrap();
        bench
            .unpack(Tar::new().symlink("l", &target).hard_link("h", "l"))
            .unwrap();
        assert!(bench.at("h").symlink_metadata().unwrap().is_symlink());
    }
    // In the middle, it is followed inside the image, where its target does not exist.
    for target in [
        outside,
        "../canary",
        "../../../../../../../../tmp",
        "/proc/self/root/tmp",
    ] {
        let refused = bench.refused(Tar::new().symlink("l", target).file("l/new", b"x"));
        assert!(refused.contains("\"l/new\""), "{refused}");
        for whiteout in ["l/.wh.bird", "l/.wh..wh..opq"] {
            bench
                .unpack(Tar::new().symlink("l", target).file(whiteout, b""))
                .unwrap();
            assert!(
                bench
                    .notes()
                    .contains(&format!("whiteout \"{whiteout}\" left out"))
            );
            assert_eq!(fs::read_dir(bench.root()).unwrap().count(), 1);
        }
        bench.refused(Tar::new().symlink("l", target).hard_link("h", "l/bird"));
        bench.refused(
            Tar::new()
                .symlink("l", target)
                .entry(b'5', "l/sub", "", 0o777, b""),
        );
    }
    // Or exists, because the image made it.
    bench
        .unpack(
            Tar::new()
                .dir("usr/bin")
                .symlink("bin", "/../../usr/bin")
                .file("bin/sh", b"#!")
                .symlink("up", "..")
                .file("up/up/up/x", b"x"),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at("usr/bin/sh")).unwrap(), b"#!");
    assert_eq!(fs::read(bench.at("x")).unwrap(), b"x");
    assert!(
        bench
            .notes()
            .contains("\"bin/sh\" lies behind a symbolic link")
    );
}

#[test]
fn a_directory_replaced_by_a_link_receives_nothing_more() {
    let bench = Bench::new();
    // The descriptor of the directory was remembered from the entry before.
    bench.refused(
        Tar::new()
            .dir("d")
            .file("d/a", b"")
            .symlink("d", "../canary")
            .file("d/b", b"x"),
    );
    bench
        .unpack(
            Tar::new()
                .dir("other")
                .entry(b'5', "d", "", 0o700, b"")
                .symlink("d", "../canary")
                .file("z", b""),
        )
        .unwrap();
    let canary = bench.dir.path().join("canary").metadata().unwrap();
    assert_ne!(canary.mtime(), 1_234_567_890);
}

#[test]
fn entries_that_cannot_be_are_refused_by_name() {
    let bench = Bench::new();
    let many = "x".repeat(256);
    for (tar, entry) in [
        (Tar::new().file("f", b"").file("f/below", b""), "f/below"),
        (Tar::new().dir("d").hard_link("h", "d"), "\"h\""),
        (Tar::new().hard_link("h", "h"), "\"h\""),
        (Tar::new().hard_link("h", "missing"), "\"h\""),
        (Tar::new().file(".wh.w", b"").hard_link("h", "w"), "\"h\""),
        (Tar::new().symlink("s", ""), "\"s\""),
        (
            Tar::new().symlink("loop", "loop").file("loop/x", b""),
            "loop/x",
        ),
        (Tar::new().file(".wh.", b""), ".wh."),
        (Tar::new().file(".wh..", b""), ".wh.."),
        (Tar::new().file(".wh...", b""), ".wh..."),
        (Tar::new().file("d/.wh.x/y", b""), ".wh.x/y"),
        (Tar::new().file("/", b""), "\"/\""),
        (Tar::new().file("", b""), "\"\""),
        (Tar::new().file(&many, b""), "xxx"),
        (
            Tar::new().with_header("id", "", b"", |h| h.set_uid(u64::from(u32::MAX))),
            "\"id\"",
        ),
        (
            Tar::new().with_header("id", "", b"", |h| h.set_gid(1 << 40)),
            "\"id\"",
        ),
        (
            Tar::new().file(".wh.gone", b"").symlink("a\x1b[2Jb", ""),
            r"a\x1b[2Jb",
        ),
    ] {
        let message = bench.refused(tar);
        assert!(message.contains(entry), "{message}");
    }
}

#[test]
fn limits_end_what_is_too_much() {
    let mut bench = Bench::new();
    bench.limits.entries = 3;
    assert!(matches!(
        bench.unpack(Tar::new().file("a/b/c/d/e", b"")),
        Err(LayerError::TooManyEntries { limit: 3 })
    ));
    bench.limits = Limits {
        layer_bytes: 10,
        ..Limits::default()
    };
    assert!(bench.unpack(Tar::new().file("a", b"1234567890")).is_ok());
    assert!(matches!(
        bench.unpack(Tar::new().file("a", b"123456").file("b", b"123456")),
        Err(LayerError::TooLarge { limit: 10 })
    ));
    bench.limits = Limits {
        extension_bytes: 100,
        ..Limits::default()
    };
    assert!(matches!(
        bench.unpack(Tar::new().file(&"n".repeat(150), b"")),
        Err(LayerError::Archive(ArchiveError::ExtensionTooLong { .. }))
    ));
}

#[test]
fn a_layer_cut_short_is_an_error() {
    let bench = Bench::new();
    let whole = Tar::new().file("a", &[1; 2000]).finish();
    assert!(bench.unpack_bytes(&whole[..1500]).is_err());
    assert!(bench.unpack_bytes(&whole[..300]).is_err());
    assert!(bench.unpack_bytes(b"this is no archive at all").is_err());
    assert!(bench.unpack_bytes(b"").is_ok(), "an empty layer is a layer");
}

#[test]
fn the_deepest_paths_can_be_made_and_replaced() {
    let bench = Bench::new();
    let deep = vec!["d"; 2000].join("/");
    bench
        .unpack(
            Tar::new()
                .file(&deep, b"bottom")
                .symlink("s", &vec!["d"; 1000].join("/"))
                .file(&format!("s/{}", vec!["e"; 1500].join("/")), b"deeper")
                .file("d", b"gone"),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at("d")).unwrap(), b"gone");
}

#[test]
fn a_link_replaced_behind_its_own_back_leads_nowhere_any_more() {
    let bench = Bench::new();
    // `s/s` is `s` itself: the second entry replaces the link that the third relies on.
    let refused = bench.refused(
        Tar::new()
            .symlink("s", ".")
            .file("s/s", b"now a file")
            .file("s/x", b""),
    );
    assert!(refused.contains("\"s/x\""));
}

#[test]
fn a_whiteout_below_what_is_no_directory_hides_nothing_else() {
    let bench = Bench::new();
    // umoci writes such for a directory that became a file or a link.
    bench
        .unpack(
            Tar::new()
                .file("file", b"f")
                .file("file/.wh.x", b"")
                .file("file/sub/.wh..wh..opq", b"")
                .dir("target")
                .symlink("link", "target")
                .file("link/first", b"")
                .file("link/.wh.x", b"")
                .file("link/.wh..wh..opq", b"")
                .file(".wh.gone", b"")
                .file("gone/.wh.x", b""),
        )
        .unwrap();
    assert_eq!(fs::read(bench.at("file")).unwrap(), b"f");
    assert!(!is_opaque(&bench.at("target")));
    assert_eq!(fs::read_dir(bench.at("target")).unwrap().count(), 1);
    assert!(is_whiteout_file(&bench.at("gone")));
}
