//! Pulling: registry → content store → snapshots, under a lease, one transfer per reference.

mod source;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use containerd_client::services::v1::{
    AbortRequest, CreateImageRequest, Image, InfoRequest, UpdateImageRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types::Descriptor;
use futures::future::{FutureExt, Shared};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;

use self::source::{Source, describe};
use super::connect::{CallError, Connection, Idempotent, QUICK, SLOW, call};
use super::image::{Blob, Document, ImageError, Images};
use super::lease::Lease;
use super::reference::Reference;
use super::{ImageInfo, PullError, RegistryAuth};

const PARALLEL_LAYERS: usize = 3;
const WRITE_CHUNK: usize = 1 << 20;

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

type Transfer = Shared<futures::future::BoxFuture<'static, Result<ImageInfo, Arc<PullError>>>>;
/// Reference and credentials: a pod must not ride on a transfer that it could not have started itself.
type TransferKey = (String, Option<(String, String)>);

/// Pulls, de-duplicated.
#[derive(Clone)]
pub(super) struct Puller {
    connection: Connection,
    images: Arc<Images>,
    plain_http: Arc<[String]>,
    layers: Arc<Semaphore>,
    transfers: Arc<Mutex<HashMap<TransferKey, Transfer>>>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The keys hold credentials.
        f.debug_struct("Puller")
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

/// Where in a pull something failed; the texts are containerd's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("failed to resolve reference {reference:?}: {message}")]
    Resolve { reference: String, message: String },
    #[error("failed to copy: {0}")]
    Copy(String),
    #[error(transparent)]
    Store(#[from] ImageError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Store(ImageError::Call(error))
    }
}

impl Puller {
    pub(super) fn new(connection: Connection, images: Arc<Images>, plain_http: &[String]) -> Self {
        Self {
            connection,
            images,
            plain_http: plain_http.into(),
            layers: Arc::new(Semaphore::new(PARALLEL_LAYERS)),
            transfers: Arc::default(),
        }
    }

    /// Pulls, or joins the pull of the same reference with the same credentials that is under way. A
    /// caller that goes away does not end the transfer for the others.
    pub(super) async fn pull(
        &self,
        reference: Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageInfo, PullError> {
        let credentials = auth
            .as_ref()
            .map(|auth| (auth.username.clone(), auth.password.clone()));
        let key = (reference.to_string(), credentials);
        let transfer = {
            let mut transfers = self.transfers.lock().expect("never poisoned");
            match transfers.get(&key) {
                Some(transfer) => transfer.clone(),
                None => {
                    let transfer = self.start(key.clone(), reference, auth);
                    transfers.insert(key, transfer.clone());
                    transfer
                }
            }
        };
        transfer.await.map_err(|error| match &*error {
            PullError::Pull { reference, message } => PullError::Pull {
                reference: reference.clone(),
                message: message.clone(),
            },
            PullError::InvalidName { reference, message } => PullError::InvalidName {
                reference: reference.clone(),
                message: message.clone(),
            },
            PullError::Runtime(error) => PullError::Runtime(error.duplicate()),
        })
    }

    fn start(
        &self,
        key: TransferKey,
        reference: Reference,
        auth: Option<RegistryAuth>,
    ) -> Transfer {
        let this = self.clone();
        let name = reference.to_string();
        let task = tokio::spawn(async move {
            let outcome = this.transfer(&reference, auth.as_ref()).await;
            this.transfers.lock().expect("never poisoned").remove(&key);
            outcome.map_err(Arc::new)
        });
        async move {
            task.await.unwrap_or_else(|error| {
                let message = format!("the transfer ended early: {error}");
                Err(Arc::new(PullError::Pull {
                    reference: name,
                    message,
                }))
            })
        }
        .boxed()
        .shared()
    }

    async fn transfer(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<ImageInfo, PullError> {
        let name = reference.to_string();
        let failed = |failure: Failure| match failure {
            Failure::Store(error) => self.images.pull_failed(&name, error),
            other => PullError::Pull {
                reference: name.clone(),
                message: other.to_string(),
            },
        };
        let lease = Lease::acquire(&self.connection)
            .await
            .map_err(|error| failed(error.into()))?;
        let outcome = self.transfer_leased(reference, auth, lease.id()).await;
        lease.release().await;
        outcome.map_err(failed)
    }

    async fn transfer_leased(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        lease: &AsciiMetadataValue,
    ) -> Result<ImageInfo, Failure> {
        let source = Source::new(reference, auth, &self.plain_http)?;
        let (root_bytes, root_digest) = source.resolve().await?;
        let root: Document = parse(&root_digest, &root_bytes)?;
        let (manifest_digest, manifest_bytes, manifest) = if root.manifests.is_empty() {
            (root_digest.clone(), root_bytes.clone(), root.clone())
        } else {
            let chosen = root.for_this_platform().ok_or(ImageError::NoPlatform)?;
            let bytes = source.manifest(&chosen.digest).await?;
            let manifest: Document = parse(&chosen.digest, &bytes)?;
            (chosen.digest.clone(), bytes, manifest)
        };
        let config = manifest
            .config
            .clone()
            .ok_or_else(|| ImageError::NoConfig {
                digest: manifest_digest.clone(),
            })?;

        self.fetch(&source, &config, lease).await?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| self.fetch(&source, layer, lease));
        let layers: Vec<_> = layers.collect();
        futures::stream::iter(layers)
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<()>()
            .await?;

        // Parents are written after their children, with the references that keep the children alive.
        let labels = references(&config, &manifest.layers);
        self.store(&manifest_digest, &manifest_bytes, labels, lease)
            .await?;
        if root_digest != manifest_digest {
            let label = ("containerd.io/gc.ref.content.m.0".into(), manifest_digest);
            self.store(&root_digest, &root_bytes, BTreeMap::from([label]), lease)
                .await?;
        }

        let target = Descriptor {
            media_type: root.media_type_or_guess().into(),
            digest: root_digest,
            size: root_bytes.len() as i64,
            annotations: HashMap::new(),
        };
        let detail = self.images.detail(&target).await?;
        self.images.unpack(&detail, lease).await?;
        let image = self.publish(reference, target).await?;
        Ok(self.images.info(&image).await?)
    }

    /// Points the name at the image, replacing what it pointed at before.
    async fn publish(&self, reference: &Reference, target: Descriptor) -> Result<Image, Failure> {
        let image = Image {
            name: reference.to_string(),
            target: Some(target),
            ..Image::default()
        };
        let mut client = self.connection.images();
        let request = CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        };
        match call(QUICK, client.create(self.connection.request(request))).await {
            Ok(_) => return Ok(image),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        let paths = vec!["target".to_owned()];
        let request = UpdateImageRequest {
            image: Some(image.clone()),
            update_mask: Some(prost_types::FieldMask { paths }),
            source_date_epoch: None,
        };
        call(QUICK, client.update(self.connection.request(request))).await?;
        Ok(image)
    }

    /// Brings one blob into the content store unless it is there.
    async fn fetch(
        &self,
        source: &Source,
        blob: &Blob,
        lease: &AsciiMetadataValue,
    ) -> Result<(), Failure> {
        if self.is_stored(&blob.digest, lease).await? {
            return Ok(());
        }
        let permit = self.layers.acquire().await;
        let stream = source.blob(blob).await?;
        let outcome = self
            .write(&blob.digest, blob.size, BTreeMap::new(), stream, lease)
            .await;
        drop(permit);
        outcome
    }

    async fn store(
        &self,
        digest: &str,
        bytes: &[u8],
        labels: BTreeMap<String, String>,
        lease: &AsciiMetadataValue,
    ) -> Result<(), Failure> {
        if self.is_stored(digest, lease).await? {
            return Ok(self.images.label(digest, &labels).await?);
        }
        let chunk = Ok(bytes::Bytes::copy_from_slice(bytes));
        let stream = futures::stream::once(async move { chunk }).boxed();
        self.write(digest, bytes.len() as i64, labels, stream, lease)
            .await
    }

    /// Looking under the lease also puts existing content under it.
    async fn is_stored(&self, digest: &str, lease: &AsciiMetadataValue) -> Result<bool, CallError> {
        let mut client = self.connection.content();
        let request = InfoRequest {
            digest: digest.into(),
        };
        match call(QUICK, client.info(self.connection.leased(request, lease))).await {
            Ok(_) => {
                use containerd_client::services::v1::{AddResourceRequest, Resource};
                let resource = Resource {
                    id: digest.into(),
                    r#type: "content".into(),
                };
                let request = AddResourceRequest {
                    id: lease.to_str().unwrap_or_default().into(),
                    resource: Some(resource),
                };
                let mut client = self.connection.leases();
                call(QUICK, client.add_resource(self.connection.request(request))).await?;
                Ok(true)
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write(
        &self,
        digest: &str,
        size: i64,
        labels: BTreeMap<String, String>,
        mut stream: futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>,
        lease: &AsciiMetadataValue,
    ) -> Result<(), Failure> {
        let ingest = format!("tholepin-{digest}");
        let mut client = self.connection.content();
        // What an agent that was killed has left of this blob; its first bytes are worth little.
        let abort = AbortRequest {
            r#ref: ingest.clone(),
        };
        call(QUICK, client.abort(self.connection.request(abort)))
            .await
            .or_gone()?;

        let (sender, receiver) = mpsc::channel(1);
        let request = self.connection.leased(ReceiverStream::new(receiver), lease);
        let message = |action: WriteAction, offset, data: bytes::Bytes| WriteContentRequest {
            action: action.into(),
            r#ref: ingest.clone(),
            total: size,
            expected: digest.into(),
            offset,
            data: data.to_vec(),
            labels: HashMap::new(),
        };
        // containerd answers the headers only after the first message.
        sender
            .send(message(WriteAction::Stat, 0, bytes::Bytes::new()))
            .await
            .map_err(|_| ImageError::Incomplete("content writer"))?;
        let mut answers = match call(QUICK, client.write(request)).await {
            Ok(answers) => answers,
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        answer(&mut answers).await?;
        let mut offset = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Failure::Copy(describe(&error)))?;
            for piece in chunk.chunks(WRITE_CHUNK) {
                let piece = chunk.slice_ref(piece);
                let length = piece.len() as i64;
                let sent = sender
                    .send(message(WriteAction::Write, offset, piece))
                    .await;
                // A closed channel means that the answer is an error: read that.
                answer(&mut answers).await?;
                sent.map_err(|_| ImageError::Incomplete("content writer"))?;
                offset += length;
            }
        }
        if size > 0 && offset != size {
            return Err(Failure::Copy(format!(
                "{digest}: got {offset} bytes of {size}: unexpected EOF"
            )));
        }
        let commit = WriteContentRequest {
            labels: labels.into_iter().collect(),
            ..message(WriteAction::Commit, offset, bytes::Bytes::new())
        };
        let sent = sender.send(commit).await;
        match answer(&mut answers).await {
            Ok(()) => sent.map_err(|_| ImageError::Incomplete("content writer").into()),
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn answer(
    answers: &mut tonic::Streaming<containerd_client::services::v1::WriteContentResponse>,
) -> Result<(), CallError> {
    match tokio::time::timeout(SLOW, answers.message()).await {
        Ok(message) => Ok(message.map(drop)?),
        Err(_) => Err(CallError::Deadline(SLOW)),
    }
}

/// Garbage collection references of a manifest: config first, then the layers in order.
fn references(config: &Blob, layers: &[Blob]) -> BTreeMap<String, String> {
    let layers = layers.iter().enumerate().map(|(index, layer)| {
        (
            format!("containerd.io/gc.ref.content.l.{index}"),
            layer.digest.clone(),
        )
    });
    layers
        .chain([(
            "containerd.io/gc.ref.content.config".to_owned(),
            config.digest.clone(),
        )])
        .collect()
}

fn parse(digest: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Document {
        digest: digest.into(),
        source,
    })
}

impl Document {
    /// The media type is optional in OCI documents.
    fn media_type_or_guess(&self) -> &str {
        match (self.media_type.as_str(), self.manifests.is_empty()) {
            ("", true) => MANIFEST_TYPES[2],
            ("", false) => MANIFEST_TYPES[0],
            (given, _) => given,
        }
    }
}
