//! `hooks`: those that run in the container. All others run on the host, where the VM is invisible.

use agent_protocol::Hook;
use oci_spec::runtime::Spec;
use serde_json::json;

use super::{
    Place,
    refused::{Refused, value},
    text,
};

/// The hooks of `startContainer`, with what the specification has them read: the container's state.
pub(super) fn in_container(spec: &Spec, place: Place<'_>) -> Result<Vec<Hook>, Refused> {
    let hooks = spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.start_container().as_ref());
    let state = json!({
        "ociVersion": spec.version(),
        "id": place.id,
        "status": "created",
        // In its own namespace, which is the one that the hook sees.
        "pid": 1,
        "bundle": place.bundle,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
    .to_string()
    .into_bytes();
    let hooks = hooks.into_iter().flatten().enumerate();
    let hook = |(index, hook): (usize, &oci_spec::runtime::Hook)| {
        let property = |name: &str| format!("hooks.startContainer[{index}].{name}");
        let path = text(&property("path"), hook.path())?;
        if !hook.path().is_absolute() {
            return Err(value(property("path"), path, "it must be an absolute path"));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds @ 1..) => Some(seconds),
                _ => {
                    let reason = "it must be more than no second";
                    return Err(value(property("timeout"), seconds.to_string(), reason));
                }
            },
        };
        Ok(Hook {
            path: path.into(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout,
            input: state.clone(),
        })
    };
    hooks.map(hook).collect()
}
