//! `flows`: tracked connections, each as the pair of halves it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use tholepin_ebpf_abi::conntrack::*;
use tholepin_ebpf_abi::{ConntrackEntry, FlowKey};
use tholepin_ebpf_core::{Translation, flow};

use crate::Place;
use crate::maps::{Live, now_ticks, seconds};
use crate::names::{Names, protocol_name};
use crate::output::{self, Format};

const TCP: u8 = 6;

/// Show tracked flows: who asks, what for, which backend answers, and since when it is idle
///
/// Tracked are flows through Services, masqueraded flows, and those of pods that a NetworkPolicy selects.
/// Traffic between pods that no policy selects is forwarded untracked and does not show up here.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Only flows from or to this pod: its name, or namespace/name
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only flows through Services whose namespace/name contains this, or with this id
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only flows with this address at any place
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// Only flows of this protocol: tcp, udp, sctp, icmp, or a number
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// A flow as its client began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    key: FlowKey,
    forward: ConntrackEntry,
    /// `None` if the table has lost it.
    reply: Option<ConntrackEntry>,
}

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    let live = Live::open(place)?;
    let names = place.names();
    let now = now_ticks();
    let mut flows = pair(&live.flows()?);
    flows.retain(|flow| options.wants(flow, &names));
    flows.sort_unstable_by_key(|flow| flow.idle(now));
    flows.truncate(options.limit.unwrap_or(usize::MAX));
    match place.output {
        Format::Json => {
            let rows: Vec<Value> = flows.iter().map(|flow| flow.json(&names, now)).collect();
            output::print_json(&json!(rows))?;
        }
        Format::Table => {
            let head = [
                "PROTOCOL", "CLIENT", "TO", "SERVICE", "BACKEND", "STATE", "IDLE", "KIND",
            ];
            let rows: Vec<_> = flows.iter().map(|flow| flow.cells(&names, now)).collect();
            output::print(&output::table(&head, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Joins the halves. A reply half whose forward half is lost is shown turned round.
pub(crate) fn pair(entries: &BTreeMap<FlowKey, ConntrackEntry>) -> Vec<Flow> {
    let other = |key: &FlowKey, entry: &ConntrackEntry| {
        Translation::of_entry(entry).reply_key(key.protocol)
    };
    let mut flows = Vec::new();
    for (key, entry) in entries {
        let other_key = other(key, entry);
        let partner = entries.get(&other_key).copied();
        if entry.flags & FLOW_REPLY == 0 {
            flows.push(Flow {
                key: *key,
                forward: *entry,
                reply: partner,
            });
        } else if partner.is_none() {
            let back = key.reversed();
            let forward = ConntrackEntry {
                source: back.source,
                destination: back.destination,
                source_port: back.source_port,
                destination_port: back.destination_port,
                flags: entry.flags & !FLOW_REPLY,
                ..*entry
            };
            flows.push(Flow {
                key: other_key,
                forward,
                reply: None,
            });
        }
    }
    flows
}

impl Options {
    fn wants(&self, flow: &Flow, names: &Names) -> bool {
        let addresses = flow.addresses();
        let pod = |wanted: &String| {
            addresses
                .iter()
                .filter_map(|address| names.pod(*address))
                .any(|name| {
                    name == wanted || name.split_once('/').is_some_and(|(_, name)| name == wanted)
                })
        };
        let service = |wanted: &String| {
            flow.service(names)
                .is_some_and(|name| name.contains(wanted.as_str()))
                || flow.forward.service_id.to_string() == *wanted
        };
        let protocol = |wanted: &String| {
            *wanted == protocol_name(flow.key.protocol) || *wanted == flow.key.protocol.to_string()
        };
        self.pod.as_ref().is_none_or(pod)
            && self.service.as_ref().is_none_or(service)
            && self
                .address
                .is_none_or(|address| addresses.contains(&address))
            && self.protocol.as_ref().is_none_or(protocol)
    }
}

impl Flow {
    fn client(&self) -> SocketAddr {
        SocketAddr::new(self.key.source.to_ip(), self.key.source_port.get())
    }

    fn asked(&self) -> SocketAddr {
        SocketAddr::new(
            self.key.destination.to_ip(),
            self.key.destination_port.get(),
        )
    }

    fn backend(&self) -> SocketAddr {
        SocketAddr::new(
            self.forward.destination.to_ip(),
            self.forward.destination_port.get(),
        )
    }

    fn addresses(&self) -> [IpAddr; 4] {
        let seen_as = self.forward.source.to_ip();
        [
            self.client().ip(),
            self.asked().ip(),
            self.backend().ip(),
            seen_as,
        ]
    }

    fn service(&self, names: &Names) -> Option<String> {
        names.service(self.asked().ip(), self.asked().port(), self.key.protocol)
    }

    fn flags(&self) -> u32 {
        self.forward.flags | self.reply.map_or(0, |reply| reply.flags)
    }

    fn idle(&self, now: u32) -> u64 {
        let last = self.reply.map_or(self.forward.last_seen, |reply| {
            // The younger of the two; ticks wrap around.
            let age = |seen: u32| now.wrapping_sub(seen);
            if age(reply.last_seen) < age(self.forward.last_seen) {
                reply.last_seen
            } else {
                self.forward.last_seen
            }
        });
        seconds(now.wrapping_sub(last))
    }

    fn state(&self, now: u32) -> &'static str {
        let flags = self.flags();
        let idle = now.wrapping_sub(self.forward.last_seen);
        if self.reply.is_none() {
            "half lost"
        } else if self.key.protocol == TCP && flags & FLOW_RST != 0 {
            "reset"
        } else if self.key.protocol == TCP && flags & FLOW_FIN != 0 {
            "closing"
        } else if flow::is_over(self.key.protocol, flags, idle) {
            "over"
        } else if self.key.protocol == TCP {
            if flags & FLOW_ESTABLISHED != 0 {
                "established"
            } else {
                "opening"
            }
        } else if self.reply.is_some_and(|reply| reply.flags & FLOW_SEEN != 0) {
            "answered"
        } else {
            "unanswered"
        }
    }

    /// What was done to it.
    fn kind(&self) -> &'static str {
        let flags = self.flags();
        if flags & FLOW_DIRECT != 0 {
            "policy only"
        } else if flags & FLOW_DSR != 0 {
            "direct return"
        } else if self.forward.service_id == 0 {
            "masquerade"
        } else if flags & FLOW_SOURCE_TRANSLATED != 0 {
            "service, source translated"
        } else {
            "service"
        }
    }

    fn cells(&self, names: &Names, now: u32) -> Vec<String> {
        let with_pod = |at: SocketAddr| match names.pod(at.ip()) {
            Some(pod) => format!("{at} ({pod})"),
            None => at.to_string(),
        };
        let id = match self.forward.service_id {
            0 => "-".to_owned(),
            id => format!("id {id}"),
        };
        vec![
            protocol_name(self.key.protocol),
            with_pod(self.client()),
            self.asked().to_string(),
            self.service(names).unwrap_or(id),
            if self.flags() & FLOW_DIRECT != 0 {
                "-".to_owned()
            } else {
                with_pod(self.backend())
            },
            self.state(now).to_owned(),
            format!("{}s", self.idle(now)),
            self.kind().to_owned(),
        ]
    }

    fn json(&self, names: &Names, now: u32) -> Value {
        let pod = |at: SocketAddr| names.pod(at.ip());
        json!({
            "protocol": protocol_name(self.key.protocol),
            "client": { "address": self.client().to_string(), "pod": pod(self.client()) },
            "to": { "address": self.asked().to_string(), "service": self.service(names) },
            "backend": {
                "address": self.backend().to_string(),
                "pod": pod(self.backend()),
                "id": self.forward.backend_id,
                "generation": self.forward.backend_generation,
            },
            "source": SocketAddr::new(
                self.forward.source.to_ip(),
                self.forward.source_port.get(),
            ).to_string(),
            "serviceId": self.forward.service_id,
            "state": self.state(now),
            "kind": self.kind(),
            "idleSeconds": self.idle(now),
            "policyGeneration": self.forward.policy_generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::Be16;

    use super::*;

    fn key(from: &str, to: &str, protocol: u8) -> FlowKey {
        let (from, to): (SocketAddr, SocketAddr) = (
            from.parse().expect("an address"),
            to.parse().expect("an address"),
        );
        FlowKey {
            source: from.ip().into(),
            destination: to.ip().into(),
            source_port: Be16::new(from.port()),
            destination_port: Be16::new(to.port()),
            protocol,
            _pad: [0; 3],
        }
    }

    fn entry(becomes: FlowKey, flags: u32, last_seen: u32) -> ConntrackEntry {
        ConntrackEntry {
            source: becomes.source,
            destination: becomes.destination,
            source_port: becomes.source_port,
            destination_port: becomes.destination_port,
            service_id: 7,
            flags,
            last_seen,
            ..ConntrackEntry::default()
        }
    }

    /// A client that asks 10.96.0.10:80 and is answered by 10.244.1.6:8080.
    fn halves() -> [(FlowKey, ConntrackEntry); 2] {
        let (client, service, backend) = ("10.244.0.5:4000", "10.96.0.10:80", "10.244.1.6:8080");
        let established = FLOW_SYN | FLOW_ESTABLISHED;
        [
            (
                key(client, service, TCP),
                entry(key(client, backend, TCP), established, 90),
            ),
            (
                key(backend, client, TCP),
                entry(key(service, client, TCP), established | FLOW_REPLY, 95),
            ),
        ]
    }

    #[test]
    fn two_halves_are_one_flow_with_names_state_and_age() {
        let flows = pair(&halves().into_iter().collect());
        assert_eq!(flows.len(), 1);
        let names = Names::of(
            &[("10.96.0.10", 80, 6, "default/web", "")],
            &[("10.244.0.5", "default/client")],
        );
        assert_eq!(
            flows[0].cells(&names, 100),
            [
                "tcp",
                "10.244.0.5:4000 (default/client)",
                "10.96.0.10:80",
                "default/web",
                "10.244.1.6:8080",
                "established",
                "5s",
                "service",
            ]
        );
    }

    #[test]
    fn a_lost_half_is_said_to_be_lost_whichever_it_is() {
        let flows: Vec<_> = halves()
            .into_iter()
            .flat_map(|half| pair(&[half].into_iter().collect()))
            .collect();
        assert_eq!(flows.len(), 2);
        for flow in flows {
            assert_eq!(flow.client().to_string(), "10.244.0.5:4000");
            assert_eq!(flow.asked().to_string(), "10.96.0.10:80");
            assert_eq!(flow.backend().to_string(), "10.244.1.6:8080");
            assert_eq!(flow.state(100), "half lost");
        }
    }

    #[test]
    fn filters_look_at_every_place_of_a_flow() {
        let flows = pair(&halves().into_iter().collect());
        let names = Names::of(
            &[("10.96.0.10", 80, 6, "default/web", "http")],
            &[("10.244.1.6", "default/web-1")],
        );
        let nothing = Options {
            pod: None,
            service: None,
            address: None,
            protocol: None,
            limit: None,
        };
        let matching = [
            Options {
                pod: Some("web-1".to_owned()),
                ..nothing.clone()
            },
            Options {
                service: Some("default/web".to_owned()),
                ..nothing.clone()
            },
            Options {
                service: Some("7".to_owned()),
                ..nothing.clone()
            },
            Options {
                address: "10.96.0.10".parse().ok(),
                ..nothing.clone()
            },
            Options {
                protocol: Some("tcp".to_owned()),
                ..nothing.clone()
            },
        ];
        for options in matching {
            assert!(options.wants(&flows[0], &names), "{options:?}");
        }
        let others = [
            Options {
                pod: Some("web".to_owned()),
                ..nothing.clone()
            },
            Options {
                address: "10.96.0.11".parse().ok(),
                ..nothing.clone()
            },
            Options {
                protocol: Some("udp".to_owned()),
                ..nothing
            },
        ];
        for options in others {
            assert!(!options.wants(&flows[0], &names), "{options:?}");
        }
    }
}
