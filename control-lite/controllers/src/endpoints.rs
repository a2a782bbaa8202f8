//! Legacy Endpoints of Services with a selector: one object per Service, the primary family only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tholepin_informer::{DeleteOptions, ObjectKey, Subresource, WorkQueue, is_pod_ready};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::patch::{object_diff, to_value};
use crate::runner::{self, Reconciler};
use crate::service_pods::{
    Family, ResolvedPort, address, enqueue_services_of_pods, families, hostname, is_candidate,
    is_headless, node_name, pod_reference, publishes_not_ready, resolve_ports, selected_pods,
    selector,
};

const WORKERS: usize = 5;
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Debug)]
struct EndpointsController {
    context: Context,
}

/// Registers handlers and starts the workers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::new());
    let caches = &context.caches;
    let add = queue.clone();
    caches.services.on_change(move |change| {
        change
            .latest()
            .into_iter()
            .for_each(|service| add.add(ObjectKey::of(&service.metadata)));
    });
    let add = queue.clone();
    caches.endpoints.on_change(move |change| {
        change
            .latest()
            .into_iter()
            .for_each(|object| add.add(ObjectKey::of(&object.metadata)));
    });
    enqueue_services_of_pods(caches, &queue);
    let controller = Arc::new(EndpointsController {
        context: context.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, WORKERS);
}

impl Reconciler for EndpointsController {
    type Key = ObjectKey;
    const NAME: &'static str = "endpoints";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        let existing = caches.endpoints.get(key);
        let Some(service) = caches.services.get(key) else {
            // Only what we made: others may keep Endpoints without a Service (leader elections did).
            if let Some(orphan) = existing.filter(|object| is_managed(object)) {
                let options = DeleteOptions {
                    uid: orphan.metadata.uid.clone(),
                    ..Default::default()
                };
                match caches.endpoints.delete(&orphan, options).await {
                    Err(error) if !error.is_not_found() => {
                        return Err(ReconcileError::of("delete endpoints", key)(error));
                    }
                    _ => (),
                }
            }
            return Ok(None);
        };
        if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let desired = desired(
            &service,
            &selected_pods(caches, &service),
            existing.as_deref(),
        );
        match existing {
            None => {
                let created = caches
                    .endpoints
                    .create(&key.namespace, to_value(&desired))
                    .await;
                created.map_err(ReconcileError::of("create endpoints", key))?;
            }
            Some(existing) => {
                if let Some(patch) = object_diff(&*existing, &desired) {
                    let patched = caches.endpoints.patch(key, Subresource::Main, patch).await;
                    patched.map_err(ReconcileError::of("update endpoints", key))?;
                }
            }
        }
        Ok(None)
    }
}

fn is_managed(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(MANAGED_BY))
}

/// The Endpoints a Service should have.
fn desired(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let family = families(service).first().copied().unwrap_or(Family::V4);
    let subsets = subsets(service, family, pods);
    let total: usize = subsets
        .iter()
        .map(|subset| {
            subset.addresses.as_ref().map_or(0, Vec::len)
                + subset.not_ready_addresses.as_ref().map_or(0, Vec::len)
        })
        .sum();
    let mut metadata = existing
        .map(|object| object.metadata.clone())
        .unwrap_or_else(|| ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        });
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    metadata.labels = Some(labels);
    let (subsets, over) = truncate(subsets, total);
    if over {
        metadata
            .annotations
            .get_or_insert_default()
            .insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = metadata.annotations.as_mut() {
        annotations.remove(OVER_CAPACITY);
        if annotations.is_empty() {
            metadata.annotations = None;
        }
    }
    Endpoints {
        metadata,
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

type Addresses = (Vec<EndpointAddress>, Vec<EndpointAddress>);

fn subsets(service: &Service, family: Family, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let mut groups: BTreeMap<Vec<ResolvedPort>, Addresses> = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|pod| is_candidate(pod, publishes_not_ready(service)))
    {
        let Some(ip) = address(pod, family) else {
            continue;
        };
        let ports = resolve_ports(service, pod);
        // Without any port there is nothing to reach, except below a headless Service.
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        let entry = EndpointAddress {
            ip,
            hostname: hostname(service, pod),
            node_name: node_name(pod),
            target_ref: Some(pod_reference(pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        if publishes_not_ready(service) || is_pod_ready(pod) {
            ready.push(entry);
        } else {
            not_ready.push(entry);
        }
    }
    let sorted = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: sorted(ready),
            not_ready_addresses: sorted(not_ready),
            ports: (!ports.is_empty()).then(|| {
                ports
                    .into_iter()
                    .map(|port| EndpointPort {
                        name: (!port.name.is_empty()).then_some(port.name),
                        port: port.port,
                        protocol: Some(port.protocol),
                        app_protocol: port.app_protocol,
                    })
                    .collect()
            }),
        })
        .collect()
}

/// Legacy Endpoints hold a thousand addresses; ready ones come first.
fn truncate(mut subsets: Vec<EndpointSubset>, total: usize) -> (Vec<EndpointSubset>, bool) {
    if total <= CAPACITY {
        return (subsets, false);
    }
    let mut room = CAPACITY;
    let mut cut = |addresses: &mut Option<Vec<EndpointAddress>>| {
        if let Some(list) = addresses {
            list.truncate(room);
            room -= list.len();
            if list.is_empty() {
                *addresses = None;
            }
        }
    };
    subsets
        .iter_mut()
        .for_each(|subset| cut(&mut subset.addresses));
    subsets
        .iter_mut()
        .for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, true)
}
