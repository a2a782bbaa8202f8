//! Cluster addresses of Services: families, requested and chosen addresses, release.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use serde_json::{Map, Value};
use tholepin_apimachinery::field::{FieldError, Path};
use tholepin_apimachinery::value::{copy, default_to, ensure_map, list_at, str_at};
use tholepin_apimachinery::{ApiError, Kind, meta};
use tholepin_store::ListRequest;

use super::ip_allocator::{AllocateError, IpAllocator};
use super::{ApiResult, Registry, Resource, folder, resources, store_error, stored};

const NONE: &str = "None";

/// Why a Service cannot have what it asks for.
type Refusal = Box<FieldError>;

/// The allocators of the cluster's Service ranges, the primary family first.
#[derive(Debug)]
pub(super) struct ClusterIps {
    ranges: Mutex<Vec<IpAllocator>>,
    families: Vec<Family>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::V4, Self::V6]
            .into_iter()
            .find(|family| family.as_str() == text)
    }
}

/// Addresses taken for a write that may still fail. Given back unless it is kept.
#[derive(Debug)]
#[must_use]
pub(super) struct Lease<'a> {
    ips: &'a ClusterIps,
    taken: Vec<IpAddr>,
    /// Addresses the written object no longer has.
    freed: Vec<IpAddr>,
}

impl Lease<'_> {
    /// The write happened.
    pub(super) fn keep(mut self) {
        self.taken.clear();
        self.ips.release_all(&std::mem::take(&mut self.freed));
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.ips.release_all(&self.taken);
    }
}

impl ClusterIps {
    pub(super) fn new(ranges: &[IpNet]) -> Self {
        Self {
            ranges: Mutex::new(ranges.iter().copied().map(IpAllocator::new).collect()),
            families: ranges
                .iter()
                .map(|range| Family::of(range.addr()))
                .collect(),
        }
    }

    /// Gives a new Service its families and addresses.
    pub(super) fn for_new(&self, kind: &Kind, object: &mut Value) -> ApiResult<Lease<'_>> {
        let mut lease = Lease {
            ips: self,
            taken: Vec::new(),
            freed: Vec::new(),
        };
        if kind.kind == "Service" {
            self.assign(object, &mut lease)
                .map_err(|error| invalid(kind, object, &error))?;
        }
        Ok(lease)
    }

    /// Adjusts an updated Service: addresses come and go with its type and its families.
    pub(super) fn for_update(
        &self,
        kind: &Kind,
        object: &mut Value,
        old: &Value,
    ) -> ApiResult<Lease<'_>> {
        let mut lease = Lease {
            ips: self,
            taken: Vec::new(),
            freed: Vec::new(),
        };
        if kind.kind != "Service" {
            return Ok(lease);
        }
        let had = addresses(old);
        self.assign_keeping(object, &had, &mut lease)
            .map_err(|error| invalid(kind, object, &error))?;
        let has = addresses(object);
        lease.freed = had
            .into_iter()
            .filter(|address| !has.contains(address))
            .collect();
        Ok(lease)
    }

    /// Gives back what a deleted Service had.
    pub(super) fn release(&self, kind: &Kind, object: &Value) {
        if kind.kind == "Service" {
            self.release_all(&addresses(object));
        }
    }

    fn release_all(&self, addresses: &[IpAddr]) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            for range in ranges.iter_mut() {
                range.release(*address);
            }
        }
    }

    fn assign(&self, service: &mut Value, lease: &mut Lease<'_>) -> Result<(), Refusal> {
        self.assign_keeping(service, &[], lease)
    }

    fn assign_keeping(
        &self,
        service: &mut Value,
        had: &[IpAddr],
        lease: &mut Lease<'_>,
    ) -> Result<(), Refusal> {
        let spec = ensure_map(service, "spec");
        if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                drop(spec.shift_remove(field));
            }
            return Ok(());
        }
        let requested = requested(spec);
        let families = self.choose_families(spec, &requested)?;
        let texts: Vec<_> = families
            .iter()
            .map(|family| Value::from(family.as_str()))
            .collect();
        spec.insert("ipFamilies".to_owned(), texts.into());
        if requested.first().is_some_and(|address| address == NONE) {
            spec.insert("clusterIP".to_owned(), NONE.into());
            spec.insert("clusterIPs".to_owned(), vec![Value::from(NONE)].into());
            return Ok(());
        }
        let mut chosen = Vec::with_capacity(families.len());
        for (index, family) in families.iter().enumerate() {
            chosen.push(self.take(*family, requested.get(index), had, lease)?);
        }
        let chosen: Vec<Value> = chosen
            .into_iter()
            .map(|address| address.to_string().into())
            .collect();
        if let Some(first) = chosen.first() {
            spec.insert("clusterIP".to_owned(), first.clone());
        }
        spec.insert("clusterIPs".to_owned(), chosen.into());
        Ok(())
    }

    /// The families a Service gets, from what it asks for and what the cluster has.
    fn choose_families(
        &self,
        spec: &mut Map<String, Value>,
        requested: &[String],
    ) -> Result<Vec<Family>, Refusal> {
        let mut families = self.asked_families(spec, requested)?;
        let is_headless = requested.first().is_some_and(|address| address == NONE);
        let has_selector = spec
            .get("selector")
            .and_then(Value::as_object)
            .is_some_and(|map| !map.is_empty());
        if is_headless && !has_selector {
            // Its endpoints are made by somebody who knows their families; both are possible.
            default_to(spec, "ipFamilyPolicy", "RequireDualStack");
        }
        let asked = families.len();
        default_to(
            spec,
            "ipFamilyPolicy",
            if asked > 1 {
                "RequireDualStack"
            } else {
                "SingleStack"
            },
        );
        let policy = spec
            .get("ipFamilyPolicy")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let field = Path::new("spec").child("ipFamilyPolicy");
        let is_explicit = !is_headless || has_selector;
        if policy == "RequireDualStack" && self.families.len() < 2 && is_explicit {
            return Err(Box::new(FieldError::invalid(
                &field,
                policy,
                "this cluster is not configured for dual-stack services",
            )));
        }
        if families.is_empty() {
            families.extend(self.families.first());
        }
        let wants_both = policy != "SingleStack";
        if policy == "SingleStack" && families.len() > 1 {
            // A dual-stack Service that is told to be single-stack keeps its first family.
            families.truncate(1);
        }
        if wants_both && families.len() == 1 {
            let other = self
                .families
                .iter()
                .find(|family| !families.contains(family));
            families.extend(other);
        }
        Ok(families)
    }

    fn asked_families(
        &self,
        spec: &Map<String, Value>,
        requested: &[String],
    ) -> Result<Vec<Family>, Refusal> {
        let listed = spec
            .get("ipFamilies")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let path = Path::new("spec").child("ipFamilies");
        let mut families = Vec::new();
        for (index, text) in listed.iter().enumerate() {
            let family = text.as_str().and_then(Family::parse);
            match family.filter(|family| self.families.contains(family)) {
                Some(family) => families.push(family),
                None => {
                    return Err(Box::new(FieldError::invalid(
                        &path.index(index),
                        text.clone(),
                        "not configured on this cluster",
                    )));
                }
            }
        }
        for address in requested.iter().skip(families.len()) {
            if let Ok(address) = address.parse::<IpAddr>() {
                families.push(Family::of(address));
            }
        }
        Ok(families)
    }

    fn take(
        &self,
        family: Family,
        requested: Option<&String>,
        had: &[IpAddr],
        lease: &mut Lease<'_>,
    ) -> Result<IpAddr, Refusal> {
        let path = Path::new("spec").child("clusterIPs");
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let range = ranges
            .iter_mut()
            .find(|range| Family::of(range.range().addr()) == family);
        let Some(range) = range else {
            let address = requested.cloned().unwrap_or_default();
            let detail = format!("{} is not configured on this cluster", family.as_str());
            return Err(Box::new(FieldError::invalid(
                &path,
                vec![Value::from(address)],
                detail,
            )));
        };
        let Some(text) = requested else {
            // An updated Service keeps the address of a family that it names no address for.
            if let Some(kept) = had.iter().find(|address| Family::of(**address) == family) {
                return Ok(*kept);
            }
            let address = range.take_any().map_err(|error| {
                let detail = format!("failed to allocate a serviceIP: {error}");
                Box::new(FieldError::invalid(&path, Vec::<Value>::new(), detail))
            })?;
            lease.taken.push(address);
            return Ok(address);
        };
        let refuse = |error: &dyn std::fmt::Display| {
            let value = vec![Value::from(text.as_str())];
            FieldError::invalid(
                &path,
                value,
                format!("failed to allocate IP {text}: {error}"),
            )
        };
        let address: IpAddr = text.parse().map_err(|error| refuse(&error))?;
        if had.contains(&address) {
            return Ok(address);
        }
        range
            .take(address)
            .map_err(|error: AllocateError| refuse(&error))?;
        lease.taken.push(address);
        Ok(address)
    }
}

impl Registry {
    /// Marks the addresses of the Services that are there.
    pub(super) async fn restore_cluster_ips(&self) -> ApiResult<()> {
        let kind = resources::SERVICES.kind()?;
        let request = ListRequest {
            prefix: folder(kind, ""),
            ..ListRequest::default()
        };
        let listed = self.shared.store.list(request).await.map_err(store_error)?;
        for item in listed.items {
            let service = stored::decode(&item.value, item.revision)?;
            let mut ranges = self
                .shared
                .cluster_ips
                .ranges
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for address in addresses(&service) {
                let range = ranges
                    .iter_mut()
                    .find(|range| range.range().contains(&address));
                match range.map(|range| range.take(address)) {
                    Some(Ok(())) => (),
                    Some(Err(error)) => tracing::error!(
                        service = &*item.key, %address, %error,
                        "a Service has an address that another one has too"
                    ),
                    None => tracing::warn!(
                        service = &*item.key, %address,
                        "a Service has an address outside of the Service ranges"
                    ),
                }
            }
        }
        Ok(())
    }
}

/// On update, allocated values that the new object leaves out stay as they are.
pub(super) fn inherit(kind: &Kind, object: &mut Value, old: &Value) {
    if kind.kind != "Service" || str_at(object, "spec.type") == "ExternalName" {
        return;
    }
    if str_at(old, "spec.type") == "ExternalName" {
        return;
    }
    let is_unset = |object: &Value, path: &str| {
        str_at(object, path).is_empty() && list_at(object, path).is_empty()
    };
    let (no_ip, no_ips) = (
        is_unset(object, "spec.clusterIP"),
        is_unset(object, "spec.clusterIPs"),
    );
    let old_ip = str_at(old, "spec.clusterIP");
    if no_ip && no_ips {
        copy(old, object, "spec.clusterIP");
        copy(old, object, "spec.clusterIPs");
    } else if no_ips && str_at(object, "spec.clusterIP") == old_ip {
        copy(old, object, "spec.clusterIPs");
    }
    for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
        if is_unset(object, field) {
            copy(old, object, field);
        }
    }
    shrink_to_single_stack(object);
}

/// A Service that became single-stack gives its second address and family up.
fn shrink_to_single_stack(service: &mut Value) {
    if str_at(service, "spec.ipFamilyPolicy") != "SingleStack" {
        return;
    }
    let spec = ensure_map(service, "spec");
    for field in ["clusterIPs", "ipFamilies"] {
        if let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut) {
            list.truncate(1);
        }
    }
}

/// What a spec asks for: `clusterIPs`, or `clusterIP` alone.
fn requested(spec: &Map<String, Value>) -> Vec<String> {
    let listed = spec.get("clusterIPs").and_then(Value::as_array);
    let listed: Vec<String> = listed
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    let single = spec
        .get("clusterIP")
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty());
    single.map(str::to_owned).into_iter().collect()
}

/// The addresses a Service has.
fn addresses(service: &Value) -> Vec<IpAddr> {
    let listed = list_at(service, "spec.clusterIPs")
        .iter()
        .filter_map(Value::as_str);
    listed.filter_map(|address| address.parse().ok()).collect()
}

fn invalid(kind: &Kind, object: &Value, error: &FieldError) -> ApiError {
    ApiError::invalid(
        kind.group,
        kind.kind,
        meta::name(object),
        &vec![error.clone()],
    )
}

#[cfg(test)]
mod tests;
