//! What one test gets: directories of its own, and hrun on them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    Built, Invocation,
    command::eventually,
    leaks::LeakCheck,
    processes::{self, Process},
    way::{Pool, Way},
};

/// What a test's image store holds at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Nothing.
    Empty,
    /// The image "busybox".
    Busybox,
    /// The image "debian".
    Debian,
    /// The image "layered": see `tests/images/variants.sh`.
    Layered,
}

impl Store {
    const ALL: [Self; 4] = [Self::Empty, Self::Busybox, Self::Debian, Self::Layered];

    fn layout(self) -> Option<&'static str> {
        match self {
            Self::Empty => None,
            Self::Busybox => Some("busybox/busybox"),
            Self::Debian => Some("debian/debian"),
            Self::Layered => Some("variants/layered"),
        }
    }
}

/// Directories of one run of all tests. Images are loaded once; every test gets a copy.
#[derive(Debug)]
pub(crate) struct Shared {
    built: Built,
    dir: tempfile::TempDir,
    cases: AtomicUsize,
    containers: AtomicUsize,
    stores: [OnceLock<Result<PathBuf, String>>; Store::ALL.len()],
    templates: OnceLock<PathBuf>,
    way: Way,
    pool: OnceLock<Result<Pool, String>>,
}

impl Shared {
    pub(crate) fn new(built: Built) -> Result<Self> {
        // Short: the path of a Unix socket has 107 bytes, and hrun wants some of them.
        let parent = std::env::var_os("HRUN_TEST_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix("he")
            .tempdir_in(&parent)
            .with_context(|| format!("Failed to make a directory in {}", parent.display()))?;
        Ok(Self {
            built,
            dir,
            cases: AtomicUsize::new(0),
            containers: AtomicUsize::new(0),
            stores: Default::default(),
            templates: OnceLock::new(),
            way: Way::from_env()?,
            pool: OnceLock::new(),
        })
    }

    /// The pool that all cases share, if their containers are to come from one: its socket.
    fn pool(&self) -> Result<Option<&Path>> {
        if self.way != Way::Pool {
            return Ok(None);
        }
        let store = self.templates()?.with_file_name("");
        let socket = self.dir().join("pool.sock");
        let pool = self.pool.get_or_init(|| {
            Pool::serve(&self.built, &store, socket).map_err(|error| format!("{error:#}"))
        });
        match pool {
            Ok(pool) => Ok(Some(pool.socket())),
            Err(error) => Err(anyhow!("{error}")),
        }
    }

    /// Ends what all cases shared.
    pub(crate) fn finish(&self) -> Result<()> {
        match self.pool.get() {
            Some(Ok(pool)) => pool.end(),
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// How many containers were run, each in a VM of its own.
    pub(crate) fn containers(&self) -> usize {
        self.containers.load(Ordering::Relaxed)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The templates of VMs that all cases share: to make them takes a boot.
    fn templates(&self) -> Result<&Path> {
        if let Some(templates) = self.templates.get() {
            return Ok(templates);
        }
        let store = self.dir().join("store-templates");
        let templates = store.join("templates");
        fs::create_dir_all(&templates).context("Failed to make a directory")?;
        let templates = self.templates.get_or_init(|| {
            // Before any test kills hrun while it makes one. Where it fails, for lack of KVM say,
            // the tests that need one will tell.
            let _ = Invocation::new(self.built.hrun())
                .env("HRUN_STORE", &store)
                .env("HRUN_STATE", self.dir().join("load"))
                .env("HRUN_BOOT_TIMEOUT", "250")
                .args(["template", "create"])
                .timeout(Duration::from_secs(300))
                .run();
            templates
        });
        Ok(templates)
    }

    fn template(&self, store: Store) -> Result<&Path> {
        let place = &self.stores[store as usize];
        let loaded = place.get_or_init(|| self.load(store).map_err(|error| format!("{error:#}")));
        loaded.as_deref().map_err(|error| anyhow!("{error}"))
    }

    fn load(&self, store: Store) -> Result<PathBuf> {
        let dir = self.dir().join(format!("store-{store:?}"));
        fs::create_dir(&dir).context("Failed to make a directory")?;
        let image = |args: &[&str], path: Option<PathBuf>| {
            Invocation::new(self.built.hrun())
                .env("HRUN_STORE", &dir)
                .env("HRUN_STATE", self.dir().join("load"))
                .args(["image"])
                .args(args)
                .args(path)
                .run()?
                .exits(0)
        };
        // A store that is empty again keeps its index: it is not to count as litter.
        let layout = store.layout().unwrap_or("busybox/busybox");
        image(&["load"], Some(self.built.image(layout)))?;
        if store == Store::Empty {
            image(&["rm", "busybox"], None)?;
        }
        Ok(dir)
    }
}

/// What one test works with.
#[derive(Debug)]
pub struct Case<'a> {
    shared: &'a Shared,
    dir: PathBuf,
    pool: Option<PathBuf>,
    leaks: LeakCheck,
}

impl<'a> Case<'a> {
    pub(crate) fn new(shared: &'a Shared, store: Store) -> Result<Self> {
        let number = shared.cases.fetch_add(1, Ordering::Relaxed);
        // The end of the name keeps case 1 from being found in the paths of case 11.
        let dir = shared.dir().join(format!("{number}c"));
        for part in ["state", "files"] {
            fs::create_dir_all(dir.join(part)).context("Failed to make a directory")?;
        }
        let copied = Command::new("cp")
            .args(["--archive", "--reflink=auto"])
            .args([shared.template(store)?, &dir.join("store")])
            .status()
            .context("Failed to start cp")?;
        ensure!(copied.success(), "Failed to copy a store: cp: {copied}");
        symlink(shared.templates()?, dir.join("store/templates"))
            .context("Failed to share templates")?;
        let pool = shared.pool()?.map(Path::to_path_buf);
        let leaks = LeakCheck::of(&dir);
        Ok(Self {
            shared,
            dir,
            pool,
            leaks,
        })
    }

    /// The built binaries and images.
    #[must_use]
    pub fn built(&self) -> &Built {
        &self.shared.built
    }

    /// A path for a file of the test's own: it is removed with the case and no litter.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join("files").join(name)
    }

    /// `HRUN_STORE` of this case.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// `HRUN_STATE` of this case.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// `hrun ARGS`.
    pub fn hrun<I>(&self, args: I) -> Invocation
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.with(self.built().hrun(), args)
    }

    /// Another program on this case's directories.
    pub fn with<I>(&self, program: impl Into<PathBuf>, args: I) -> Invocation
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        Invocation::new(program)
            .env("HRUN_STATE", self.state())
            .env("HRUN_STORE", self.store())
            // A pool in there, if any.
            .env("HRUN_POOL", "")
            .env("HRUN_START", self.shared.way.start())
            // No test asks a registry of the world.
            .env("HRUN_PULL", "never")
            // Patience for machines where everything else runs as well.
            .env("HRUN_BOOT_TIMEOUT", "250")
            .args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
    }

    /// `hrun run --rm ARGS`: one container, one VM.
    pub fn run<I>(&self, args: I) -> Invocation
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.shared.containers.fetch_add(1, Ordering::Relaxed);
        let pool = self.pool.as_deref().unwrap_or(Path::new(""));
        self.hrun(["run", "--rm"])
            .env("HRUN_POOL", pool)
            .args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
    }

    /// `hrun run --rm busybox sh -c SCRIPT`.
    pub fn shell(&self, script: &str) -> Invocation {
        self.run(["busybox", "sh", "-c", script])
    }

    /// VMMs of this case that live.
    #[must_use]
    pub fn vmms(&self) -> Vec<Process> {
        processes::users_of(&self.dir)
            .into_iter()
            .filter(|process| process.runs("hrun-vmm"))
            .collect()
    }

    /// Waits for the one VMM of this case.
    ///
    /// # Errors
    ///
    /// None appears.
    pub fn vmm(&self) -> Result<Process> {
        eventually("a VMM to appear", Duration::from_secs(30), || {
            self.vmms().pop()
        })
    }

    /// Demands that no process of this case is left, within a moment.
    ///
    /// # Errors
    ///
    /// Says which are.
    pub fn no_processes(&self) -> Result<()> {
        let mut left = Vec::new();
        eventually("every process to end", Duration::from_secs(10), || {
            left = processes::users_of(&self.dir);
            left.is_empty().then_some(())
        })
        .with_context(|| format!("left: {left:?}"))
    }

    /// Files in store and state that were not there at the beginning, and everything else that is
    /// left over.
    #[must_use]
    pub fn litter(&self) -> Vec<String> {
        self.leaks
            .find()
            .into_iter()
            .filter(|line| !line.contains(&*self.dir.join("files").to_string_lossy()))
            .collect()
    }

    /// Ends the case: says what is left, and removes it.
    pub(crate) fn finish(self) -> Vec<String> {
        let litter = self.litter();
        self.leaks.kill();
        let _ = fs::remove_dir_all(&self.dir);
        litter
    }
}
