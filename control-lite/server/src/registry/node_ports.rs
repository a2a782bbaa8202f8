//! Node ports of Services, health check ports included: requested and chosen ones, release.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use rand::Rng as _;
use serde_json::Value;
use tholepin_apimachinery::field::{FieldError, Path};
use tholepin_apimachinery::value::{bool_at, ensure_map, i64_at, list_at, list_mut, set, str_at};
use tholepin_apimachinery::{ApiError, Kind, meta};
use tholepin_store::ListRequest;

use super::{ApiResult, Registry, Resource, folder, resources, store_error, stored};

const FIRST: u16 = 30_000;
const LAST: u16 = 32_767;
/// Ports chosen by the cluster come from above this one first: people choose low ones (KEP-3668).
const STATIC_BAND: u16 = 86;

/// Why a port could not be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum PortError {
    #[error("provided port is already allocated")]
    Taken,
    #[error("provided port is not in the valid range. The range of valid ports is {FIRST}-{LAST}")]
    OutOfRange,
    #[error("range is full")]
    Full,
}

/// Why a Service cannot have what it asks for.
enum Refusal {
    Field(Box<FieldError>),
    Internal(String),
}

/// The ports that are taken.
#[derive(Debug, Default)]
pub(super) struct NodePorts {
    taken: Mutex<BTreeSet<u16>>,
}

/// Ports taken for a write that may still fail. Given back unless it is kept.
#[derive(Debug)]
#[must_use]
pub(super) struct PortLease<'a> {
    ports: &'a NodePorts,
    taken: Vec<u16>,
    /// Ports the written object no longer has.
    freed: Vec<u16>,
}

impl PortLease<'_> {
    /// The write happened.
    pub(super) fn keep(mut self) {
        self.taken.clear();
        self.ports.give(&std::mem::take(&mut self.freed));
    }

    /// A port the Service names. One that it had before, or that another of its ports has, is its own.
    fn request(&mut self, port: i64, own: &BTreeSet<u16>) -> Result<u16, PortError> {
        let number = u16::try_from(port)
            .ok()
            .filter(|port| (FIRST..=LAST).contains(port));
        let number = number.ok_or(PortError::OutOfRange)?;
        if own.contains(&number) || self.taken.contains(&number) {
            return Ok(number);
        }
        if !self.ports.set().insert(number) {
            return Err(PortError::Taken);
        }
        self.taken.push(number);
        Ok(number)
    }

    fn any(&mut self) -> Result<u16, PortError> {
        let number = {
            let mut taken = self.ports.set();
            let band = FIRST + STATIC_BAND;
            let start = rand::rng().random_range(band..=LAST);
            let mut order = (start..=LAST).chain(band..start).chain(FIRST..band);
            let free = order.find(|port| !taken.contains(port));
            let number = free.ok_or(PortError::Full)?;
            taken.insert(number);
            number
        };
        self.taken.push(number);
        Ok(number)
    }
}

impl Drop for PortLease<'_> {
    fn drop(&mut self) {
        self.ports.give(&self.taken);
    }
}

impl NodePorts {
    fn set(&self) -> std::sync::MutexGuard<'_, BTreeSet<u16>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, ports: &[u16]) {
        let mut taken = self.set();
        taken.retain(|port| !ports.contains(port));
    }

    /// Gives a Service that is written the ports it needs; `old` is what it was.
    pub(super) fn assign(
        &self,
        kind: &Kind,
        object: &mut Value,
        old: Option<&Value>,
    ) -> ApiResult<PortLease<'_>> {
        let mut lease = PortLease {
            ports: self,
            taken: Vec::new(),
            freed: Vec::new(),
        };
        if kind.kind != "Service" {
            return Ok(lease);
        }
        let had: BTreeSet<u16> = old.map(numbers).unwrap_or_default().into_iter().collect();
        assign_ports(object, &had, &mut lease)
            .and_then(|()| assign_health_check(object, &had, &mut lease))
            .map_err(|refusal| match refusal {
                Refusal::Field(error) => {
                    ApiError::invalid(kind.group, kind.kind, meta::name(object), &vec![*error])
                }
                Refusal::Internal(message) => ApiError::internal(message),
            })?;
        let has = numbers(object);
        lease.freed = had.into_iter().filter(|port| !has.contains(port)).collect();
        Ok(lease)
    }

    /// Gives back what a deleted Service had.
    pub(super) fn release(&self, kind: &Kind, object: &Value) {
        if kind.kind == "Service" {
            self.give(&numbers(object));
        }
    }
}

/// One number for all protocols of a port, as upstream gives it.
fn assign_ports(
    service: &mut Value,
    had: &BTreeSet<u16>,
    lease: &mut PortLease<'_>,
) -> Result<(), Refusal> {
    let allocates = match str_at(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => bool_at(service, "spec.allocateLoadBalancerNodePorts"),
        _ => false,
    };
    let ports = list_at(service, "spec.ports").to_vec();
    let mut chosen: Vec<(i64, u16)> = Vec::new();
    let mut assigned = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let number = i64_at(port, "port").unwrap_or_default();
        let mut asked = i64_at(port, "nodePort").unwrap_or_default();
        if asked == 0 && !allocates {
            assigned.push(None);
            continue;
        }
        let known = chosen.iter().find(|(of, _)| *of == number);
        if let (0, Some((_, same))) = (asked, known) {
            assigned.push(Some(*same));
            continue;
        }
        if asked == 0 {
            // Another protocol of the same port may name a number further down.
            let mut later = ports[index..].iter();
            let same = later.find(|later| {
                i64_at(later, "port") == Some(number)
                    && i64_at(later, "nodePort").unwrap_or_default() != 0
            });
            asked = same
                .and_then(|same| i64_at(same, "nodePort"))
                .unwrap_or_default();
        }
        let node_port = if asked == 0 {
            lease.any().map_err(|error| {
                Refusal::Internal(format!("failed to allocate a nodePort: {error}"))
            })?
        } else {
            lease.request(asked, had).map_err(|error| {
                let path = Path::new("spec")
                    .child("ports")
                    .index(index)
                    .child("nodePort");
                Refusal::Field(Box::new(FieldError::invalid(
                    &path,
                    asked,
                    error.to_string(),
                )))
            })?
        };
        chosen.push((number, node_port));
        assigned.push(Some(node_port));
    }
    let ports = list_mut(service, "spec.ports").into_iter().flatten();
    for (port, node_port) in ports.zip(assigned) {
        if let Some(node_port) = node_port {
            set(port, "nodePort", node_port);
        }
    }
    Ok(())
}

fn assign_health_check(
    service: &mut Value,
    had: &BTreeSet<u16>,
    lease: &mut PortLease<'_>,
) -> Result<(), Refusal> {
    let needs_one = str_at(service, "spec.type") == "LoadBalancer"
        && str_at(service, "spec.externalTrafficPolicy") == "Local";
    if !needs_one {
        return Ok(());
    }
    let asked = i64_at(service, "spec.healthCheckNodePort").unwrap_or_default();
    let port = if asked == 0 {
        lease.any().map_err(|error| {
            Refusal::Internal(format!(
                "failed to allocate a HealthCheck NodePort: {error}"
            ))
        })?
    } else {
        lease.request(asked, had).map_err(|error| {
            let message =
                format!("failed to allocate requested HealthCheck NodePort {asked}: {error}");
            Refusal::Internal(message)
        })?
    };
    ensure_map(service, "spec").insert("healthCheckNodePort".to_owned(), port.into());
    Ok(())
}

/// Every node port a Service has.
fn numbers(service: &Value) -> Vec<u16> {
    let ports = list_at(service, "spec.ports").iter();
    let node_ports = ports.filter_map(|port| i64_at(port, "nodePort"));
    let all = node_ports.chain(i64_at(service, "spec.healthCheckNodePort"));
    all.filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

impl Registry {
    /// Marks the node ports of the Services that are there.
    pub(super) async fn restore_node_ports(&self) -> ApiResult<()> {
        let kind = resources::SERVICES.kind()?;
        let request = ListRequest {
            prefix: folder(kind, ""),
            ..ListRequest::default()
        };
        let listed = self.shared.store.list(request).await.map_err(store_error)?;
        for item in listed.items {
            let service = stored::decode(&item.value, item.revision)?;
            let own: BTreeSet<u16> = numbers(&service).into_iter().collect();
            let mut taken = self.shared.node_ports.set();
            for port in own {
                if !taken.insert(port) {
                    tracing::error!(
                        service = &*item.key,
                        port,
                        "a Service has a node port that another one has too"
                    );
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
