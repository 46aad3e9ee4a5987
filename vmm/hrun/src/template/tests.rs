use super::*;

fn parts(dir: &Path) -> Parts {
    let part = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        path
    };
    Parts {
        vmm: part("hrun-vmm"),
        kernel: part("vmlinux"),
        initramfs: part("initramfs.cpio"),
    }
}

fn templates(dir: &Path) -> Templates {
    Templates::open(&Dirs::new(dir.join("state"), dir.join("store"))).unwrap()
}

const CLASS: Class = Class {
    cpus: 2,
    memory: 256 << 20,
};

#[test]
fn the_name_says_everything_that_matters() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let templates = templates(dir.path());
    let key = |class| templates.locate(class, &parts, None).unwrap().key;
    let first = key(CLASS);
    assert!(first.starts_with("2cpu-256m-"), "{first}");
    assert_eq!(first, key(CLASS));
    assert_ne!(first, key(Class { cpus: 1, ..CLASS }));
    // A difference that the readable part does not show.
    let memory = CLASS.memory + 4096;
    assert_ne!(first, key(Class { memory, ..CLASS }));
    for part in [&parts.vmm, &parts.kernel, &parts.initramfs] {
        let before = key(CLASS);
        fs::write(part, "something else").unwrap();
        assert_ne!(before, key(CLASS));
    }
}

#[test]
fn a_template_of_replaced_parts_is_stale_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let templates = templates(dir.path());
    let template = templates.locate(CLASS, &parts, None).unwrap();
    make_dir(&template.dir).unwrap();
    About::new(CLASS, &parts, None)
        .unwrap()
        .write(&template.dir)
        .unwrap();
    templates.collect().unwrap();
    assert_eq!(templates.list().unwrap()[0].0, template);
    assert_eq!(templates.find("2cpu").unwrap(), template);
    let left = dir.path().join("store/templates/.x.new");
    make_dir(&left).unwrap();
    fs::write(&parts.kernel, "a new kernel").unwrap();
    templates.collect().unwrap();
    assert!(templates.list().unwrap().is_empty());
    assert!(!template.dir.exists() && !left.exists());
    assert!(matches!(
        templates.find("2cpu"),
        Err(TemplateError::NotFound(_))
    ));
}

#[test]
fn a_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    fs::remove_file(&parts.kernel).unwrap();
    let error = templates(dir.path())
        .locate(CLASS, &parts, None)
        .unwrap_err();
    assert!(error.to_string().contains("vmlinux"), "{error}");
}

#[test]
fn what_is_half_there_is_no_template() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let templates = templates(dir.path());
    let template = templates.locate(CLASS, &parts, None).unwrap();
    assert!(!templates.is_usable(&template).unwrap());
    make_dir(&template.dir).unwrap();
    fs::write(template.dir.join("state"), "HRUNSNAP").unwrap();
    let error = templates.is_usable(&template).unwrap_err();
    assert!(matches!(error, TemplateError::Snapshot(_)), "{error}");
    assert!(templates.list().unwrap().is_empty());
}
