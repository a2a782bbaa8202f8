//! The iptables shape: a linear list of Services, a chain per Service that draws an endpoint, a chain per
//! endpoint that translates.

use std::fmt::Write as _;

use super::{CLUSTER_RANGE, MARK, hashed};
use crate::dataplane::spec::{PortSpec, ServiceSpec};

/// Input of `iptables-restore`.
pub(crate) fn text(services: &[ServiceSpec]) -> String {
    let mut chains = String::new();
    let mut entries = String::new();
    let mut bodies = String::new();
    for service in services {
        for port in &service.ports {
            add(&mut chains, &mut entries, &mut bodies, service, port);
        }
    }
    format!(
        "*filter\n\
         :INPUT ACCEPT [0:0]\n\
         :FORWARD ACCEPT [0:0]\n\
         :OUTPUT ACCEPT [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n\
         :KUBE-FORWARD - [0:0]\n\
         :KUBE-FIREWALL - [0:0]\n\
         :KUBE-PROXY-FIREWALL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A INPUT -j KUBE-FIREWALL\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK}/{MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :PREROUTING ACCEPT [0:0]\n\
         :INPUT ACCEPT [0:0]\n\
         :OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         {entries}\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {bodies}\
         COMMIT\n"
    )
}

fn add(
    chains: &mut String,
    entries: &mut String,
    bodies: &mut String,
    service: &ServiceSpec,
    port: &PortSpec,
) {
    let (address, number) = (service.address, port.port);
    let protocol = port.protocol.to_lowercase();
    let name = format!("bench/{}:{}", service.name, port.name);
    let chain = format!("KUBE-SVC-{}", hashed(&format!("{name}{protocol}")));
    let write = |out: &mut String, line: std::fmt::Arguments<'_>| {
        writeln!(out, "{line}").expect("a String takes all");
    };
    write(chains, format_args!(":{chain} - [0:0]"));
    write(
        entries,
        format_args!(
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} \
             -d {address}/32 --dport {number} -j {chain}"
        ),
    );
    write(
        bodies,
        format_args!(
            "-A {chain} -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} \
             -d {address}/32 --dport {number} ! -s {CLUSTER_RANGE} -j KUBE-MARK-MASQ"
        ),
    );
    let backends: Vec<_> = port.backends(service).collect();
    for (index, (endpoint, target)) in backends.iter().enumerate() {
        let to = format!("{endpoint}:{target}");
        let own = format!("KUBE-SEP-{}", hashed(&format!("{name}{protocol}{to}")));
        let left = backends.len() - index;
        // The last one takes what is left.
        let chance = match left {
            1 => String::new(),
            _ => format!(
                "-m statistic --mode random --probability {:.10} ",
                1.0 / left as f64
            ),
        };
        write(chains, format_args!(":{own} - [0:0]"));
        write(
            bodies,
            format_args!("-A {chain} -m comment --comment \"{name} -> {to}\" {chance}-j {own}"),
        );
        write(
            bodies,
            format_args!(
                "-A {own} -m comment --comment \"{name}\" -s {endpoint}/32 -j KUBE-MARK-MASQ"
            ),
        );
        write(
            bodies,
            format_args!(
                "-A {own} -m comment --comment \"{name}\" -m {protocol} -p {protocol} \
                 -j DNAT --to-destination {to}"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::spec;

    #[test]
    fn an_endpoint_is_drawn_with_one_fifth_then_one_fourth_and_the_last_takes_the_rest() {
        let text = text(&[spec::idle(0)]);
        let chances: Vec<&str> = text
            .split("--probability ")
            .skip(1)
            .map(|rest| &rest[..6])
            .collect();
        assert_eq!(chances, ["0.2000", "0.2500", "0.3333", "0.5000"]);
        assert_eq!(text.matches("-j DNAT --to-destination").count(), 5);
    }

    #[test]
    fn every_chain_that_is_jumped_to_is_declared() {
        let text = text(&[spec::idle(0), spec::idle(1)]);
        for line in text.lines().filter(|line| line.starts_with("-A ")) {
            let target = line.split(" -j ").nth(1).unwrap();
            let target = target.split(' ').next().unwrap();
            let declared = text.contains(&format!(":{target} "));
            assert!(declared || !target.starts_with("KUBE"), "{line}");
        }
    }
}
