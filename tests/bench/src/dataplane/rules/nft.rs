//! The nftables shape: one verdict map over address, protocol and port leads to a Service's chain, which
//! draws an endpoint's chain by number.

use std::fmt::Write as _;

use super::{CLUSTER_RANGE, MARK, hashed};
use crate::dataplane::spec::{PortSpec, ServiceSpec};

/// Input of `nft -f`.
pub(crate) fn text(services: &[ServiceSpec]) -> String {
    let mut chains = String::new();
    let mut elements = String::new();
    for service in services {
        for port in &service.ports {
            add(&mut chains, &mut elements, service, port);
        }
    }
    let mut addresses = String::new();
    for service in services {
        write!(addresses, "{}, ", service.address).expect("a String takes all");
    }
    format!(
        "table ip kube-proxy {{\n\
         set cluster-ips {{ type ipv4_addr; elements = {{ {addresses} }} }}\n\
         set nodeport-ips {{ type ipv4_addr; elements = {{ 172.30.0.11 }} }}\n\
         map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or {MARK}; }}\n\
         {chains}\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }} }}\n\
         chain services {{\n\
         ip daddr . meta l4proto . th dport vmap @service-ips\n\
         ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n\
         }}\n\
         chain masquerading {{\n\
         meta mark and {MARK} == 0 return\n\
         meta mark set meta mark xor {MARK}\n\
         masquerade fully-random\n\
         }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
         chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}\n\
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
         chain filter-input {{ type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}\n\
         chain filter-output {{ type filter hook output priority -110; ct state new jump service-endpoints-check; ct state new jump firewall-check; }}\n\
         chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}

fn add(chains: &mut String, elements: &mut String, service: &ServiceSpec, port: &PortSpec) {
    let (address, number) = (service.address, port.port);
    let protocol = port.protocol.to_lowercase();
    let name = format!("bench/{}/{protocol}/{}", service.name, port.name);
    let chain = format!("service-{}-{name}", &hashed(&name)[..8]);
    let backends: Vec<_> = port.backends(service).collect();
    let mut draws = String::new();
    for (index, (endpoint, target)) in backends.iter().enumerate() {
        let to = format!("{endpoint}/{target}");
        let own = format!(
            "endpoint-{}-{name}__{to}",
            &hashed(&format!("{name}{to}"))[..8]
        );
        writeln!(
            chains,
            "chain {own} {{\n\
             ip saddr {endpoint} jump mark-for-masquerade\n\
             meta l4proto {protocol} dnat to {endpoint}:{target}\n\
             }}"
        )
        .expect("a String takes all");
        write!(draws, "{index} : goto {own}, ").expect("a String takes all");
    }
    writeln!(
        chains,
        "chain {chain} {{\n\
         ip daddr {address} {protocol} dport {number} ip saddr != {CLUSTER_RANGE} jump mark-for-masquerade\n\
         numgen random mod {} vmap {{ {draws} }}\n\
         }}",
        backends.len()
    )
    .expect("a String takes all");
    write!(
        elements,
        "{address} . {protocol} . {number} : goto {chain}, "
    )
    .expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::spec;

    #[test]
    fn a_service_has_one_element_one_chain_and_a_chain_per_endpoint() {
        let text = text(&[spec::idle(0)]);
        assert_eq!(
            text.matches("10.96.1.0 . tcp . 80 : goto service-").count(),
            1
        );
        assert_eq!(text.matches("chain endpoint-").count(), 5);
        assert!(text.contains("numgen random mod 5 vmap"));
    }
}
