//! Cluster IPs and ports of Services, in the smallest form that service environment variables need.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tholepin_model::pod::env::{ServicePort, service_variables};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Address and ports of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

/// (namespace, name) to link.
#[derive(Clone, Debug, Default)]
pub struct ServiceLinks {
    pub synced: bool,
    links: BTreeMap<(String, String), Arc<Link>>,
}

impl ServiceLinks {
    /// Variables of a pod in `namespace`: the `kubernetes` Service always, the namespace's own Services
    /// if the pod wants links. The namespace's own win.
    #[must_use]
    pub fn variables(&self, namespace: &str, enabled: bool) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let master = ("default".to_owned(), "kubernetes".to_owned());
        if let Some(link) = self.links.get(&master) {
            variables.extend(service_variables(
                "kubernetes",
                &link.cluster_ip,
                &link.ports,
            ));
        }
        if enabled {
            let from = (namespace.to_owned(), String::new());
            for ((_, name), link) in self
                .links
                .range(from..)
                .take_while(|((other, _), _)| other == namespace)
            {
                variables.extend(service_variables(name, &link.cluster_ip, &link.ports));
            }
        }
        variables
    }

    fn set(&mut self, service: &Service) {
        let key = (
            service.metadata.namespace.clone().unwrap_or_default(),
            service.metadata.name.clone().unwrap_or_default(),
        );
        match link(service) {
            Some(link) => drop(self.links.insert(key, Arc::new(link))),
            None => drop(self.links.remove(&key)),
        }
    }
}

fn link(service: &Service) -> Option<Link> {
    let spec = service.spec.as_ref()?;
    let cluster_ip = spec
        .cluster_ip
        .clone()
        .filter(|ip| !ip.is_empty() && ip != "None")?;
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                port: u16::try_from(port.port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            })
        })
        .collect();
    Some(Link { cluster_ip, ports })
}

/// Watches until cancelled.
pub async fn run(client: Client, links: watch::Sender<ServiceLinks>, cancel: CancellationToken) {
    let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
    futures::pin_mut!(stream);
    let mut listing = ServiceLinks::default();
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            Some(Ok(watcher::Event::Init)) => listing = ServiceLinks::default(),
            Some(Ok(watcher::Event::InitApply(service))) => listing.set(&service),
            Some(Ok(watcher::Event::InitDone)) => {
                let mut done = std::mem::take(&mut listing);
                done.synced = true;
                links.send_replace(done);
            }
            Some(Ok(watcher::Event::Apply(service))) => {
                links.send_modify(|links| links.set(&service));
            }
            Some(Ok(watcher::Event::Delete(service))) => links.send_modify(|links| {
                let name = service.metadata.name.unwrap_or_default();
                links
                    .links
                    .remove(&(service.metadata.namespace.unwrap_or_default(), name));
            }),
            Some(Err(error)) => {
                tracing::warn!(error = %crate::errors::chain(&error), "watching Services failed, trying again");
            }
            None => return,
        }
    }
}
