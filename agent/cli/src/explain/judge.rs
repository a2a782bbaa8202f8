//! The decisions of the programs, in their order, over whatever maps there are.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::conntrack::{FLOW_DIRECT, FLOW_REPLY};
use tholepin_ebpf_abi::policy::{PORTS_ALL, PORTS_NONE};
use tholepin_ebpf_abi::service::*;
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;
use tholepin_ebpf_abi::{
    Be16, ConntrackEntry, DropReason, FrontendKey, FrontendValue, WorkloadValue,
};
use tholepin_ebpf_core::flow;

use super::question::Question;
use super::{Addresses, From};
use crate::maps::{Maps, seconds};
use crate::names::Names;
use crate::services;

const TCP: u8 = 6;

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) stage: &'static str,
    pub(super) finding: String,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// On its way; in words.
    Goes(String),
    Dropped(DropReason),
}

impl Outcome {
    pub(super) fn reason(&self) -> Option<DropReason> {
        match self {
            Self::Goes(_) => None,
            Self::Dropped(reason) => Some(*reason),
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Goes(_) => "forwarded",
            Self::Dropped(DropReason::NoBackend | DropReason::NoRoute) => "rejected",
            Self::Dropped(_) => "dropped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goes(how) => f.write_str(how),
            Self::Dropped(reason) => {
                write!(
                    f,
                    "{} ({}): {}",
                    self.word(),
                    reason.label(),
                    reason.description()
                )
            }
        }
    }
}

/// Everything a decision is made from.
pub(super) struct Judge<'a> {
    pub(super) maps: &'a dyn Maps,
    pub(super) names: &'a Names,
    pub(super) addresses: &'a Addresses,
    pub(super) now: u32,
}

/// Where an address is.
enum Route {
    Workload(WorkloadValue),
    Gateway,
    Node,
    Remote(IpAddr),
    Elsewhere,
}

type Steps = Vec<Step>;

fn note(steps: &mut Steps, stage: &'static str, finding: impl Into<String>) {
    steps.push(Step {
        stage,
        finding: finding.into(),
    });
}

impl Judge<'_> {
    pub(super) fn explain(&self, question: &Question, from: From) -> Result<(Steps, Outcome)> {
        let mut steps = Vec::new();
        let outcome = self.decide(question, from, &mut steps)?;
        Ok((steps, outcome))
    }

    fn decide(&self, question: &Question, from: From, steps: &mut Steps) -> Result<Outcome> {
        if let Some(entry) = self.maps.flow(&question.key())? {
            let half = if entry.flags & FLOW_REPLY != 0 {
                "answer"
            } else {
                "request"
            };
            let idle = self.now.wrapping_sub(entry.last_seen);
            let backend = self.maps.backend(entry.backend_id)?;
            let direct = entry.flags & FLOW_DIRECT != 0;
            let stale = entry.backend_id != 0 && !flow::is_current(&entry, backend.as_ref());
            let over = flow::is_over(question.protocol, entry.flags, idle);
            let to = SocketAddr::new(entry.destination.to_ip(), entry.destination_port.get());
            let source = SocketAddr::new(entry.source.to_ip(), entry.source_port.get());
            let mut finding = format!("known flow ({half}), last seen {} s ago", seconds(idle));
            if !direct {
                finding += &format!("; becomes {source} -> {to}");
            }
            note(steps, "CONNTRACK", finding);
            if !(over || stale && question.protocol != TCP) {
                let packet = translated(question, &entry);
                if entry.flags & FLOW_REPLY != 0 {
                    note(steps, "POLICY", "answers of a flow pass with it");
                    return self.way_out(question, &packet, from);
                }
                return self.deliver(question, &packet, from, steps);
            }
            let why = if over {
                "it is over"
            } else {
                "its backend does not serve any more"
            };
            note(steps, "CONNTRACK", format!("{why}: decided anew"));
        } else {
            note(steps, "CONNTRACK", "no entry for this tuple");
        }
        if from == From::Pod && !self.approve(question, steps)? {
            return Ok(Outcome::Dropped(DropReason::SpoofedSource));
        }
        let route = self.route(question.destination)?;
        let looked_up = question.has_ports()
            && from != From::Overlay
            && matches!(route, Route::Elsewhere | Route::Node | Route::Gateway);
        if looked_up && let Some((key, value)) = self.frontend(question, from)? {
            return self.balance(question, from, &key, &value, steps);
        }
        if looked_up {
            note(steps, "FRONTENDS", "the destination is no Service's");
        }
        self.deliver(question, question, from, steps)
    }

    fn approve(&self, question: &Question, steps: &mut Steps) -> Result<bool> {
        let workload = self.maps.workload(question.source)?;
        let finding = match &workload {
            Some(workload) => format!(
                "{} may be used by interface {} only",
                self.names.show(question.source),
                workload.ifindex
            ),
            None => format!("{} is no pod's of this node", question.source),
        };
        note(steps, "WORKLOADS", finding);
        Ok(workload.is_some())
    }

    fn route(&self, address: IpAddr) -> Result<Route> {
        if let Some(workload) = self.maps.workload(address)? {
            return Ok(Route::Workload(workload));
        }
        if self.addresses.gateways.contains(&address) {
            return Ok(Route::Gateway);
        }
        if self.addresses.node.contains(&address) {
            return Ok(Route::Node);
        }
        Ok(match self.maps.route(address)? {
            Some(route) => Route::Remote(route.tunnel_endpoint.to_ip()),
            None => Route::Elsewhere,
        })
    }

    fn frontend(
        &self,
        question: &Question,
        from: From,
    ) -> Result<Option<(FrontendKey, FrontendValue)>> {
        let scope = if from == From::Outside {
            SCOPE_EXTERNAL
        } else {
            SCOPE_CLUSTER
        };
        let key = FrontendKey {
            address: question.destination.into(),
            port: Be16::new(question.destination_port),
            protocol: question.protocol,
            scope,
        };
        Ok(self.maps.frontend(&key)?.map(|value| (key, value)))
    }

    fn balance(
        &self,
        question: &Question,
        from: From,
        key: &FrontendKey,
        value: &FrontendValue,
        steps: &mut Steps,
    ) -> Result<Outcome> {
        let name = self
            .names
            .service(
                question.destination,
                question.destination_port,
                question.protocol,
            )
            .unwrap_or_else(|| format!("service id {}", value.service_id));
        let mut flags = services::flags(value).join(", ");
        if !flags.is_empty() {
            flags = format!(" ({flags})");
        }
        note(
            steps,
            "FRONTENDS",
            format!(
                "{} (scope {}) is {name}{flags}: {} backends, {} of them on this node",
                services::frontend(key),
                services::scope(key.scope),
                value.backend_count,
                value.local_count
            ),
        );
        if value.flags & FRONTEND_SOURCE_RANGES != 0 {
            if !self
                .maps
                .in_source_ranges(value.service_id, question.source)?
            {
                note(
                    steps,
                    "SOURCE_RANGES",
                    format!("{} is in none of them", question.source),
                );
                return Ok(Outcome::Dropped(DropReason::SourceRange));
            }
            note(
                steps,
                "SOURCE_RANGES",
                format!("{} may come in", question.source),
            );
        }
        if value.backend_count == 0 {
            return Ok(Outcome::Dropped(DropReason::NoBackend));
        }
        let local_only = value.flags & FRONTEND_LOCAL_ONLY != 0;
        if local_only && value.local_count == 0 {
            return Ok(Outcome::Dropped(DropReason::NoLocalBackend));
        }
        self.choose(question, from, value, local_only, steps)
    }

    fn choose(
        &self,
        question: &Question,
        from: From,
        value: &FrontendValue,
        local_only: bool,
        steps: &mut Steps,
    ) -> Result<Outcome> {
        let mut ids = self.maps.slots(value)?;
        if local_only {
            ids.truncate(value.local_count.into());
        }
        if value.flags & FRONTEND_AFFINITY != 0
            && let Some(chosen) = self.sticky(question, from, value, &ids)?
        {
            note(
                steps,
                "AFFINITY",
                format!("the client keeps backend {chosen}"),
            );
            ids = vec![chosen];
        }
        let mut outcomes: Vec<(String, Outcome)> = Vec::new();
        for id in ids {
            let Some(backend) = self.maps.backend(id)? else {
                outcomes.push((
                    format!("backend {id}"),
                    Outcome::Dropped(DropReason::BackendMissing),
                ));
                continue;
            };
            let hairpin = backend.address.to_ip() == question.source;
            let target = Question {
                // A pod that reaches itself must see another's address, or it would answer past us.
                source: if hairpin {
                    question.destination
                } else {
                    question.source
                },
                destination: backend.address.to_ip(),
                destination_port: backend.port.get(),
                ..*question
            };
            let mut below = Vec::new();
            let outcome = self.deliver(question, &target, from, &mut below)?;
            let at = SocketAddr::new(target.destination, target.destination_port);
            let draining = if backend.flags & BACKEND_SERVING == 0 {
                ", draining"
            } else {
                ""
            };
            let pod = self
                .names
                .pod(target.destination)
                .map(|pod| format!(" ({pod})"));
            let what = format!("{at}{}{draining}", pod.unwrap_or_default());
            let reasons: Vec<String> = below.into_iter().map(|step| step.finding).collect();
            note(
                steps,
                "BACKENDS",
                format!("{what}: {}; {outcome}", reasons.join("; ")),
            );
            outcomes.push((what, outcome));
        }
        Ok(merge(outcomes, value.flags & FRONTEND_MAGLEV != 0))
    }

    /// The backend that the client's affinity leads to, if it is still one of the list.
    fn sticky(
        &self,
        question: &Question,
        from: From,
        value: &FrontendValue,
        ids: &[u32],
    ) -> Result<Option<u32>> {
        let client = match from {
            From::Pod => {
                // Pods are known by their namespace's cookie, in the first two words of an address.
                let workload = self.maps.workload(question.source)?;
                let cookie = workload.map_or(0, |workload| workload.netns_cookie);
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(&cookie.to_ne_bytes());
                IpAddr::from(octets)
            }
            From::Node => IpAddr::from([0_u8; 16]),
            _ => question.source,
        };
        let Some(entry) = self.maps.affinity(value.service_id, client)? else {
            return Ok(None);
        };
        let age = seconds(self.now.wrapping_sub(entry.last_used));
        let current = self.maps.backend(entry.backend_id)?.is_some_and(|backend| {
            backend.generation == entry.backend_generation && backend.flags & BACKEND_SERVING != 0
        });
        let usable = current
            && age <= u64::from(value.affinity_timeout_s)
            && ids.contains(&entry.backend_id);
        Ok(usable.then_some(entry.backend_id))
    }

    /// Policy, and the way out. `packet` is what it became, `asked` what came in.
    fn deliver(
        &self,
        asked: &Question,
        packet: &Question,
        from: From,
        steps: &mut Steps,
    ) -> Result<Outcome> {
        let route = self.route(packet.destination)?;
        let from_node = from == From::Node;
        if from == From::Pod
            && let Some(workload) = self.maps.workload(asked.source)?
            && !self.allowed(
                "out",
                workload.egress_policy,
                packet.destination,
                packet,
                steps,
            )?
        {
            return Ok(Outcome::Dropped(DropReason::PolicyEgress));
        }
        if let Route::Workload(workload) = &route
            && !from_node
            && !self.allowed("in", workload.ingress_policy, asked.source, packet, steps)?
        {
            return Ok(Outcome::Dropped(DropReason::PolicyIngress));
        }
        self.way_out(asked, packet, from)
    }

    fn way_out(&self, asked: &Question, packet: &Question, from: From) -> Result<Outcome> {
        let translated = packet.destination != asked.destination;
        Ok(match (self.route(packet.destination)?, from) {
            (Route::Workload(workload), _) => Outcome::Goes(format!(
                "delivered to {}, interface {}",
                self.names.show(packet.destination),
                workload.ifindex
            )),
            (Route::Remote(_), From::Overlay) => Outcome::Dropped(DropReason::UnknownWorkload),
            (Route::Remote(node), _) => {
                Outcome::Goes(format!("sent through the overlay to the node {node}"))
            }
            (Route::Gateway | Route::Node, _) => {
                Outcome::Goes("handed to this node's own stack".to_owned())
            }
            (Route::Elsewhere, From::Pod) => Outcome::Goes(
                "leaves the pod network: masqueraded with the node's address where the kernel routes it \
                 outside"
                    .to_owned(),
            ),
            (Route::Elsewhere, From::Node) if translated => {
                Outcome::Goes("sent to a backend outside of the pod network".to_owned())
            }
            (Route::Elsewhere, From::Node) => Outcome::Dropped(DropReason::NoRoute),
            (Route::Elsewhere, From::Overlay) => Outcome::Dropped(DropReason::UnknownWorkload),
            (Route::Elsewhere, From::Outside) => {
                Outcome::Goes("not ours: left to the kernel".to_owned())
            }
        })
    }

    fn allowed(
        &self,
        direction: &str,
        policy: u32,
        peer: IpAddr,
        packet: &Question,
        steps: &mut Steps,
    ) -> Result<bool> {
        let (allowed, why) = match policy {
            0 => return Ok(true),
            POLICY_DENY_ALL => (false, "isolated, and nothing is allowed".to_owned()),
            id => match self.maps.policy_peer(id, peer)? {
                None => (
                    false,
                    format!("{} is no allowed peer", self.names.show(peer)),
                ),
                Some(PORTS_NONE) => (false, format!("{peer} is excepted")),
                Some(PORTS_ALL) => (true, format!("{peer} may use every port")),
                Some(set) => {
                    let port = packet.destination_port;
                    let open = self.maps.policy_port(set, packet.protocol, port)?;
                    let word = if open { "may" } else { "may not" };
                    (open, format!("{peer} {word} use port {port}"))
                }
            },
        };
        note(steps, "POLICY", format!("{direction}: {why}"));
        Ok(allowed)
    }
}

/// The packet with an entry's translation.
fn translated(question: &Question, entry: &ConntrackEntry) -> Question {
    Question {
        protocol: question.protocol,
        source: entry.source.to_ip(),
        source_port: entry.source_port.get(),
        destination: entry.destination.to_ip(),
        destination_port: entry.destination_port.get(),
    }
}

/// Several backends may mean several outcomes.
fn merge(mut outcomes: Vec<(String, Outcome)>, maglev: bool) -> Outcome {
    if outcomes.len() == 1 {
        return outcomes.remove(0).1;
    }
    let going = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.reason().is_none())
        .count();
    match outcomes.first() {
        Some((_, first)) if going == 0 => first.clone(),
        _ => {
            let by = if maglev {
                "the Maglev table chooses"
            } else {
                "chance chooses"
            };
            let all = outcomes.len();
            let refused = all - going;
            let but = if refused > 0 {
                format!("; {refused} of them would be dropped")
            } else {
                String::new()
            };
            Outcome::Goes(format!("{by} one of {all} backends{but}"))
        }
    }
}

#[cfg(test)]
mod tests;
