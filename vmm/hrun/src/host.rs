//! What this machine must offer before anything is begun.

use std::{fs::OpenOptions, io, path::Path};

use rustix::process::geteuid;

/// KVM's device.
pub(crate) const KVM: &str = "/dev/kvm";

/// Something that this machine lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// Overlays can be mounted by root alone.
    #[error("hrun needs root: it mounts file systems and keeps the owners of files")]
    NotRoot,
    /// There is no KVM.
    #[error("{KVM} is missing: this machine offers no virtualisation to Linux")]
    NoKvm,
    /// There is one that cannot be used.
    #[error("Failed to open {KVM}")]
    Kvm(#[source] io::Error),
    /// `-it` without a terminal.
    #[error("Standard input is no terminal, so -i and -t do not go together")]
    NoTerminal,
}

/// Makes sure that this is root.
pub(crate) fn require_root() -> Result<(), HostError> {
    if geteuid().is_root() {
        Ok(())
    } else {
        Err(HostError::NotRoot)
    }
}

/// Makes sure that KVM can be used.
pub(crate) fn require_kvm() -> Result<(), HostError> {
    open_kvm(Path::new(KVM))
}

fn open_kvm(path: &Path) -> Result<(), HostError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HostError::NoKvm),
        Err(error) => Err(HostError::Kvm(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_and_one_that_cannot_be_used_are_told_apart() {
        assert!(matches!(
            open_kvm(Path::new("/dev/nonexistent")),
            Err(HostError::NoKvm)
        ));
        assert!(matches!(
            open_kvm(Path::new("/dev")),
            Err(HostError::Kvm(_))
        ));
    }
}
