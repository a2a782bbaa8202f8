//! Spreads the wanted endpoints over slices so that few slices change: every change goes to every node.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tholepin_informer::kinds;

use super::desired::{Groups, resolved_ports, slice_ports};
use crate::ownership::controller_reference;
use crate::service_pods::{Family, ResolvedPort, is_headless};

pub(super) const MAX_ENDPOINTS: usize = 100;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What is to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    /// Before and after.
    pub(super) update: Vec<(Arc<EndpointSlice>, EndpointSlice)>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Plans one family of one Service. `existing` are the family's slices that this controller manages.
pub(super) fn plan(
    service: &Service,
    family: Family,
    mut groups: Groups,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    if groups.values().all(Vec::is_empty) {
        // A slice without endpoints says that the Service was seen and has none.
        groups = Groups::from([(Vec::new(), Vec::new())]);
    }
    let mut by_ports: BTreeMap<Vec<ResolvedPort>, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        by_ports
            .entry(resolved_ports(slice.ports.as_ref()))
            .or_default()
            .push(slice.clone());
    }
    let mut plan = Plan::default();
    for (ports, endpoints) in groups {
        let slices = by_ports.remove(&ports).unwrap_or_default();
        plan_group(&mut plan, service, family, &ports, endpoints, slices);
    }
    plan.delete.extend(by_ports.into_values().flatten());
    recycle(&mut plan);
    plan
}

struct Draft {
    before: Arc<EndpointSlice>,
    after: EndpointSlice,
    changed: bool,
}

fn plan_group(
    plan: &mut Plan,
    service: &Service,
    family: Family,
    ports: &[ResolvedPort],
    endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
) {
    let nothing_wanted = endpoints.is_empty();
    let mut wanted: BTreeMap<String, Endpoint> = endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let mut drafts: Vec<Draft> = slices
        .into_iter()
        .map(|slice| keep_wanted(service, slice, &mut wanted))
        .collect();
    // What is new goes first into slices that are written anyway …
    let mut left: Vec<Endpoint> = wanted.into_values().collect();
    for draft in drafts.iter_mut().filter(|draft| draft.changed) {
        fill(draft, &mut left);
    }
    // … then into the fullest untouched slice that takes the rest …
    if !left.is_empty() && left.len() < MAX_ENDPOINTS {
        let fits = drafts
            .iter_mut()
            .filter(|draft| !draft.changed)
            .filter(|draft| draft.after.endpoints.len() + left.len() <= MAX_ENDPOINTS)
            .max_by_key(|draft| draft.after.endpoints.len());
        if let Some(draft) = fits {
            fill(draft, &mut left);
            draft.changed = true;
        }
    }
    // … and otherwise into new ones.
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(MAX_ENDPOINTS));
        plan.create.push(new_slice(
            service,
            family,
            ports,
            std::mem::replace(&mut left, rest),
        ));
    }
    let mut kept_placeholder = false;
    for draft in drafts {
        let empty = draft.after.endpoints.is_empty();
        if empty && (kept_placeholder || !nothing_wanted) {
            plan.delete.push(draft.before);
            continue;
        }
        kept_placeholder |= empty;
        if draft.changed {
            plan.update.push((draft.before, draft.after));
        }
    }
    if nothing_wanted && !kept_placeholder {
        plan.create
            .push(new_slice(service, family, ports, Vec::new()));
    }
}

/// The wanted endpoints that a slice has already stay there, with their present state.
fn keep_wanted(
    service: &Service,
    slice: Arc<EndpointSlice>,
    wanted: &mut BTreeMap<String, Endpoint>,
) -> Draft {
    let mut after = EndpointSlice::clone(&slice);
    after.endpoints = slice
        .endpoints
        .iter()
        .filter_map(|held| wanted.remove(&identity(held)))
        .collect();
    let metadata = metadata(service, Some(&slice.metadata));
    let changed = after.endpoints != slice.endpoints
        || metadata.labels != slice.metadata.labels
        || metadata.owner_references != slice.metadata.owner_references;
    after.metadata = metadata;
    Draft {
        before: slice,
        after,
        changed,
    }
}

fn fill(draft: &mut Draft, left: &mut Vec<Endpoint>) {
    let room = MAX_ENDPOINTS
        .saturating_sub(draft.after.endpoints.len())
        .min(left.len());
    draft.after.endpoints.extend(left.drain(..room));
}

/// A slice that would be deleted while another is created is rewritten instead.
fn recycle(plan: &mut Plan) {
    while !plan.create.is_empty() && !plan.delete.is_empty() {
        let before = plan.delete.remove(0);
        let mut after = plan.create.remove(0);
        after.metadata.name = before.metadata.name.clone();
        after.metadata.generate_name = before.metadata.generate_name.clone();
        let labels = after.metadata.labels.take();
        let owners = after.metadata.owner_references.take();
        after.metadata = before.metadata.clone();
        after.metadata.labels = labels;
        after.metadata.owner_references = owners;
        plan.update.push((before, after));
    }
}

/// Who an endpoint is: its pod, or its address if it has none.
fn identity(endpoint: &Endpoint) -> String {
    let address = endpoint.addresses.first().cloned().unwrap_or_default();
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone());
    format!("{}/{address}", uid.unwrap_or_default())
}

fn new_slice(
    service: &Service,
    family: Family,
    ports: &[ResolvedPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        address_type: family.as_str().to_owned(),
        endpoints,
        metadata: metadata(service, None),
        ports: Some(slice_ports(ports)),
    }
}

fn metadata(service: &Service, existing: Option<&ObjectMeta>) -> ObjectMeta {
    let name = service.metadata.name.clone().unwrap_or_default();
    // Labels others put on the slice stay; the Service's own are copied.
    let reserved = |key: &str| [SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&key);
    let mut labels: BTreeMap<String, String> = service
        .metadata
        .labels
        .iter()
        .flatten()
        .filter(|(key, _)| !reserved(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let mut metadata = existing.cloned().unwrap_or_else(|| ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        ..Default::default()
    });
    metadata.labels = Some(labels);
    metadata.owner_references = Some(vec![controller_reference(
        kinds::SERVICE,
        &service.metadata,
    )]);
    metadata
}
