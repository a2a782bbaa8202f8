//! The `kubernetes` Service in `default`, with the EndpointSlice and Endpoints that lead to this API server.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tholepin_informer::{Cached, ClientError, ObjectKey, Store, Subresource, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError, Settings};
use crate::patch::{merge_diff, to_value};
use crate::runner::{self, Reconciler};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

#[derive(Debug)]
struct KubernetesService {
    context: Context,
    settings: Settings,
}

/// Registers handlers and starts the worker. There is one key.
pub(crate) fn spawn(
    context: &Context,
    settings: &Settings,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    if settings.advertise_address.is_loopback() {
        let address = settings.advertise_address;
        tracing::info!(%address, "the kubernetes Service gets no endpoint: pods cannot reach loopback");
    }
    let queue = Arc::new(WorkQueue::<String>::new());
    queue.add(NAME.to_owned());
    watch(&context.caches.services, &queue);
    watch(&context.caches.endpoint_slices, &queue);
    watch(&context.caches.endpoints, &queue);
    let add = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if change.old.is_none()
            && let Some(new) = &change.new
            && new.metadata.name.as_deref() == Some(NAMESPACE)
        {
            add.add(NAME.to_owned());
        }
    });
    let controller = Arc::new(KubernetesService {
        context: context.clone(),
        settings: settings.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

fn watch<T: Cached>(store: &Store<T>, queue: &Arc<WorkQueue<String>>) {
    let add = queue.clone();
    store.on_change(move |change| {
        let ours = change.latest().is_some_and(|object| {
            object.meta().namespace.as_deref() == Some(NAMESPACE)
                && object.meta().name.as_deref() == Some(NAME)
        });
        if ours {
            add.add(NAME.to_owned());
        }
    });
}

impl Reconciler for KubernetesService {
    type Key = String;
    const NAME: &'static str = "kubernetes-service";

    async fn reconcile(&self, _key: &String) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        if caches
            .namespaces
            .get(&ObjectKey::new("", NAMESPACE))
            .is_none()
        {
            // Its creation wakes us.
            return Ok(None);
        }
        let wanted = Wanted::new(&self.settings);
        ensure(&caches.services, wanted.service, Keep::Existing)
            .await
            .map_err(ReconcileError::of("keep service", NAME))?;
        if self.settings.advertise_address.is_loopback() {
            // Endpoints may not be on loopback: no pod could reach them. Said once, at start.
            return Ok(None);
        }
        ensure(&caches.endpoint_slices, wanted.slice, Keep::Wanted)
            .await
            .map_err(ReconcileError::of("keep endpoint slice", NAME))?;
        ensure(&caches.endpoints, wanted.endpoints, Keep::Wanted)
            .await
            .map_err(ReconcileError::of("keep endpoints", NAME))?;
        Ok(None)
    }
}

struct Wanted {
    service: Value,
    slice: Value,
    endpoints: Value,
}

impl Wanted {
    fn new(settings: &Settings) -> Self {
        let family = |v4: bool| if v4 { "IPv4" } else { "IPv6" };
        let (address, port) = (settings.advertise_address, settings.secure_port);
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "type": "ClusterIP", "sessionAffinity": "None",
                "clusterIP": settings.kubernetes_service_ip,
                "clusterIPs": [settings.kubernetes_service_ip],
                "ipFamilies": [family(settings.kubernetes_service_ip.is_ipv4())],
                "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
            },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": NAME, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": family(address.is_ipv4()),
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "protocol": "TCP", "port": port}],
        });
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": NAME, "namespace": NAMESPACE,
                // Keeps the mirroring of Endpoints to EndpointSlices away.
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address}],
                "ports": [{"name": "https", "protocol": "TCP", "port": port}]}],
        });
        Self {
            service,
            slice,
            endpoints,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Only make it: its addresses cannot be changed afterwards anyway.
    Existing,
    /// Make it what it should be.
    Wanted,
}

async fn ensure<T>(store: &Store<T>, wanted: Value, keep: Keep) -> Result<(), ClientError>
where
    T: Cached + serde::Serialize,
{
    let key = ObjectKey::new(NAMESPACE, NAME);
    let Some(existing) = store.get(&key) else {
        return store.create(NAMESPACE, wanted).await.map(drop);
    };
    if keep == Keep::Existing {
        return Ok(());
    }
    let before = to_value(&*existing);
    let mut after = before.clone();
    let (Value::Object(fields), Value::Object(wanted)) = (&mut after, wanted) else {
        return Ok(());
    };
    for (field, value) in wanted {
        if field == "metadata" {
            fields["metadata"]["labels"] = value["labels"].clone();
        } else {
            fields.insert(field, value);
        }
    }
    match merge_diff(&before, &after) {
        Some(patch) => store.patch(&key, Subresource::Main, patch).await.map(drop),
        None => Ok(()),
    }
}
