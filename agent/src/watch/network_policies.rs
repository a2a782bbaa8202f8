//! NetworkPolicies: from the API's objects to who is isolated and what is allowed.
//!
//! A part that cannot be understood allows nothing. Where even the pods or the directions cannot be,
//! the policy isolates all it may mean.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Api, Client, ResourceExt};
use tholepin_model::policy::{
    Namespaces, NetworkPolicy, ObjectName, Peer, PodPeers, PortName, PortRange, PortRule, Protocol,
    Requirement, Rule, Selector,
};
use tokio_util::sync::CancellationToken;

use super::follow::{Parsed, follow};
use crate::reconcile::policies::{Input, PolicyGate};

/// Why a part of a policy is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("operator {operator:?} of the selector for {key} is not known")]
    Operator { key: String, operator: String },
    #[error("the selector for {key} has no values")]
    NoValues { key: String },
    #[error("policyTypes has {value:?}")]
    PolicyType { value: String },
    #[error("ipBlock {text:?} is not an address range")]
    Range { text: String },
    #[error("except {except} is not within ipBlock {cidr}")]
    Except { except: IpNet, cidr: IpNet },
    #[error("a peer has an ipBlock and a selector")]
    BlockAndSelector,
    #[error("a peer names nobody")]
    NoPeer,
    #[error("protocol {protocol:?} is not known")]
    Protocol { protocol: String },
    #[error("port {port} is not between 1 and 65535")]
    Port { port: i32 },
    #[error("endPort {end} needs a lower port by number")]
    EndPort { end: i32 },
}

/// Follows NetworkPolicies until cancelled.
pub async fn watch(client: Client, gate: PolicyGate, cancel: CancellationToken) {
    let parse = |object: &api::NetworkPolicy| {
        let policy = policy_of(object);
        Parsed::Wanted(policy.name.clone(), policy)
    };
    let apply = |change| gate.send(Input::Policy(change));
    follow(Api::all(client), parse, apply, cancel).await;
}

/// What a policy says, with what is wrong in it.
#[must_use]
pub fn policy_of(object: &api::NetworkPolicy) -> NetworkPolicy {
    let namespace = object.namespace().unwrap_or_default();
    let spec = object.spec.clone().unwrap_or_default();
    let mut problems = Problems::default();
    let pods = spec
        .pod_selector
        .as_ref()
        .map_or(Ok(Selector::all()), selector);
    let pods = problems.unless(pods, "spec.podSelector");
    let ingress = spec.ingress.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let mut known = true;
    for value in types
        .iter()
        .filter(|one| !["Ingress", "Egress"].contains(&one.as_str()))
    {
        let value = value.clone();
        problems.note(&InvalidPolicy::PolicyType { value }, "spec");
        known = false;
    }
    let has = |name: &str| !known || types.iter().any(|one| one == name);
    let (in_force, out_force) = if types.is_empty() {
        (true, !egress.is_empty())
    } else {
        (has("Ingress"), has("Egress"))
    };
    let ingress: Vec<Rule> = ingress
        .into_iter()
        .enumerate()
        .filter_map(|(index, rule)| {
            let path = format!("spec.ingress[{index}]");
            problems.rule(&namespace, rule.from, rule.ports, &path)
        })
        .collect();
    let egress: Vec<Rule> = egress
        .into_iter()
        .enumerate()
        .filter_map(|(index, rule)| {
            let path = format!("spec.egress[{index}]");
            problems.rule(&namespace, rule.to, rule.ports, &path)
        })
        .collect();
    // What is meant for some pods must not be allowed to all.
    let rules = |rules: Vec<Rule>| if pods.is_some() { rules } else { Vec::new() };
    NetworkPolicy {
        name: ObjectName::new(&namespace, &object.name_any()),
        uid: object.uid().unwrap_or_default(),
        ingress: in_force.then(|| rules(ingress)),
        egress: out_force.then(|| rules(egress)),
        pods: pods.unwrap_or_default(),
        problems: problems.0,
    }
}

/// What was not understood so far, with where it is.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note(&mut self, problem: &InvalidPolicy, path: &str) {
        self.0.push(format!("{path}: {problem}"));
    }

    fn unless<T>(&mut self, result: Result<T, InvalidPolicy>, path: &str) -> Option<T> {
        result.map_err(|problem| self.note(&problem, path)).ok()
    }

    /// A rule with those of its parts that are understood. `None` when it has peers or ports and none
    /// of them is: without any it would allow everything.
    fn rule(
        &mut self,
        namespace: &str,
        peers: Option<Vec<api::NetworkPolicyPeer>>,
        ports: Option<Vec<api::NetworkPolicyPort>>,
        path: &str,
    ) -> Option<Rule> {
        let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
        let (any_peer, any_port) = (peers.is_empty(), ports.is_empty());
        let understood: Vec<Peer> = peers
            .iter()
            .filter_map(|one| self.unless(peer(one, namespace), path))
            .collect();
        let ports: Vec<PortRule> = ports
            .iter()
            .filter_map(|one| self.unless(port(one), path))
            .collect();
        let says_something =
            (any_peer || !understood.is_empty()) && (any_port || !ports.is_empty());
        says_something.then_some(Rule {
            peers: understood,
            ports,
        })
    }
}

fn selector(selector: &LabelSelector) -> Result<Selector, InvalidPolicy> {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| {
        Ok(Requirement::In(
            key.as_str().into(),
            vec![value.as_str().into()],
        ))
    });
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.map(|expression| {
        let key: Arc<str> = expression.key.as_str().into();
        let values: Vec<Arc<str>> = expression
            .values
            .iter()
            .flatten()
            .map(|value| value.as_str().into())
            .collect();
        let key_text = || expression.key.clone();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => Err(InvalidPolicy::NoValues { key: key_text() }),
            "In" => Ok(Requirement::In(key, values)),
            "NotIn" => Ok(Requirement::NotIn(key, values)),
            "Exists" => Ok(Requirement::Exists(key)),
            "DoesNotExist" => Ok(Requirement::DoesNotExist(key)),
            other => Err(InvalidPolicy::Operator {
                key: key_text(),
                operator: other.to_owned(),
            }),
        }
    });
    labels.chain(expressions).collect()
}

fn peer(peer: &api::NetworkPolicyPeer, namespace: &str) -> Result<Peer, InvalidPolicy> {
    let selectors = (&peer.pod_selector, &peer.namespace_selector);
    match (&peer.ip_block, selectors) {
        (Some(block), (None, None)) => block_of(block),
        (Some(_), _) => Err(InvalidPolicy::BlockAndSelector),
        (None, (None, None)) => Err(InvalidPolicy::NoPeer),
        (None, (pods, namespaces)) => Ok(Peer::Pods(PodPeers {
            namespaces: match namespaces {
                Some(namespaces) => Namespaces::Matching(selector(namespaces)?),
                None => Namespaces::Only(namespace.into()),
            },
            pods: pods.as_ref().map_or(Ok(Selector::all()), selector)?,
        })),
    }
}

fn block_of(block: &api::IPBlock) -> Result<Peer, InvalidPolicy> {
    let range = |text: &str| {
        let range: Option<IpNet> = text.parse().ok();
        // Mapped IPv4 addresses are IPv4's: nobody has one of IPv6 that looks so.
        let range = range.filter(|range| match range {
            IpNet::V6(v6) => v6.prefix_len() < 96 || v6.addr().to_ipv4_mapped().is_none(),
            IpNet::V4(_) => true,
        });
        range
            .map(|range| range.trunc())
            .ok_or_else(|| InvalidPolicy::Range {
                text: text.to_owned(),
            })
    };
    let cidr = range(&block.cidr)?;
    let except = block.except.iter().flatten().map(|text| range(text));
    let except = except.collect::<Result<Vec<_>, _>>()?;
    // One that is not within it may be meant to be.
    match except.iter().find(|except| !cidr.contains(*except)) {
        Some(except) => Err(InvalidPolicy::Except {
            except: *except,
            cidr,
        }),
        None => Ok(Peer::Block { cidr, except }),
    }
}

fn port(port: &api::NetworkPolicyPort) -> Result<PortRule, InvalidPolicy> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = protocol_of(protocol).ok_or_else(|| InvalidPolicy::Protocol {
        protocol: protocol.to_owned(),
    })?;
    let number = |port: i32| {
        let number = u16::try_from(port).ok().filter(|number| *number != 0);
        number.ok_or(InvalidPolicy::Port { port })
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(PortRule::Range(PortRange::whole(protocol))),
        (Some(IntOrString::String(name)), None) => Ok(PortRule::Named(PortName {
            name: name.as_str().into(),
            protocol,
        })),
        (Some(IntOrString::Int(first)), end) => {
            let (first, last) = (number(*first)?, number(end.unwrap_or(*first))?);
            if last < first {
                return Err(InvalidPolicy::EndPort { end: last.into() });
            }
            Ok(PortRule::Range(PortRange {
                protocol,
                first,
                last,
            }))
        }
        (_, Some(end)) => Err(InvalidPolicy::EndPort { end }),
    }
}

/// The protocols of ports.
pub(super) fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
