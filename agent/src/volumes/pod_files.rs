//! The files every container of a pod gets: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//!
//! Contents are pure; writing is in place (not by rename), because running containers hold the inode.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tholepin_model::pod::{DnsPolicy, Pod};

/// The node's part of name resolution.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub node_resolv_conf: PathBuf,
}

const MAX_NAME_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const HOSTNAME_LIMIT: usize = 63;

/// Host name of the pod: `spec.hostname` or its name, cut to what the kernel takes.
#[must_use]
pub fn hostname(pod: &Pod) -> String {
    let name = pod.hostname.as_deref().unwrap_or(&pod.name);
    name.chars()
        .take(HOSTNAME_LIMIT)
        .collect::<String>()
        .trim_end_matches(['-', '.'])
        .to_owned()
}

/// Contents of `/etc/hosts` of a pod with its own network.
#[must_use]
pub fn hosts(pod: &Pod, addresses: &[IpAddr], cluster_domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let name = hostname(pod);
    for address in addresses {
        match &pod.subdomain {
            Some(subdomain) => text.push_str(&format!(
                "{address}\t{name}.{subdomain}.{}.svc.{cluster_domain}\t{name}\n",
                pod.namespace
            )),
            None => text.push_str(&format!("{address}\t{name}\n")),
        }
    }
    text.push_str(&aliases(pod));
    text
}

/// The node's own file for pods on the host network, with the pod's aliases.
#[must_use]
pub fn host_network_hosts(pod: &Pod, node_file: &str) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{node_file}{}",
        aliases(pod)
    )
}

fn aliases(pod: &Pod) -> String {
    if pod.host_aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in &pod.host_aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
    text
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn parse_resolver(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(ToOwned::to_owned)),
            // The last line wins, as in the resolver itself.
            Some("search" | "domain") => resolver.searches = words.map(ToOwned::to_owned).collect(),
            Some("options") => resolver.options.extend(words.map(ToOwned::to_owned)),
            _ => {}
        }
    }
    resolver
}

/// Contents of `/etc/resolv.conf`. Without a cluster DNS, ClusterFirst falls back to the node's.
#[must_use]
pub fn resolv_conf(pod: &Pod, settings: &DnsSettings, node_file: &str) -> String {
    let node = parse_resolver(node_file);
    let uses_cluster = match pod.dns_policy {
        DnsPolicy::ClusterFirst => !pod.host_network,
        DnsPolicy::ClusterFirstWithHostNet => true,
        DnsPolicy::Default | DnsPolicy::None => false,
    } && !settings.cluster_dns.is_empty();
    let mut resolver = if pod.dns_policy == DnsPolicy::None {
        Resolver::default()
    } else if uses_cluster {
        let domain = &settings.cluster_domain;
        let mut searches = vec![
            format!("{}.svc.{domain}", pod.namespace),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(node.searches);
        Resolver {
            servers: settings
                .cluster_dns
                .iter()
                .map(ToString::to_string)
                .collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        node
    };
    let config = &pod.dns_config;
    merge(&mut resolver.servers, &config.nameservers);
    merge(&mut resolver.searches, &config.searches);
    for option in &config.options {
        let name = option.split(':').next().unwrap_or(option);
        resolver
            .options
            .retain(|known| known.split(':').next() != Some(name));
        resolver.options.push(option.clone());
    }
    let mut text = String::new();
    if !resolver.searches.is_empty() {
        resolver.searches.truncate(MAX_SEARCHES);
        text.push_str(&format!("search {}\n", resolver.searches.join(" ")));
    }
    for server in resolver.servers.iter().take(MAX_NAME_SERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !resolver.options.is_empty() {
        text.push_str(&format!("options {}\n", resolver.options.join(" ")));
    }
    text
}

fn merge(into: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !into.contains(item) {
            into.push(item.clone());
        }
    }
}

/// Paths of the three files of one pod.
#[derive(Clone, Debug)]
pub struct PodFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
}

impl PodFiles {
    #[must_use]
    pub fn of(pod_dir: &Path) -> Self {
        Self {
            hosts: pod_dir.join("etc-hosts"),
            hostname: pod_dir.join("hostname"),
            resolv_conf: pod_dir.join("resolv.conf"),
        }
    }

    /// Writes the files. Blocking.
    pub fn write(&self, pod: &Pod, addresses: &[IpAddr], dns: &DnsSettings) -> std::io::Result<()> {
        let hosts = if pod.host_network {
            host_network_hosts(
                pod,
                &std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            )
        } else {
            hosts(pod, addresses, &dns.cluster_domain)
        };
        let node_resolver = std::fs::read_to_string(&dns.node_resolv_conf).unwrap_or_default();
        let name = if pod.host_network {
            nix::unistd::gethostname()?.to_string_lossy().into_owned()
        } else {
            hostname(pod)
        };
        if let Some(parent) = self.hosts.parent() {
            crate::journal::make_private_dir(parent)?;
        }
        write_in_place(&self.hosts, &hosts)?;
        write_in_place(&self.hostname, &format!("{name}\n"))?;
        write_in_place(&self.resolv_conf, &resolv_conf(pod, dns, &node_resolver))
    }
}

fn write_in_place(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|current| current == text) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use tholepin_model::pod::{DnsConfig, HostAlias};

    use super::*;

    fn settings(dns: &[&str]) -> DnsSettings {
        DnsSettings {
            cluster_dns: dns.iter().map(|ip| ip.parse().unwrap()).collect(),
            cluster_domain: "cluster.local".to_owned(),
            node_resolv_conf: PathBuf::new(),
        }
    }

    fn pod() -> Pod {
        Pod {
            name: "web".to_owned(),
            namespace: "ns".to_owned(),
            ..Pod::default()
        }
    }

    const NODE: &str = "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n";

    #[test]
    fn cluster_first_searches_the_pods_namespace() {
        let text = resolv_conf(&pod(), &settings(&["10.96.0.10"]), NODE);
        assert_eq!(
            text,
            "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
             nameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn without_cluster_dns_the_nodes_resolver_is_used() {
        let text = resolv_conf(&pod(), &settings(&[]), NODE);
        assert_eq!(
            text,
            "search corp.example\nnameserver 192.0.2.1\noptions timeout:1\n"
        );
    }

    #[test]
    fn dns_config_adds_and_overrides() {
        let pod = Pod {
            dns_policy: DnsPolicy::None,
            dns_config: DnsConfig {
                nameservers: vec!["1.1.1.1".to_owned()],
                searches: vec!["a.b".to_owned()],
                options: vec!["ndots:2".to_owned(), "edns0".to_owned()],
            },
            ..pod()
        };
        let text = resolv_conf(&pod, &settings(&["10.96.0.10"]), NODE);
        assert_eq!(
            text,
            "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn hosts_name_the_pod_for_every_address_and_its_aliases() {
        let pod = Pod {
            subdomain: Some("db".to_owned()),
            host_aliases: vec![HostAlias {
                ip: "10.9.9.9".to_owned(),
                hostnames: vec!["foo".to_owned(), "bar".to_owned()],
            }],
            ..pod()
        };
        let addresses = ["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let text = hosts(&pod, &addresses, "cluster.local");
        assert!(text.contains("10.244.1.2\tweb.db.ns.svc.cluster.local\tweb\n"));
        assert!(text.contains("fd00::2\tweb.db.ns.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n10.9.9.9\tfoo\tbar\n"));
        assert!(hosts(&super::tests::pod(), &addresses[..1], "x").contains("10.244.1.2\tweb\n"));
    }
}
