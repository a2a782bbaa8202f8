//! Images in containerd's store: records, manifests and configs, and unpacking into snapshots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, GetImageRequest, Image, Info, InfoRequest, ListImagesRequest, ReadContentRequest,
    UpdateRequest,
};
use containerd_client::types::Descriptor;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tonic::metadata::AsciiMetadataValue;

use super::connect::{CallError, Connection, Idempotent, QUICK, SLOW, call};
use super::lease::Lease;
use super::reference::{Reference, Version};
use super::{ImageInfo, PullError, RuntimeError};

/// No manifest or config is near this; a registry that serves more is broken or hostile.
pub(super) const MAX_DOCUMENT: i64 = 8 << 20;

/// A manifest or an index; the two share their envelope.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) config: Option<Blob>,
    #[serde(default)]
    pub(super) layers: Vec<Blob>,
    #[serde(default)]
    pub(super) manifests: Vec<Blob>,
}

/// One reference to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: i64,
    pub(super) platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Blob {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            annotations: HashMap::new(),
        }
    }
}

impl Document {
    /// The manifest of an index that runs here.
    pub(super) fn for_this_platform(&self) -> Option<&Blob> {
        let (architecture, variants): (&str, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", &["", "v1"]),
            "aarch64" => ("arm64", &["v8", ""]),
            "arm" => ("arm", &["v7", "v6", ""]),
            "powerpc64" => ("ppc64le", &[""]),
            other => (other, &[""]),
        };
        variants.iter().find_map(|variant| {
            self.manifests.iter().find(|blob| {
                blob.platform.as_ref().is_some_and(|platform| {
                    platform.os == "linux"
                        && platform.architecture == architecture
                        && platform.variant == *variant
                })
            })
        })
    }
}

/// The part of an image config that a container needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ImageConfig {
    pub(super) user: String,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: String,
    pub(super) stop_signal: String,
}

#[derive(Debug, Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// An image down to what running it takes. Immutable for a given target digest.
#[derive(Clone, Debug)]
pub(super) struct ImageDetail {
    pub(super) config: ImageConfig,
    pub(super) config_digest: String,
    pub(super) layers: Vec<Blob>,
    pub(super) diff_ids: Vec<String>,
    /// Snapshot that holds the unpacked root file system; empty for an image without layers.
    pub(super) chain_id: String,
    pub(super) size_bytes: u64,
}

/// Why an image in the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("content {digest} is not an image document: {source}")]
    Document {
        digest: String,
        source: serde_json::Error,
    },
    #[error("content {digest} is too large for an image document ({size} bytes)")]
    TooLarge { digest: String, size: i64 },
    #[error("no match for platform in manifest: not found")]
    NoPlatform,
    #[error("manifest {digest} has {layers} layers but its config names {diff_ids}")]
    LayerCount {
        digest: String,
        layers: usize,
        diff_ids: usize,
    },
    #[error("layer {digest} unpacks to {actual}, its config says {expected}")]
    DiffId {
        digest: String,
        actual: String,
        expected: String,
    },
    #[error("config of manifest {digest} is missing")]
    NoConfig { digest: String },
    #[error("containerd gave no {0}")]
    Incomplete(&'static str),
}

/// Images of one containerd namespace.
#[derive(Debug)]
pub(super) struct Images {
    connection: Connection,
    snapshotter: String,
    /// By target digest. Content is immutable, so an entry never goes stale.
    details: Mutex<HashMap<String, ImageDetail>>,
}

impl Images {
    pub(super) fn new(connection: Connection, snapshotter: String) -> Self {
        Self {
            connection,
            snapshotter,
            details: Mutex::default(),
        }
    }

    /// The record of a reference. A digest also finds an image that was stored under a tag.
    pub(super) async fn record(&self, reference: &Reference) -> Result<Option<Image>, CallError> {
        let request = GetImageRequest {
            name: reference.to_string(),
        };
        let mut client = self.connection.images();
        match call(QUICK, client.get(self.connection.request(request))).await {
            Ok(response) => return Ok(response.image),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let Version::Digest(digest) = &reference.version else {
            return Ok(None);
        };
        let request = ListImagesRequest {
            filters: vec![format!("target.digest=={digest}")],
        };
        let found = call(QUICK, client.list(self.connection.request(request))).await?;
        let repository = reference.repository();
        Ok(found.images.into_iter().find(|image| {
            Reference::parse(&image.name).is_ok_and(|name| name.repository() == repository)
        }))
    }

    /// What the pod workers are told about an image.
    pub(super) async fn info(&self, image: &Image) -> Result<ImageInfo, ImageError> {
        let target = image
            .target
            .as_ref()
            .ok_or(ImageError::Incomplete("image target"))?;
        let detail = self.detail(target).await?;
        let id = match Reference::parse(&image.name) {
            Ok(reference) => format!("{}@{}", reference.repository(), target.digest),
            Err(_) => detail.config_digest.clone(),
        };
        Ok(ImageInfo {
            reference: image.name.clone(),
            id,
            size_bytes: detail.size_bytes,
            user: detail.config.user,
        })
    }

    /// Every image that is whole. One that is not (a pull was cut off) is left out.
    pub(super) async fn list(&self) -> Result<Vec<ImageInfo>, CallError> {
        let mut client = self.connection.images();
        let request = ListImagesRequest::default();
        let response = call(QUICK, client.list(self.connection.request(request))).await?;
        let mut infos = Vec::new();
        for image in response.images {
            match self.info(&image).await {
                Ok(info) => infos.push(info),
                Err(ImageError::Call(error @ CallError::Unreachable(_))) => return Err(error),
                Err(error) => tracing::debug!(image = image.name, %error, "image is not whole"),
            }
        }
        infos.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(infos)
    }

    /// Reads manifest and config of an image for this platform.
    pub(super) async fn detail(&self, target: &Descriptor) -> Result<ImageDetail, ImageError> {
        let known = self
            .details
            .lock()
            .expect("never poisoned")
            .get(&target.digest)
            .cloned();
        if let Some(detail) = known {
            return Ok(detail);
        }
        let mut size_bytes = target.size;
        let mut digest = target.digest.clone();
        let mut document: Document = self.document(&digest).await?;
        if document.config.is_none() && !document.manifests.is_empty() {
            let manifest = document
                .for_this_platform()
                .ok_or(ImageError::NoPlatform)?
                .clone();
            size_bytes += manifest.size;
            digest = manifest.digest;
            document = self.document(&digest).await?;
        }
        let config = document.config.ok_or(ImageError::NoConfig {
            digest: digest.clone(),
        })?;
        let parsed: ConfigDocument = self.document(&config.digest).await?;
        let diff_ids = parsed.rootfs.diff_ids;
        if diff_ids.len() != document.layers.len() {
            let (layers, diff_ids) = (document.layers.len(), diff_ids.len());
            return Err(ImageError::LayerCount {
                digest,
                layers,
                diff_ids,
            });
        }
        size_bytes += config.size + document.layers.iter().map(|layer| layer.size).sum::<i64>();
        let detail = ImageDetail {
            config: parsed.config.unwrap_or_default(),
            config_digest: config.digest,
            layers: document.layers,
            chain_id: chain_ids(&diff_ids).pop().unwrap_or_default(),
            diff_ids,
            size_bytes: u64::try_from(size_bytes).unwrap_or_default(),
        };
        self.details
            .lock()
            .expect("never poisoned")
            .insert(target.digest.clone(), detail.clone());
        Ok(detail)
    }

    async fn document<T: serde::de::DeserializeOwned>(
        &self,
        digest: &str,
    ) -> Result<T, ImageError> {
        let bytes = self.read(digest).await?;
        serde_json::from_slice(&bytes).map_err(|source| ImageError::Document {
            digest: digest.into(),
            source,
        })
    }

    /// Reads a small blob whole.
    pub(super) async fn read(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let mut client = self.connection.content();
        let request = InfoRequest {
            digest: digest.into(),
        };
        let info = call(QUICK, client.info(self.connection.request(request))).await?;
        let size = info.info.map_or(0, |info| info.size);
        if size > MAX_DOCUMENT {
            return Err(ImageError::TooLarge {
                digest: digest.into(),
                size,
            });
        }
        let request = ReadContentRequest {
            digest: digest.into(),
            offset: 0,
            size: 0,
        };
        let mut stream = call(QUICK, client.read(self.connection.request(request))).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        while let Some(chunk) = stream.message().await.map_err(CallError::from)? {
            bytes.extend_from_slice(&chunk.data);
        }
        Ok(bytes)
    }

    /// Adds labels to content that is already stored.
    pub(super) async fn label(
        &self,
        digest: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), CallError> {
        if labels.is_empty() {
            return Ok(());
        }
        let info = Info {
            digest: digest.into(),
            labels: labels.clone().into_iter().collect(),
            ..Info::default()
        };
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = UpdateRequest {
            info: Some(info),
            update_mask,
        };
        let mut client = self.connection.content();
        call(QUICK, client.update(self.connection.request(request)))
            .await
            .map(drop)
    }

    /// Makes sure that the image's root file system is there as committed snapshots.
    pub(super) async fn ensure_unpacked(&self, detail: &ImageDetail) -> Result<(), ImageError> {
        if detail.chain_id.is_empty() || self.has_snapshot(&detail.chain_id).await? {
            return Ok(());
        }
        let lease = Lease::acquire(&self.connection).await?;
        let outcome = self.unpack(detail, lease.id()).await;
        lease.release().await;
        outcome
    }

    /// [`Self::ensure_unpacked`] for a caller that holds a lease.
    pub(super) async fn unpack(
        &self,
        detail: &ImageDetail,
        lease: &AsciiMetadataValue,
    ) -> Result<(), ImageError> {
        let mut parent = String::new();
        let chains = chain_ids(&detail.diff_ids);
        for ((layer, diff_id), chain) in detail.layers.iter().zip(&detail.diff_ids).zip(chains) {
            if !self.has_snapshot(&chain).await? {
                self.unpack_layer(layer, diff_id, &parent, &chain, lease)
                    .await?;
            }
            parent = chain;
        }
        // Without this the unpacked chain is garbage once the lease is gone.
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        self.label(&detail.config_digest, &BTreeMap::from([(label, parent)]))
            .await?;
        Ok(())
    }

    async fn unpack_layer(
        &self,
        layer: &Blob,
        diff_id: &str,
        parent: &str,
        chain: &str,
        lease: &AsciiMetadataValue,
    ) -> Result<(), ImageError> {
        let mut snapshots = self.connection.snapshots();
        let key = format!("extract-{} {chain}", uuid::Uuid::new_v4());
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.into(),
            labels: HashMap::from([("containerd.io/snapshot.ref".into(), chain.into())]),
        };
        let prepared = call(
            QUICK,
            snapshots.prepare(self.connection.leased(request, lease)),
        )
        .await;
        let mounts = match prepared {
            Ok(response) => response.mounts,
            // A snapshotter that finds layers elsewhere answers so for one it already has.
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let applied = self.apply(layer, diff_id, mounts, lease).await;
        if applied.is_ok() {
            let request = CommitSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                name: chain.into(),
                key: key.clone(),
                labels: HashMap::new(),
            };
            let commit = snapshots.commit(self.connection.leased(request, lease));
            match call(SLOW, commit).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Somebody else was faster, or the layer is bad: the half-made snapshot is of no use.
        let request = RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key,
        };
        call(SLOW, snapshots.remove(self.connection.request(request)))
            .await
            .or_gone()?;
        applied
    }

    async fn apply(
        &self,
        layer: &Blob,
        diff_id: &str,
        mounts: Vec<containerd_client::types::Mount>,
        lease: &AsciiMetadataValue,
    ) -> Result<(), ImageError> {
        let request = ApplyRequest {
            diff: Some(layer.descriptor()),
            mounts,
            ..Default::default()
        };
        let mut client = self.connection.diff();
        // A layer of gigabytes takes its time; containerd's own client has no limit here.
        let deadline = SLOW * 10;
        let response = call(
            deadline,
            client.apply(self.connection.leased(request, lease)),
        )
        .await?;
        let actual = response
            .applied
            .ok_or(ImageError::Incomplete("applied layer"))?
            .digest;
        if actual != diff_id {
            return Err(ImageError::DiffId {
                digest: layer.digest.clone(),
                actual,
                expected: diff_id.into(),
            });
        }
        Ok(())
    }

    async fn has_snapshot(&self, key: &str) -> Result<bool, CallError> {
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
        };
        let mut client = self.connection.snapshots();
        match call(QUICK, client.stat(self.connection.request(request))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Turns a failure about an image in the store into the driver's error.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        name: &str,
        error: ImageError,
    ) -> RuntimeError {
        let subject = format!("image {name:?}");
        match error {
            ImageError::Call(error) => self.connection.failed(operation, subject)(error),
            other => RuntimeError::Operation {
                operation,
                subject,
                source: Box::new(other),
            },
        }
    }

    pub(super) fn pull_failed(&self, name: &str, error: ImageError) -> PullError {
        match error {
            ImageError::Call(CallError::Unreachable(_)) => {
                PullError::Runtime(self.failed("reach", name, error))
            }
            other => PullError::Pull {
                reference: name.into(),
                message: other.to_string(),
            },
        }
    }
}

/// Snapshot names of a stack of layers: each is the hash of the one below and its own diff id.
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => {
                let hash = Sha256::digest(format!("{parent} {diff_id}"));
                format!("sha256:{}", hex::encode(hash))
            }
        };
        chains.push(chain);
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_image_specification() {
        let diff_ids = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        let second = format!(
            "sha256:{}",
            hex::encode(Sha256::digest("sha256:a sha256:b"))
        );
        assert_eq!(chain_ids(&diff_ids), ["sha256:a".to_owned(), second]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn an_index_yields_the_manifest_of_this_machine_and_no_attestation() {
        let architecture = if std::env::consts::ARCH == "x86_64" {
            "amd64"
        } else {
            "arm64"
        };
        let entry = |digest: &str, os: &str, architecture: &str| {
            serde_json::json!({"mediaType": "m", "digest": digest, "size": 1,
                "platform": {"os": os, "architecture": architecture}})
        };
        let manifests = [
            entry("x", "unknown", "unknown"),
            entry("w", "windows", architecture),
            entry("l", "linux", architecture),
        ];
        let index: Document =
            serde_json::from_value(serde_json::json!({"manifests": manifests})).expect("valid");
        assert_eq!(
            index.for_this_platform().map(|blob| blob.digest.as_str()),
            Some("l")
        );
    }
}
