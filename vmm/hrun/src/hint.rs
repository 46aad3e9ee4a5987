//! What to do next when something failed: one sentence for the kinds of failure that have one.

use std::io;

use image::{RemoveError, StoreError};

use crate::{
    background::BackgroundError,
    commands::run::ImageOrCommand,
    container::ContainerError,
    host::HostError,
    options::volume::VolumeError,
    parts::PartsError,
    pool::client::ClientError,
    relay::RelayError,
    sandbox::{BootError, ClaimError},
    session::SessionError,
    spec::SpecError,
    template::{MakeError, RehearsalError},
};

/// An image that a container needs.
#[derive(Debug, thiserror::Error)]
#[error("Image {image} is in use by container {container}")]
pub(crate) struct ImageInUse {
    pub(crate) image: String,
    pub(crate) container: String,
    /// It is not a stopped one.
    pub(crate) runs: bool,
}

/// The next step after an error.
pub(crate) fn for_error(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        background(cause)
            .or_else(|| host(cause))
            .or_else(|| store(cause))
            .or_else(|| containers(cause))
            .or_else(|| pool(cause))
            .or_else(|| template(cause))
            .or_else(|| disk(cause))
    })
}

type Cause = dyn std::error::Error + 'static;

/// What the process in the background had to say.
fn background(cause: &Cause) -> Option<String> {
    match cause.downcast_ref()? {
        BackgroundError::Failed(failed) => failed.hint.clone(),
        _ => None,
    }
}

fn host(cause: &Cause) -> Option<String> {
    let hint = if let Some(error) = cause.downcast_ref::<HostError>() {
        match error {
            HostError::NotRoot => "use sudo, or a root shell",
            HostError::NoKvm => {
                "load the module (modprobe kvm_intel, kvm_amd or kvm_pvm); on a virtual machine \
                 switch nested virtualisation on; in a container pass --device /dev/kvm; \
                 `hrun doctor` tells more"
            }
            HostError::Kvm(_) => "`hrun doctor` tells what is wrong with it",
            HostError::NoTerminal => "leave -t away to use a pipe or a file as input",
        }
    } else if let Some(error) = cause.downcast_ref::<PartsError>() {
        match error {
            PartsError::OwnPath(_) => "is /proc mounted?",
            PartsError::Missing { .. } => {
                "build it with `make` (or `make install`) in hrun's source tree; `hrun doctor` \
                 shows which parts were found"
            }
            PartsError::Named { .. } => "correct the variable, or unset it to use hrun's own",
        }
    } else {
        match cause.downcast_ref::<BootError>()? {
            BootError::Timeout(_) => {
                "if the machine is only slow, set HRUN_BOOT_TIMEOUT to more seconds; if not, \
                 `hrun run --console FILE` writes the guest's boot log"
            }
            BootError::Ended(_) => {
                "`hrun run --console FILE` writes the guest's boot log, HRUN_LOG=debug the VMM's"
            }
            BootError::Decode(_) => {
                "use vmlinux, initramfs.cpio and hrun of one build; are HRUN_KERNEL or \
                 HRUN_INITRAMFS set?"
            }
            _ => return None,
        }
    };
    Some(hint.into())
}

fn template(cause: &Cause) -> Option<String> {
    if let Some(ClaimError::NotGrown(_)) = cause.downcast_ref() {
        return Some(
            "`hrun template create` makes the default one, `hrun template ls` lists all; clones \
             of each may have up to 4 CPUs"
                .into(),
        );
    }
    match cause.downcast_ref::<MakeError>()? {
        MakeError::Rehearse(RehearsalError::Save(_) | RehearsalError::Timeout) => Some(
            "name a command that ends by itself and only reads, such as true: \
             `hrun template create --image IMAGE COMMAND`"
                .into(),
        ),
        _ => None,
    }
}

fn store(cause: &Cause) -> Option<String> {
    if let Some(ImageOrCommand { .. }) = cause.downcast_ref() {
        return Some(
            "`hrun --help` shows the commands, `hrun image ls` the images; \
             `hrun run IMAGE` pulls one that is missing"
                .into(),
        );
    }
    if let Some(StoreError::Full { .. }) = cause.downcast_ref() {
        return Some(free_space());
    }
    if let Some(RemoveError::InUse { .. }) = cause.downcast_ref() {
        return Some("`hrun ps` shows which; it ends with `hrun rm -f CONTAINER`".into());
    }
    let in_use: &ImageInUse = cause.downcast_ref()?;
    let container = &in_use.container;
    Some(if in_use.runs {
        format!("it runs; `hrun rm -f {container}` ends and removes it")
    } else {
        format!("remove it first: `hrun rm {container}`, or use --force")
    })
}

fn containers(cause: &Cause) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<ContainerError>() {
        return match error {
            ContainerError::NameTaken { name, .. } => Some(format!(
                "take another name, or remove that container: `hrun rm {name}`"
            )),
            ContainerError::NotFound(_) => Some("`hrun ps -a` shows the containers".into()),
            ContainerError::Running(name) => {
                Some(format!("end it first, or use `hrun rm -f {name}`"))
            }
            ContainerError::Ambiguous(_) => Some("give more digits".into()),
            _ => None,
        };
    }
    if let Some(SpecError::NoCommand(image)) = cause.downcast_ref() {
        return Some(format!("name one: `hrun run {image} COMMAND`"));
    }
    let error: &VolumeError = cause.downcast_ref()?;
    matches!(error, VolumeError::Form(_))
        .then(|| "for example -v /srv/data:/data or -v ./src:/src:ro".into())
}

fn pool(cause: &Cause) -> Option<String> {
    match cause.downcast_ref()? {
        ClientError::NoDaemon(_) => Some(
            "start one: `systemctl start hrun-pool`, or `hrun pool serve` in a terminal; hrun run \
             does without"
                .into(),
        ),
        ClientError::Answer => {
            Some("daemon and hrun are of two versions: `systemctl restart hrun-pool`".into())
        }
        _ => None,
    }
}

fn disk(cause: &Cause) -> Option<String> {
    // Behind this one there may be a full disk as well, but it is the user's.
    if let Some(SessionError::Output(RelayError::Write { .. })) = cause.downcast_ref() {
        return Some("what the container printed is incomplete".into());
    }
    let error: &io::Error = cause.downcast_ref()?;
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
    .then(free_space)
}

fn free_space() -> String {
    "free some space: `hrun ps -a` and `hrun rm` for stopped containers, `hrun image rm` for \
     images; HRUN_STORE moves the store to another disk"
        .into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_hint_is_found_behind_the_context() {
        let error = Err::<(), _>(HostError::NotRoot)
            .context("Failed")
            .unwrap_err();
        assert!(for_error(&error).unwrap().contains("sudo"));
    }

    #[test]
    fn a_full_disk_has_a_hint_wherever_it_strikes() {
        let full = io::Error::from_raw_os_error(28);
        let error = Err::<(), _>(full).context("Failed to write x").unwrap_err();
        assert!(for_error(&error).unwrap().contains("hrun rm"));
    }

    #[test]
    fn what_has_no_hint_gets_none() {
        assert_eq!(for_error(&anyhow::anyhow!("x")), None);
    }
}
