//! Volumes of pods on disk: rendering file volumes, mounting tmpfs, removing without ever recursing
//! into a mount.
//!
//! Layout below a pod's directory is the kubelet's: `volumes/kubernetes.io~<kind>/<name>`.

pub mod atomic_writer;
pub mod mounts;
pub mod pod_files;
pub mod render;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tholepin_model::pod::{FilesKind, Pod, Volume, VolumeSource};

use self::render::{Files, RenderError, SourceLookup};

/// Why a volume could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("failed to {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("volume kind {kind} is not supported by this agent")]
    Unsupported { kind: String },
    #[error("{path} is still a mount point; nothing below it was removed")]
    StillMounted { path: PathBuf },
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    let path = path.to_path_buf();
    move |source| VolumeError::Io {
        operation,
        path,
        source,
    }
}

/// Directory of one volume.
#[must_use]
pub fn volume_dir(pod_dir: &Path, volume: &Volume) -> PathBuf {
    let plugin = match &volume.source {
        VolumeSource::EmptyDir { .. } => "empty-dir",
        VolumeSource::Files { kind, .. } => match kind {
            FilesKind::ConfigMap => "configmap",
            FilesKind::Secret => "secret",
            FilesKind::DownwardApi => "downward-api",
            FilesKind::Projected => "projected",
        },
        VolumeSource::Unsupported { .. } => "unsupported",
    };
    pod_dir
        .join("volumes")
        .join(format!("kubernetes.io~{plugin}"))
        .join(&volume.name)
}

/// Makes or updates one volume. Blocking; idempotent. Returns whether contents changed.
pub fn ensure(
    pod_dir: &Path,
    pod: &Pod,
    volume: &Volume,
    lookup: &dyn SourceLookup,
) -> Result<bool, VolumeError> {
    let directory = volume_dir(pod_dir, volume);
    match &volume.source {
        VolumeSource::Unsupported { kind } => Err(VolumeError::Unsupported { kind: kind.clone() }),
        VolumeSource::EmptyDir {
            memory,
            size_limit_bytes,
        } => {
            if *memory {
                mounts::ensure_tmpfs(&directory, *size_limit_bytes, 0o777)
                    .map_err(io("mount a tmpfs on", &directory))?;
            } else {
                std::fs::create_dir_all(&directory).map_err(io("create", &directory))?;
            }
            set_ownership(&directory, 0o777, pod.fs_group)?;
            Ok(false)
        }
        VolumeSource::Files {
            kind,
            sources,
            default_mode,
        } => {
            // Rendered first: a missing ConfigMap leaves no half-made volume behind.
            let files: Files = render::render(pod, sources, *default_mode, lookup)?;
            if *kind == FilesKind::Secret || *kind == FilesKind::Projected {
                mounts::ensure_tmpfs(&directory, None, 0o755)
                    .map_err(io("mount a tmpfs on", &directory))?;
            } else {
                std::fs::create_dir_all(&directory).map_err(io("create", &directory))?;
            }
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))
                .map_err(io("set the mode of", &directory))?;
            atomic_writer::write(&directory, &files, pod.fs_group)
                .map_err(io("write the files of", &directory))
        }
    }
}

fn set_ownership(path: &Path, mode: u32, group: Option<i64>) -> Result<(), VolumeError> {
    let gid = group.and_then(|group| u32::try_from(group).ok());
    if let Some(gid) = gid {
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(io("change the group of", path))?;
    }
    // The set-group-id bit makes new files belong to fsGroup too.
    let mode = if gid.is_some() { mode | 0o2000 } else { mode };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(io("set the mode of", path))
}

/// Whether anything of the pod's volumes is left.
#[must_use]
pub fn exists(pod_dir: &Path) -> bool {
    pod_dir.join("volumes").exists() || pod_dir.join("volume-subpaths").exists()
}

/// Unmounts and removes all volumes of a pod. Blocking; idempotent.
pub fn remove_all(pod_dir: &Path) -> Result<(), VolumeError> {
    for name in ["volume-subpaths", "volumes", "containers"] {
        let directory = pod_dir.join(name);
        remove_unmounted(&directory)?;
    }
    Ok(())
}

/// Removes the whole directory of a pod, journal included. Blocking; idempotent.
pub fn remove_pod_dir(pod_dir: &Path) -> Result<(), VolumeError> {
    remove_unmounted(pod_dir)
}

fn remove_unmounted(directory: &Path) -> Result<(), VolumeError> {
    if !directory.exists() {
        return Ok(());
    }
    for mount in mounts::below(directory).map_err(io("list the mounts below", directory))? {
        mounts::unmount(&mount).map_err(io("unmount", &mount))?;
    }
    // Never recurse into a mount: what is below may be somebody's data.
    let left = mounts::below(directory).map_err(io("list the mounts below", directory))?;
    if let Some(path) = left.into_iter().next() {
        return Err(VolumeError::StillMounted { path });
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}
