//! Names behind addresses and ids: Services from the running agent, pods from its lease journal. What is
//! not known has none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;
use tholepin_api::proto;
use tholepin_api::proto::debug_client::DebugClient;

/// What is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Address, port and protocol of a frontend to `namespace/name` and the port's name.
    services: BTreeMap<(IpAddr, u16, u8), (String, String)>,
    pods: BTreeMap<IpAddr, String>,
}

impl Names {
    /// Asks the agent and reads the journal; neither needs to be there.
    pub(crate) fn read(run_dir: &Path, state_dir: &Path) -> Self {
        let mut names = Self {
            pods: pods(&state_dir.join("leases")),
            ..Self::default()
        };
        if let Some(answer) = ask(&run_dir.join("agent.sock")) {
            for service in answer.services {
                let port = u16::try_from(service.port);
                if let (Ok(address), Ok(port), Some(protocol)) = (
                    service.address.parse(),
                    port,
                    protocol_number(&service.protocol),
                ) {
                    names.services.insert(
                        (address, port, protocol),
                        (service.service, service.port_name),
                    );
                }
            }
        }
        names
    }

    #[cfg(test)]
    pub(crate) fn of(services: &[(&str, u16, u8, &str, &str)], pods: &[(&str, &str)]) -> Self {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        Self {
            services: services
                .iter()
                .map(|(at, port, protocol, name, port_name)| {
                    let key = (address(at), *port, *protocol);
                    (key, ((*name).to_owned(), (*port_name).to_owned()))
                })
                .collect(),
            pods: pods
                .iter()
                .map(|(at, name)| (address(at), (*name).to_owned()))
                .collect(),
        }
    }

    /// `namespace/name:port-name` of a frontend.
    pub(crate) fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<String> {
        let (name, port_name) = self.services.get(&(address, port, protocol))?;
        Some(match port_name.as_str() {
            "" => name.clone(),
            port_name => format!("{name}:{port_name}"),
        })
    }

    /// `namespace/name` of a pod of this node.
    pub(crate) fn pod(&self, address: IpAddr) -> Option<&str> {
        self.pods.get(&address).map(String::as_str)
    }

    /// An address, with the pod that has it.
    pub(crate) fn show(&self, address: IpAddr) -> String {
        match self.pod(address) {
            Some(pod) => format!("{address} ({pod})"),
            None => address.to_string(),
        }
    }
}

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        _ => None,
    }
}

/// `tcp`, or the number of what has no name here.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// Leases are files of their own, written before an address is given away. The journal's other fields do
/// not matter here.
fn pods(directory: &Path) -> BTreeMap<IpAddr, String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut pods = BTreeMap::new();
    for entry in entries {
        let lease = std::fs::read(entry.path())
            .ok()
            .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let Some(lease) = lease else { continue };
        let addresses = lease["addresses"].as_array().into_iter().flatten();
        for address in addresses.filter_map(|address| address.as_str()?.parse().ok()) {
            if let Some(pod) = lease["pod"].as_str() {
                pods.insert(address, pod.to_owned());
            }
        }
    }
    pods
}

fn ask(socket: &Path) -> Option<proto::NamesResponse> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        let question = async {
            let channel = tholepin_api::connect(socket).await.ok()?;
            let answer = DebugClient::new(channel)
                .names(proto::NamesRequest {})
                .await;
            answer.ok().map(tonic_inner)
        };
        // An agent that hangs must not make us hang.
        tokio::time::timeout(std::time::Duration::from_secs(2), question)
            .await
            .ok()?
    })
}

fn tonic_inner<T>(response: tonic::Response<T>) -> T {
    response.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_read_from_the_journal_and_what_is_no_lease_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let leases = directory.path().join("leases");
        std::fs::create_dir(&leases).expect("a directory");
        let lease = r#"{"pod":"default/web","addresses":["10.244.0.5","fd00::5"],"boot_id":"x"}"#;
        std::fs::write(leases.join("thp1.json"), lease).expect("a file");
        std::fs::write(leases.join("broken.json"), "{").expect("a file");
        let names = Names::read(directory.path(), directory.path());
        for address in ["10.244.0.5", "fd00::5"] {
            assert_eq!(
                names.pod(address.parse().expect("an address")),
                Some("default/web")
            );
        }
        let unknown = "10.244.0.6".parse().expect("an address");
        assert_eq!(names.show(unknown), "10.244.0.6");
    }
}
