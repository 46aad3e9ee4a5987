use std::os::unix::{fs::symlink, net::UnixListener};

use agent_protocol::{Attributes, Mount, Source};
use serde_json::{Value, json};

use super::{Plan, least, plan};

fn with_mounts(mounts: Value) -> Result<Plan, String> {
    let mut spec = least();
    spec["mounts"] = mounts;
    plan(&spec).map_err(|error| error.to_string())
}

fn one(mount: &Value) -> Mount {
    let mut found = with_mounts(json!([mount])).unwrap().container.mounts;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn refused(mount: &Value) -> String {
    let error = with_mounts(json!([mount])).unwrap_err();
    assert!(error.starts_with("mounts[0]."), "{error}");
    error
}

fn present(mount: &Mount) -> &str {
    match &mount.source {
        Source::Present { options } => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_and_directories_go_through_the_share_of_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    symlink("file", root.join("link")).unwrap();
    let plan = with_mounts(json!([
        {"destination": "/data", "type": "bind", "source": root, "options": ["rbind", "ro", "noexec"]},
        {"destination": "etc//x/../y", "source": root.join("link"), "options": ["bind"]},
    ]))
    .unwrap();
    let entries: Vec<_> = plan
        .volumes
        .iter()
        .map(|v| (&*v.name, v.read_only))
        .collect();
    assert_eq!(entries, [("0", true), ("1", false)]);
    assert_eq!(plan.volumes[1].path, root.join("file"));
    let [data, file] = &plan.container.mounts[..] else {
        panic!("{:?}", plan.container.mounts);
    };
    assert_eq!(data.source, Source::share("volumes", "0"));
    assert_eq!(data.attributes, Attributes { set: 9, clear: 0 });
    assert_eq!(
        (&*file.target, &file.source),
        ("/etc/y", &Source::share("volumes", "1"))
    );
}

#[test]
fn recursive_attributes_and_propagation_reach_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let plan = with_mounts(json!([
        {"destination": "/a", "type": "bind", "source": dir.path(), "options": ["rro"]},
        {"destination": "/b", "type": "bind", "source": dir.path(), "options": ["rshared"]},
        {"destination": "/c", "type": "bind", "source": dir.path(), "options": ["rslave"]},
    ]))
    .unwrap();
    let mounts = &plan.container.mounts;
    assert_eq!(mounts[0].recursive, Attributes::READ_ONLY);
    assert!(plan.volumes[0].read_only);
    assert!(mounts[1].propagation.unwrap().recursive);
    assert_eq!(mounts[2].propagation, None);
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
}

#[test]
fn sources_that_are_nothing_in_a_guest_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let bind = |source: Value| json!({"destination": "/x", "type": "bind", "source": source});
    assert!(refused(&bind(json!(socket))).contains("socket of the host"));
    assert!(refused(&bind(json!(dir.path().join("none")))).contains("Failed to look at"));
    assert!(refused(&json!({"destination": "/x", "type": "bind"})).contains("needs one"));
    let null = one(&bind(json!("/dev/null")));
    assert_eq!(
        null.source,
        Source::Container {
            path: "/dev/null".into()
        }
    );
}

#[test]
fn a_relative_source_is_one_of_the_bundle() {
    let error = refused(&json!({"destination": "/x", "type": "bind", "source": "files/x"}));
    assert!(error.contains("/bundle/files/x"), "{error}");
}

#[test]
fn owners_are_not_mapped() {
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    for mount in [
        json!({"destination": "/x", "source": "/", "options": ["bind", "idmap"]}),
        json!({"destination": "/x", "source": "/", "options": ["bind"], "uidMappings": mapping}),
    ] {
        assert!(refused(&mount).contains("mounts[0].idmap"));
    }
}

#[test]
fn file_systems_of_the_kernel_are_new_ones() {
    let tmpfs = one(
        &json!({"destination": "/run", "type": "tmpfs", "source": "mine",
        "options": ["rw", "rprivate", "nosuid", "noexec", "size=1m", "tmpcopyup", "noswap"]}),
    );
    assert_eq!(
        tmpfs.source,
        Source::FileSystem {
            kind: "tmpfs".into(),
            name: "mine".into(),
            options: "size=1m,noswap".into(),
            copy_up: true,
        }
    );
    assert_eq!(tmpfs.attributes, Attributes { set: 10, clear: 0 });
    let cgroup =
        one(&json!({"destination": "/groups", "type": "cgroup", "options": ["ro", "nsdelegate"]}));
    let Source::FileSystem { kind, options, .. } = &cgroup.source else {
        panic!("{cgroup:?}");
    };
    assert_eq!((&**kind, &**options), ("cgroup2", ""));
    for (kind, reason) in [
        ("hugetlbfs", "huge pages"),
        ("nfs", "no file system"),
        ("", "bind mount"),
    ] {
        let mount = json!({"destination": "/x", "type": kind, "source": "x"});
        assert!(refused(&mount).contains(reason));
    }
}

#[test]
fn the_usual_mounts_are_changed_where_they_are() {
    let shm = |options: Value| {
        one(
            &json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}),
        )
    };
    assert_eq!(
        present(&shm(json!(["nosuid", "noexec", "nodev", "size=1g"]))),
        "size=1g"
    );
    assert_eq!(
        present(&shm(json!(["nosuid", "noexec", "nodev"]))),
        "size=50%"
    );
    let own = shm(json!(["size=1m", "mode=700", "uid=5"]));
    assert!(matches!(own.source, Source::FileSystem { .. }), "{own:?}");
    let exec = shm(json!(["size=64m", "exec"]));
    assert_eq!(exec.attributes, Attributes { set: 0, clear: 9 });
    let proc =
        one(&json!({"destination": "/proc", "type": "proc", "options": ["hidepid=2", "ro"]}));
    assert_eq!(present(&proc), "hidepid=2");
    assert_eq!(proc.attributes.set, 1);
    let dev = json!({"destination": "/dev", "type": "tmpfs", "options": ["mode=700"]});
    assert!(refused(&dev).contains("mode 755"));
}

#[test]
fn what_a_mount_hides_is_mounted_again() {
    let dir = tempfile::tempdir().unwrap();
    let plan = with_mounts(json!([
        {"destination": "/dev", "type": "bind", "source": dir.path()},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    ]))
    .unwrap();
    let last = plan.container.mounts.last().unwrap();
    assert!(matches!(last.source, Source::FileSystem { .. }), "{last:?}");
}

#[test]
fn the_guests_own_takes_the_place_of_the_hosts() {
    let plan = with_mounts(json!([
        {"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]},
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
    ]))
    .unwrap();
    assert!(plan.volumes.is_empty() && plan.container.mounts.is_empty());
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
}

#[test]
fn in_proc_only_some_files_are_mounted_on() {
    let dir = tempfile::tempdir().unwrap();
    let bind = |target: &str| json!({"destination": target, "type": "bind", "source": dir.path()});
    for target in [
        "/proc",
        "/proc/sys",
        "/x/../proc/1",
        "/proc/cpuinfo/x",
        "proc/self",
    ] {
        assert!(refused(&bind(target)).contains("a few files"), "{target}");
    }
    assert_eq!(one(&bind("/proc/uptime")).target, "/proc/uptime");
    let tmpfs = json!({"destination": "/proc/fs", "type": "tmpfs"});
    assert!(refused(&tmpfs).contains("a few files"));
    assert!(refused(&bind("/")).contains("root itself"));
}

#[test]
fn directories_are_made_in_the_root_but_not_in_what_is_mounted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut spec = least();
    spec["process"]["cwd"] = json!("/data/work");
    spec["mounts"] = json!([
        {"destination": "/data", "type": "bind", "source": dir.path()},
        {"destination": "/etc/file", "type": "bind", "source": dir.path().join("file")},
        {"destination": "/data/deep", "type": "tmpfs"},
        {"destination": "/run/x", "type": "tmpfs"},
        {"destination": "/dev/more", "type": "tmpfs"},
    ]);
    let found = plan(&spec).unwrap().directories;
    let expected = ["/dev", "/proc", "/sys", "/data", "/run/x"];
    assert_eq!(found, expected.map(std::path::PathBuf::from));
}
