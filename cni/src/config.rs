//! What the runtime passes: environment and network configuration.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::error::CniError;

/// Versions of the specification whose results we can write.
pub(crate) const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The `CNI_` variables.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    command: Option<String>,
    container_id: Option<String>,
    netns: Option<String>,
    interface: Option<String>,
    arguments: Option<String>,
}

/// Validated arguments of one attachment.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) container_id: String,
    pub(crate) interface: String,
    /// Empty only for DEL.
    pub(crate) netns: String,
    pub(crate) pod_namespace: String,
    pub(crate) pod_name: String,
    pub(crate) pod_uid: String,
}

impl Environment {
    pub(crate) fn from_process() -> Self {
        let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            interface: get("CNI_IFNAME"),
            arguments: get("CNI_ARGS"),
        }
    }

    pub(crate) fn command(&self) -> Result<&str, CniError> {
        self.command
            .as_deref()
            .ok_or_else(|| missing("CNI_COMMAND"))
    }

    pub(crate) fn add_arguments(&self) -> Result<Arguments, CniError> {
        if self.netns.is_none() {
            return Err(missing("CNI_NETNS"));
        }
        self.del_arguments()
    }

    pub(crate) fn del_arguments(&self) -> Result<Arguments, CniError> {
        let container_id = self
            .container_id
            .clone()
            .ok_or_else(|| missing("CNI_CONTAINERID"))?;
        let interface = self
            .interface
            .clone()
            .ok_or_else(|| missing("CNI_IFNAME"))?;
        let mut characters = container_id.chars();
        let first_ok = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !first_ok || !characters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            return Err(invalid(
                "CNI_CONTAINERID",
                "must be letters, digits, `_`, `.` or `-`",
            ));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if interface.len() > 15 || interface == "." || interface == ".." || interface.contains(bad)
        {
            return Err(invalid("CNI_IFNAME", "is not a valid interface name"));
        }
        let mut arguments = Arguments {
            container_id,
            interface,
            netns: self.netns.clone().unwrap_or_default(),
            pod_namespace: String::new(),
            pod_name: String::new(),
            pod_uid: String::new(),
        };
        for pair in self
            .arguments
            .iter()
            .flat_map(|text| text.split(';'))
            .filter(|p| !p.is_empty())
        {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(invalid(
                    "CNI_ARGS",
                    "must be `NAME=VALUE` pairs separated by `;`",
                ));
            };
            match name {
                "K8S_POD_NAMESPACE" => arguments.pod_namespace = value.to_owned(),
                "K8S_POD_NAME" => arguments.pod_name = value.to_owned(),
                "K8S_POD_UID" => arguments.pod_uid = value.to_owned(),
                // Runtimes pass more than a plugin knows, and say so with IgnoreUnknown.
                _ => (),
            }
        }
        Ok(arguments)
    }
}

fn missing(variable: &'static str) -> CniError {
    invalid(variable, "is not set")
}

fn invalid(variable: &'static str, problem: &str) -> CniError {
    CniError::InvalidEnvironment {
        variable,
        problem: problem.to_owned(),
    }
}

/// The network configuration on standard input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) cni_version: String,
    #[serde(default)]
    name: String,
    /// Where the agent has its socket and the queue of deletions.
    #[serde(default = "default_run_dir")]
    pub(crate) run_dir: PathBuf,
    #[serde(default)]
    pub(crate) prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
}

/// An attachment GC must keep.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

fn default_run_dir() -> PathBuf {
    PathBuf::from("/run/tholepin")
}

impl Config {
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let mut config: Self =
            serde_json::from_slice(input).map_err(|source| CniError::Decode { source })?;
        if config.cni_version.is_empty() {
            return Err(CniError::IncompatibleVersion {
                version: config.cni_version,
            });
        }
        if !SUPPORTED.contains(&config.cni_version.as_str()) {
            return Err(CniError::IncompatibleVersion {
                version: config.cni_version,
            });
        }
        if config.name.is_empty() {
            return Err(CniError::InvalidConfig {
                problem: "name is missing".to_owned(),
            });
        }
        if !config.run_dir.is_absolute() {
            let problem = format!("runDir {:?} is not an absolute path", config.run_dir);
            return Err(CniError::InvalidConfig { problem });
        }
        config.prev_result = config.prev_result.filter(|result| !result.is_null());
        Ok(config)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }
}

/// The version an error document is written in: the caller's if it is one we know.
pub(crate) fn version_for_errors(input: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(input).ok();
    let version = parsed
        .as_ref()
        .and_then(|value| value.get("cniVersion")?.as_str());
    version
        .filter(|version| SUPPORTED.contains(version))
        .unwrap_or("1.1.0")
        .to_owned()
}
