//! What the tests run: the built binaries, the guest's parts and the test images.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The products of `make build` and `make images`.
#[derive(Debug, Clone)]
pub struct Built {
    /// cargo's target directory.
    pub target: PathBuf,
}

impl Built {
    /// Finds them: this program is somewhere below cargo's target directory.
    ///
    /// # Errors
    ///
    /// This program does not know where it is itself.
    pub fn find() -> Result<Self> {
        let own = env::current_exe().context("Failed to find this program's own path")?;
        // TARGET/PROFILE/program or TARGET/PROFILE/deps/program.
        let target = own
            .ancestors()
            .skip(1)
            .find(|dir| !dir.ends_with("deps"))
            .and_then(Path::parent)
            .context("This program is not in a cargo target directory")?;
        Ok(Self {
            target: target.into(),
        })
    }

    /// The command under test.
    #[must_use]
    pub fn hrun(&self) -> PathBuf {
        self.target.join("release/hrun")
    }

    /// The VMM.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.target.join("release/hrun-vmm")
    }

    /// The guest kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.target.join("guest/vmlinux")
    }

    /// The guest's initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.target.join("guest/initramfs.cpio")
    }

    /// A test image, or a directory of them, as the scripts of `tests/images` left it.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.target.join("test-images").join(name)
    }

    /// Whether all of it is there.
    ///
    /// # Errors
    ///
    /// Names what is missing.
    pub fn check(&self) -> Result<()> {
        let files = [self.hrun(), self.vmm(), self.kernel(), self.initramfs()];
        let images = ["busybox/busybox", "debian/debian", "variants/oci.tar"];
        let missing = |path: &PathBuf| (!path.exists()).then(|| path.display().to_string());
        let missing: Vec<_> = files
            .iter()
            .chain(&images.map(|name| self.image(name)))
            .filter_map(missing)
            .collect();
        if !missing.is_empty() {
            bail!("not built yet: {} (run make test)", missing.join(", "));
        }
        Ok(())
    }

    /// `tests/` in the source tree.
    #[must_use]
    pub fn sources() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }
}
