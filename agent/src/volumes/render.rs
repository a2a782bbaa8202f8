//! Contents of file volumes and values of the downward API. Pure: sources are looked up by the caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use tholepin_model::pod::env::ObjectKind;
use tholepin_model::pod::quantity::parse_milli;
use tholepin_model::pod::{DownwardValue, FileSource, KeyedSource, Pod};

use crate::watch::objects::ObjectData;

/// Relative path to contents and mode.
pub type Files = BTreeMap<String, File>;

#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub contents: Vec<u8>,
    pub mode: u32,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Contents may be a Secret's.
        f.debug_struct("File")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Why contents could not be made. The texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error("{resource} {name:?} not found")]
    NotFound {
        resource: &'static str,
        name: String,
    },
    #[error("failed to fetch {resource} {name:?}: {message}")]
    Unavailable {
        resource: &'static str,
        name: String,
        message: String,
    },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        key: String,
        namespace: String,
        name: String,
    },
    #[error("references non-existent config key: {key}")]
    NoItem { key: String },
    #[error("unsupported fieldPath: {path}")]
    FieldPath { path: String },
    #[error("unsupported resource: {resource}")]
    Resource { resource: String },
    #[error("container {name} not found")]
    Container { name: String },
    #[error("invalid divisor {divisor:?}")]
    Divisor { divisor: String },
    #[error("path {path:?} must be relative and must not contain '..'")]
    Path { path: String },
}

/// Sources and facts that contents are made of.
pub trait SourceLookup {
    /// `Ok(None)` when the object does not exist.
    fn object(&self, kind: ObjectKind, name: &str) -> Result<Option<Arc<ObjectData>>, RenderError>;
    /// Addresses for `status.*` fields.
    fn facts(&self) -> &Facts;
}

/// What the node knows and downward values may ask for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Default limits of containers without any.
    pub node_cpu_milli: i64,
    pub node_memory_bytes: i64,
}

/// All files of one volume.
pub fn render(
    pod: &Pod,
    sources: &[FileSource],
    default_mode: u32,
    lookup: &dyn SourceLookup,
) -> Result<Files, RenderError> {
    let mut files = Files::new();
    for source in sources {
        match source {
            FileSource::ConfigMap(keyed) => {
                keyed_files(
                    ObjectKind::ConfigMap,
                    keyed,
                    default_mode,
                    lookup,
                    &mut files,
                )?;
            }
            FileSource::Secret(keyed) => {
                keyed_files(ObjectKind::Secret, keyed, default_mode, lookup, &mut files)?;
            }
            FileSource::DownwardApi(items) => {
                for item in items {
                    let value = downward(pod, "", &item.value, lookup.facts())?;
                    let file = File {
                        contents: value.into_bytes(),
                        mode: item.mode.unwrap_or(default_mode),
                    };
                    files.insert(checked(&item.path)?, file);
                }
            }
        }
    }
    Ok(files)
}

fn keyed_files(
    kind: ObjectKind,
    source: &KeyedSource,
    default_mode: u32,
    lookup: &dyn SourceLookup,
    files: &mut Files,
) -> Result<(), RenderError> {
    let Some(data) = lookup.object(kind, &source.name)? else {
        if source.optional {
            return Ok(());
        }
        return Err(RenderError::NotFound {
            resource: kind.resource(),
            name: source.name.clone(),
        });
    };
    if source.items.is_empty() {
        for (key, contents) in &data.entries {
            files.insert(
                checked(key)?,
                File {
                    contents: contents.clone(),
                    mode: default_mode,
                },
            );
        }
        return Ok(());
    }
    for item in &source.items {
        match data.entries.get(&item.key) {
            Some(contents) => {
                let mode = item.mode.unwrap_or(default_mode);
                files.insert(
                    checked(&item.path)?,
                    File {
                        contents: contents.clone(),
                        mode,
                    },
                );
            }
            None if source.optional => {}
            None => {
                return Err(RenderError::NoItem {
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn checked(path: &str) -> Result<String, RenderError> {
    let is_safe = !path.is_empty()
        && !path.starts_with('/')
        && path.split('/').all(|part| !part.is_empty() && part != "..")
        && !path.starts_with("..");
    if is_safe {
        Ok(path.to_owned())
    } else {
        Err(RenderError::Path {
            path: path.to_owned(),
        })
    }
}

/// Value of a `fieldRef` or `resourceFieldRef`. `own` is the container that asks.
pub fn downward(
    pod: &Pod,
    own: &str,
    value: &DownwardValue,
    facts: &Facts,
) -> Result<String, RenderError> {
    match value {
        DownwardValue::Field(path) => field(pod, path, facts),
        DownwardValue::Resource {
            container,
            resource,
            divisor,
        } => {
            let name = if container.is_empty() { own } else { container };
            resource_value(pod, name, resource, divisor, facts)
        }
    }
}

fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, RenderError> {
    let subscript = |prefix: &str| {
        path.strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix("['"))
            .and_then(|rest| rest.strip_suffix("']"))
    };
    if let Some(key) = subscript("metadata.labels") {
        return Ok(pod.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(pod.annotations.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "metadata.labels" => formatted(&pod.labels),
        "metadata.annotations" => formatted(&pod.annotations),
        "spec.nodeName" => pod.node_name.clone(),
        "spec.serviceAccountName" => pod.service_account.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        other => {
            return Err(RenderError::FieldPath {
                path: other.to_owned(),
            });
        }
    })
}

/// `key="value"` per line, sorted by key, quoted as Go's `%q`.
fn formatted(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn resource_value(
    pod: &Pod,
    container: &str,
    resource: &str,
    divisor: &str,
    facts: &Facts,
) -> Result<String, RenderError> {
    let resources = &pod
        .container(container)
        .ok_or_else(|| RenderError::Container {
            name: container.to_owned(),
        })?
        .resources;
    let (cpu_request, memory_request) = resources.effective_requests();
    let milli: i128 = match resource {
        "limits.cpu" => resources
            .cpu_limit_milli
            .unwrap_or(facts.node_cpu_milli)
            .into(),
        "requests.cpu" => cpu_request.unwrap_or(0).into(),
        "limits.memory" => {
            i128::from(
                resources
                    .memory_limit_bytes
                    .unwrap_or(facts.node_memory_bytes),
            ) * 1000
        }
        "requests.memory" => i128::from(memory_request.unwrap_or(0)) * 1000,
        other => {
            return Err(RenderError::Resource {
                resource: other.to_owned(),
            });
        }
    };
    let divisor_milli = match divisor {
        "" | "0" => 1000,
        text => parse_milli(text)
            .ok()
            .filter(|divisor| *divisor > 0)
            .ok_or_else(|| RenderError::Divisor {
                divisor: text.to_owned(),
            })?,
    };
    Ok((milli / divisor_milli + i128::from(milli % divisor_milli > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use tholepin_model::pod::resources::Resources;
    use tholepin_model::pod::{Container, DownwardFile, KeyToPath};

    use super::*;

    struct Fixed(BTreeMap<String, Vec<u8>>, Facts);

    impl SourceLookup for Fixed {
        fn object(
            &self,
            _: ObjectKind,
            name: &str,
        ) -> Result<Option<Arc<ObjectData>>, RenderError> {
            let data = ObjectData {
                entries: self.0.clone(),
            };
            Ok((name == "there").then(|| Arc::new(data)))
        }
        fn facts(&self) -> &Facts {
            &self.1
        }
    }

    fn keyed(name: &str, items: &[(&str, &str)], optional: bool) -> FileSource {
        let items = items
            .iter()
            .map(|(key, path)| KeyToPath {
                key: (*key).to_owned(),
                path: (*path).to_owned(),
                mode: Some(0o400),
            })
            .collect();
        FileSource::ConfigMap(KeyedSource {
            name: name.to_owned(),
            items,
            optional,
        })
    }

    fn lookup() -> Fixed {
        let entries = BTreeMap::from([("a".to_owned(), b"1".to_vec())]);
        Fixed(
            entries,
            Facts {
                pod_ips: vec!["10.1.1.1".to_owned()],
                ..Facts::default()
            },
        )
    }

    #[test]
    fn missing_objects_and_keys_are_errors_unless_optional() {
        let pod = Pod::default();
        let run = |source| render(&pod, &[source], 0o644, &lookup());
        assert_eq!(
            run(keyed("gone", &[], false)).unwrap_err().to_string(),
            "configmap \"gone\" not found"
        );
        assert_eq!(run(keyed("gone", &[], true)).unwrap(), Files::new());
        assert_eq!(
            run(keyed("there", &[("b", "f")], false))
                .unwrap_err()
                .to_string(),
            "references non-existent config key: b"
        );
        assert_eq!(
            run(keyed("there", &[("b", "f")], true)).unwrap(),
            Files::new()
        );
    }

    #[test]
    fn items_choose_paths_and_modes_and_never_leave_the_volume() {
        let pod = Pod::default();
        let files = render(
            &pod,
            &[keyed("there", &[("a", "d/f")], false)],
            0o644,
            &lookup(),
        )
        .unwrap();
        assert_eq!(files["d/f"].mode, 0o400);
        for path in ["../x", "/x", "a/../../x", ""] {
            let source = keyed("there", &[("a", path)], false);
            assert!(render(&pod, &[source], 0o644, &lookup()).is_err(), "{path}");
        }
    }

    #[test]
    fn downward_values_follow_upstreams_formats() {
        let pod = Pod {
            name: "p".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "w\"eb".to_owned())]),
            containers: vec![Container {
                name: "c".to_owned(),
                resources: Resources {
                    cpu_limit_milli: Some(1500),
                    memory_limit_bytes: Some(64 << 20),
                    ..Resources::default()
                },
                ..Container::default()
            }],
            ..Pod::default()
        };
        let facts = lookup().1;
        let field =
            |path: &str| downward(&pod, "c", &DownwardValue::Field(path.to_owned()), &facts);
        assert_eq!(field("metadata.labels['app']").unwrap(), "w\"eb");
        assert_eq!(field("metadata.labels").unwrap(), "app=\"w\\\"eb\"");
        assert_eq!(field("status.podIP").unwrap(), "10.1.1.1");
        assert!(field("spec.containers").is_err());
        let resource = |resource: &str, divisor: &str| {
            let value = DownwardValue::Resource {
                container: String::new(),
                resource: resource.to_owned(),
                divisor: divisor.to_owned(),
            };
            downward(&pod, "c", &value, &facts).unwrap()
        };
        assert_eq!(resource("limits.cpu", ""), "2");
        assert_eq!(resource("limits.cpu", "1m"), "1500");
        assert_eq!(resource("limits.memory", "1Mi"), "64");
        let file = DownwardFile {
            path: "name".to_owned(),
            mode: None,
            value: DownwardValue::Field("metadata.name".to_owned()),
        };
        let files = render(
            &pod,
            &[FileSource::DownwardApi(vec![file])],
            0o644,
            &lookup(),
        )
        .unwrap();
        assert_eq!(files["name"].contents, b"p");
    }
}
