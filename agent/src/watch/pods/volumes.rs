//! Volumes of API pods as domain volumes; kinds this agent does not have are named.

use k8s_openapi::api::core::v1 as api;
use tholepin_model::pod::quantity::parse_units;
use tholepin_model::pod::{
    DownwardFile, DownwardValue, FileSource, FilesKind, KeyToPath, KeyedSource, Volume,
    VolumeSource,
};

use super::parse::resource_field;

const DEFAULT_MODE: u32 = 0o644;

/// Volumes of kinds this agent does not have stay in the list: mounting them fails, visibly.
pub(super) fn parse(spec: &api::PodSpec) -> Vec<Volume> {
    let volumes = spec.volumes.iter().flatten();
    volumes
        .map(|volume| Volume {
            name: volume.name.clone(),
            source: source(volume),
        })
        .collect()
}

fn source(volume: &api::Volume) -> VolumeSource {
    if let Some(directory) = &volume.empty_dir {
        return empty_dir(directory);
    }
    if let Some(map) = &volume.config_map {
        let keyed = keyed(Some(&map.name), map.items.as_deref(), map.optional);
        return files(
            FilesKind::ConfigMap,
            vec![FileSource::ConfigMap(keyed)],
            map.default_mode,
        );
    }
    if let Some(secret) = &volume.secret {
        let keyed = keyed(
            secret.secret_name.as_ref(),
            secret.items.as_deref(),
            secret.optional,
        );
        return files(
            FilesKind::Secret,
            vec![FileSource::Secret(keyed)],
            secret.default_mode,
        );
    }
    if let Some(downward) = &volume.downward_api {
        let items = downward_files(downward.items.as_deref());
        let sources = vec![FileSource::DownwardApi(items)];
        return files(FilesKind::DownwardApi, sources, downward.default_mode);
    }
    if let Some(projected) = &volume.projected {
        let mut sources = Vec::new();
        for projection in projected.sources.iter().flatten() {
            match projected_source(projection) {
                Ok(source) => sources.push(source),
                Err(kind) => {
                    return VolumeSource::Unsupported {
                        kind: format!("projected {kind}"),
                    };
                }
            }
        }
        return files(FilesKind::Projected, sources, projected.default_mode);
    }
    VolumeSource::Unsupported {
        kind: kind_of(volume),
    }
}

fn empty_dir(directory: &api::EmptyDirVolumeSource) -> VolumeSource {
    match directory.medium.as_deref() {
        None | Some("" | "Memory") => {}
        Some(other) => {
            return VolumeSource::Unsupported {
                kind: format!("emptyDir with medium {other:?}"),
            };
        }
    }
    let limit = directory
        .size_limit
        .as_ref()
        .and_then(|limit| parse_units(&limit.0).ok())
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    VolumeSource::EmptyDir {
        memory: directory.medium.as_deref() == Some("Memory"),
        size_limit_bytes: limit,
    }
}

fn projected_source(projection: &api::VolumeProjection) -> Result<FileSource, &'static str> {
    if let Some(map) = &projection.config_map {
        let keyed = keyed(Some(&map.name), map.items.as_deref(), map.optional);
        return Ok(FileSource::ConfigMap(keyed));
    }
    if let Some(secret) = &projection.secret {
        let keyed = keyed(Some(&secret.name), secret.items.as_deref(), secret.optional);
        return Ok(FileSource::Secret(keyed));
    }
    if let Some(downward) = &projection.downward_api {
        return Ok(FileSource::DownwardApi(downward_files(
            downward.items.as_deref(),
        )));
    }
    Err(if projection.service_account_token.is_some() {
        "serviceAccountToken"
    } else if projection.cluster_trust_bundle.is_some() {
        "clusterTrustBundle"
    } else {
        "source of an unknown kind"
    })
}

fn files(kind: FilesKind, sources: Vec<FileSource>, mode: Option<i32>) -> VolumeSource {
    VolumeSource::Files {
        kind,
        sources,
        default_mode: self::mode(mode).unwrap_or(DEFAULT_MODE),
    }
}

fn mode(mode: Option<i32>) -> Option<u32> {
    mode.and_then(|mode| u32::try_from(mode).ok())
        .map(|mode| mode & 0o777)
}

fn keyed(
    name: Option<&String>,
    items: Option<&[api::KeyToPath]>,
    optional: Option<bool>,
) -> KeyedSource {
    KeyedSource {
        name: name.cloned().unwrap_or_default(),
        items: items
            .unwrap_or_default()
            .iter()
            .map(|item| KeyToPath {
                key: item.key.clone(),
                path: item.path.clone(),
                mode: mode(item.mode),
            })
            .collect(),
        optional: optional.unwrap_or(false),
    }
}

fn downward_files(items: Option<&[api::DownwardAPIVolumeFile]>) -> Vec<DownwardFile> {
    items
        .unwrap_or_default()
        .iter()
        .map(|item| DownwardFile {
            path: item.path.clone(),
            mode: mode(item.mode),
            value: match (&item.field_ref, &item.resource_field_ref) {
                (_, Some(resource)) => resource_field(resource),
                (Some(field), None) => DownwardValue::Field(field.field_path.clone()),
                (None, None) => DownwardValue::Field(String::new()),
            },
        })
        .collect()
}

/// Name of the field that is set, as the manifest has it.
fn kind_of(volume: &api::Volume) -> String {
    serde_json::to_value(volume)
        .ok()
        .and_then(|value| {
            let object = value.as_object()?;
            object.keys().find(|key| *key != "name").cloned()
        })
        .unwrap_or_else(|| "no volume source".to_owned())
}
