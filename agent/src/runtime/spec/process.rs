//! The process of a container: arguments, environment, directory, user and privileges.

use serde_json::{Value, json};

use super::super::{ContainerSpec, RuntimeError};
use super::{Inputs, capabilities, invalid};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `process` of the spec.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Value, RuntimeError> {
    let container = inputs.container;
    let capabilities = capabilities::of(container, *inputs.held)?;
    Ok(json!({
        "terminal": container.tty,
        "user": {
            "uid": inputs.user.uid,
            "gid": inputs.user.gid,
            "additionalGids": inputs.user.additional_gids,
        },
        "args": arguments(inputs)?,
        "env": environment(inputs),
        "cwd": working_directory(container, &inputs.image.working_dir),
        // Nothing inheritable: a container's capabilities end at its first exec as another user.
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "noNewPrivileges": !container.allow_privilege_escalation && !container.privileged,
        "oomScoreAdj": inputs.held.clamp_oom_score_adj(container.resources.oom_score_adj),
    }))
}

/// `command` replaces the entrypoint and its default arguments, `args` only the arguments.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, RuntimeError> {
    let container = inputs.container;
    let (entrypoint, cmd) = (inputs.image.entrypoint.clone(), inputs.image.cmd.clone());
    let own_args = || container.args.clone();
    let args: Vec<String> = if !container.command.is_empty() {
        [container.command.clone(), own_args()].concat()
    } else if !container.args.is_empty() {
        [entrypoint.unwrap_or_default(), own_args()].concat()
    } else {
        [entrypoint.unwrap_or_default(), cmd.unwrap_or_default()].concat()
    };
    if args.is_empty() {
        let message = "failed to generate container spec: no command specified";
        return Err(invalid(container, message));
    }
    Ok(args)
}

/// The image's environment, a PATH in any case, HOSTNAME, then the container's; the last of a name wins
/// at the place of the first.
fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let mut all: Vec<String> = vec![DEFAULT_PATH.into()];
    if inputs.container.tty {
        all.push("TERM=xterm".into());
    }
    let image = inputs.image.env.iter().flatten().cloned();
    let hostname = [format!("HOSTNAME={}", inputs.hostname)];
    let own = inputs
        .container
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    for entry in image.chain(hostname).chain(own) {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|known| name(known) == name(&entry)) {
            Some(known) => *known = entry,
            None => all.push(entry),
        }
    }
    all
}

fn working_directory(container: &ContainerSpec, image: &str) -> String {
    let own = container
        .working_dir
        .as_deref()
        .filter(|directory| !directory.is_empty());
    match (own, image) {
        (Some(own), _) => own.into(),
        (None, "") => "/".into(),
        (None, image) => image.into(),
    }
}
