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

#[test]
fn what_grows_is_not_larger_in_any_way() {
    let class = |cpus, mib: u64| Class {
        cpus,
        memory: mib << 20,
    };
    let small = class(1, 256);
    for larger in [class(4, 256), class(1, 257), class(2, 1 << 20)] {
        assert!(small.grows_to(larger), "{larger}");
        assert!(!larger.grows_to(small), "{larger}");
    }
    assert!(!small.grows_to(small));
    assert!(!small.grows_to(class(GROWS_TO + 1, 256)));
    assert!(!class(2, 256).grows_to(class(1, 512)));
    // Its memory reaches where more would go.
    assert!(!class(1, 4 << 10).grows_to(class(1, 5 << 10)));
    assert!(class(1, 4 << 10).grows_to(class(2, 4 << 10)));
}

#[test]
fn the_largest_template_of_the_same_parts_grows() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let templates = templates(dir.path());
    let class = |cpus, mib: u64| Class {
        cpus,
        memory: mib << 20,
    };
    let make = |class, image: Option<&ForImage>| {
        let template = templates.locate(class, &parts, image).unwrap();
        make_dir(&template.dir).unwrap();
        let about = About::new(class, &parts, image).unwrap();
        about.write(&template.dir).unwrap();
        template
    };
    let small = make(class(1, 256), None);
    let large = make(class(1, 512), None);
    make(class(1, 2048), None);
    let image = ForImage {
        name: "a".into(),
        layers: vec![dir.path().to_owned()],
    };
    let warm = make(class(1, 256), Some(&image));
    let wanted = class(2, 1024);
    let growing = |image| templates.growing_to(wanted, &parts, image).unwrap();
    assert_eq!(growing(None), [large.clone(), small.clone()]);
    assert_eq!(growing(Some(&image)), [warm, large, small]);
    fs::write(&parts.kernel, "a new kernel").unwrap();
    assert!(growing(Some(&image)).is_empty());
}
