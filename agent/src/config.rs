//! Configuration in two steps: what was written ([`RawConfig`]: flags, environment, file) and what it
//! means ([`Config`], checked). Flags win over the environment, which wins over the file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;
use tholepin_model::service::Forwarding;

use crate::dataplane::socket_lb::SocketLb;
use crate::dataplane::xdp::XdpFront;
use crate::node::eviction::Thresholds;
use crate::runtime::log_file::LogLimits;

pub mod services;
mod values;

use values::{mode, node_name, parse_all, ranges};

const DEFAULT_CLIENT_NAME: &str = "kube-apiserver-kubelet-client";

/// Turns this Linux machine into a Kubernetes worker: runs pods through containerd, forwards their
/// traffic and Services with eBPF.
///
/// It needs root, a running containerd, a bpffs, and a kubeconfig that identifies the node
/// (`tholepin-control node-credentials` writes one). The only required option is --kubeconfig.
/// Stopping the agent (SIGTERM) stops nothing else: pods keep running, traffic keeps flowing, and the
/// next agent adopts both.
#[derive(Clone, Debug, Default, Deserialize, Parser)]
#[command(name = "tholepin-agent", version, max_term_width = 100)]
#[command(
    after_help = "Example:\n  tholepin-agent --kubeconfig /etc/tholepin/kubeconfig \\\n      \
    --node-ip 172.30.0.11,fd00:30::11 \\\n      --tls-cert-file /etc/tholepin/kubelet.crt \
    --tls-private-key-file /etc/tholepin/kubelet.key \\\n      --client-ca-file /etc/tholepin/ca.crt\n\n\
    Every option can be set as an environment variable THOLEPIN_<OPTION> or in the file given with\n\
    --config (YAML, the option names as keys).\n\nExit codes: 0 stopped by a signal, 1 failure, 64 wrong usage."
)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RawConfig {
    /// YAML file with the same names as the options
    #[arg(long, env = "THOLEPIN_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Name of the Node object [default: the host name]
    #[arg(long, env = "THOLEPIN_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// How to reach the API server, and as whom
    #[arg(long, env = "THOLEPIN_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of this node, one per family [default: the address the API server is reached from]
    #[arg(
        long,
        env = "THOLEPIN_NODE_IP",
        value_name = "IP[,IP6]",
        value_delimiter = ','
    )]
    pub node_ip: Vec<String>,
    /// containerd's gRPC socket [default: /run/containerd/containerd.sock]
    #[arg(long, env = "THOLEPIN_CONTAINERD_SOCKET", value_name = "PATH")]
    pub containerd_socket: Option<PathBuf>,
    /// Directory on a bpffs for pinned maps and links [default: /sys/fs/bpf/tholepin]
    #[arg(long, env = "THOLEPIN_BPFFS_ROOT", value_name = "DIR")]
    pub bpffs_root: Option<PathBuf>,
    /// Journals and volumes; survives reboots [default: /var/lib/tholepin]
    #[arg(long, env = "THOLEPIN_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Sockets and pinned namespaces [default: /run/tholepin]
    #[arg(long, env = "THOLEPIN_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Container logs in CRI format [default: /var/log/pods]
    #[arg(long, env = "THOLEPIN_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Symbolic links to container logs [default: /var/log/containers]
    #[arg(long, env = "THOLEPIN_CONTAINER_LOG_DIR", value_name = "DIR")]
    pub container_log_dir: Option<PathBuf>,
    /// Cgroup below which pods are put [default: /]
    #[arg(long, env = "THOLEPIN_CGROUP_PARENT", value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Balance Services at the socket: off, tcp, or all (unconnected UDP too) [default: off]
    #[arg(long, env = "THOLEPIN_SOCKET_LB", value_name = "MODE")]
    pub socket_lb: Option<String>,
    /// Directory of the cgroup whose sockets that is for [default: the pods', in the cgroup v2 tree]
    #[arg(long, env = "THOLEPIN_SOCKET_LB_CGROUP", value_name = "DIR")]
    pub socket_lb_cgroup: Option<PathBuf>,
    /// Send on NodePort and LoadBalancer traffic in XDP: off, auto, native or generic [default: off]
    #[arg(long, env = "THOLEPIN_XDP", value_name = "MODE")]
    pub xdp: Option<String>,
    /// Ranges of this node's addresses at which NodePorts are served [default: primary, the node's own]
    #[arg(
        long,
        env = "THOLEPIN_NODEPORT_ADDRESSES",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub nodeport_addresses: Vec<String>,
    /// How clients from outside reach backends on other nodes: dsr or snat [default: dsr]
    #[arg(long, env = "THOLEPIN_EXTERNAL_FORWARDING", value_name = "MODE")]
    pub external_forwarding: Option<String>,
    /// Port of the Services' /healthz on all addresses; 0 turns it off [default: 10256]
    #[arg(long, env = "THOLEPIN_PROXY_HEALTHZ_PORT", value_name = "PORT")]
    pub proxy_healthz_port: Option<u16>,
    /// Where the kubelet API listens [default: 0.0.0.0]
    #[arg(long, env = "THOLEPIN_ADDRESS", value_name = "IP")]
    pub address: Option<String>,
    /// Port of the kubelet API [default: 10250]
    #[arg(long, env = "THOLEPIN_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// Serving certificate of the kubelet API (PEM); with none, the API is not served
    #[arg(long, env = "THOLEPIN_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the serving certificate (PEM)
    #[arg(long, env = "THOLEPIN_TLS_PRIVATE_KEY_FILE", value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA that signs clients of the kubelet API (PEM)
    #[arg(long, env = "THOLEPIN_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// The one client (certificate CN) that may use the kubelet API
    /// [default: kube-apiserver-kubelet-client]
    #[arg(long, env = "THOLEPIN_AUTHORIZED_CLIENT_NAME", value_name = "CN")]
    pub authorized_client_name: Option<String>,
    /// Port of /healthz on 127.0.0.1; 0 turns it off [default: 10248]
    #[arg(long, env = "THOLEPIN_HEALTHZ_PORT", value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// UDP port of the overlay between nodes [default: 8472]
    #[arg(long, env = "THOLEPIN_VXLAN_PORT", value_name = "PORT")]
    pub vxlan_port: Option<u16>,
    /// Flows the dataplane can track, two entries for each; beyond that the longest unused are
    /// forgotten. Kept by a running node until its maps are removed [default: 65536]
    #[arg(long, env = "THOLEPIN_CONNTRACK_ENTRIES", value_name = "NUMBER")]
    pub conntrack_entries: Option<u32>,
    /// Pod ranges of the cluster [default: 10.244.0.0/16,fd00:10:244::/56]
    #[arg(
        long,
        env = "THOLEPIN_CLUSTER_CIDR",
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ','
    )]
    pub cluster_cidr: Vec<String>,
    /// Service ranges of the cluster [default: 10.96.0.0/16,fd00:10:96::/112]
    #[arg(
        long,
        env = "THOLEPIN_SERVICE_CLUSTER_IP_RANGE",
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ','
    )]
    pub service_cluster_ip_range: Vec<String>,
    /// Registry to speak plain HTTP with (repeatable); loopback always is
    #[arg(
        long,
        env = "THOLEPIN_PLAIN_HTTP_REGISTRY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub plain_http_registry: Vec<String>,
    /// Size at which a container's log is rotated [default: 10Mi]
    #[arg(long, env = "THOLEPIN_CONTAINER_LOG_MAX_SIZE", value_name = "QUANTITY")]
    pub container_log_max_size: Option<String>,
    /// Log files kept per container, at least 2 [default: 5]
    #[arg(long, env = "THOLEPIN_CONTAINER_LOG_MAX_FILES", value_name = "N")]
    pub container_log_max_files: Option<usize>,
    /// Report pressure below these [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<10%]
    ///
    /// A list replaces the default whole; an empty one never reports pressure.
    #[arg(long, env = "THOLEPIN_EVICTION_HARD", value_name = "SIGNAL<VALUE,…")]
    pub eviction_hard: Option<String>,
    /// Most pods this node takes [default: 110]
    #[arg(long, env = "THOLEPIN_MAX_PODS", value_name = "N")]
    pub max_pods: Option<u32>,
    /// Name servers of pods with dnsPolicy ClusterFirst; with none they get the node's own
    #[arg(
        long,
        env = "THOLEPIN_CLUSTER_DNS",
        value_name = "IP",
        value_delimiter = ','
    )]
    pub cluster_dns: Vec<String>,
    /// Domain of the cluster [default: cluster.local]
    #[arg(long, env = "THOLEPIN_CLUSTER_DOMAIN", value_name = "NAME")]
    pub cluster_domain: Option<String>,
    /// Resolver configuration that pods inherit [default: /etc/resolv.conf]
    #[arg(long, env = "THOLEPIN_RESOLV_CONF", value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// What is logged to standard error: error, warn, info, debug, trace, or a tracing filter
    /// [default: info]
    #[arg(long, env = "THOLEPIN_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// Where the kubelet API listens and whom it trusts.
#[derive(Clone, Debug)]
pub struct KubeletApiConfig {
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub client_ca: PathBuf,
    pub authorized_client_name: String,
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub kubeconfig: PathBuf,
    /// Empty: ask the kernel which address the API server is reached from.
    pub node_addresses: Vec<IpAddr>,
    pub containerd_socket: PathBuf,
    pub bpffs_root: PathBuf,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub log_dir: PathBuf,
    pub container_log_dir: PathBuf,
    pub container_logs: LogLimits,
    pub cgroup_parent: String,
    pub xdp: XdpFront,
    /// Empty for the node's own addresses.
    pub node_port_ranges: Vec<IpNet>,
    pub external_forwarding: Forwarding,
    pub proxy_healthz_port: u16,
    pub socket_lb: SocketLb,
    /// `None` for the pods' own.
    pub socket_lb_cgroup: Option<PathBuf>,
    pub port: u16,
    pub kubelet_api: Option<KubeletApiConfig>,
    pub healthz_port: u16,
    pub vxlan_port: u16,
    pub conntrack_entries: u32,
    pub cluster_ranges: Vec<IpNet>,
    pub service_ranges: Vec<IpNet>,
    pub plain_http_registries: Vec<String>,
    pub eviction_hard: Thresholds,
    pub max_pods: u32,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub log_filter: String,
}

/// What is wrong with the configuration. Exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read the configuration file {path}")]
    ReadFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration file {path} is not valid")]
    ParseFile {
        path: PathBuf,
        source: serde_yaml_ng::Error,
    },
    #[error("--kubeconfig is required: it says how to reach the API server, and as which node")]
    NoKubeconfig,
    #[error("--kubeconfig {path}: no such file")]
    MissingKubeconfig { path: PathBuf },
    #[error("the host name of this machine cannot be used as node name; set --node-name")]
    NoHostName,
    #[error(
        "--node-name {name:?} is not a valid name: lower case letters, digits, '-' and '.', at most 253"
    )]
    NodeName { name: String },
    #[error("--{option} {value:?}: {message}")]
    Value {
        option: &'static str,
        value: String,
        message: String,
    },
    #[error("--node-ip takes at most one IPv4 and one IPv6 address, got {value}")]
    NodeAddresses { value: String },
    #[error(
        "the kubelet API needs --tls-cert-file, --tls-private-key-file and --client-ca-file together; missing: {missing}"
    )]
    IncompleteTls { missing: String },
}

impl RawConfig {
    /// Fills what flags and environment left open from the file of `--config`.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::ReadFile {
            path: path.clone(),
            source,
        })?;
        let file: Self = serde_yaml_ng::from_str(&text)
            .map_err(|source| ConfigError::ParseFile { path, source })?;
        Ok(self.or(file))
    }

    fn or(self, other: Self) -> Self {
        fn first<T>(one: Vec<T>, two: Vec<T>) -> Vec<T> {
            if one.is_empty() { two } else { one }
        }
        Self {
            config: self.config,
            node_name: self.node_name.or(other.node_name),
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            node_ip: first(self.node_ip, other.node_ip),
            containerd_socket: self.containerd_socket.or(other.containerd_socket),
            bpffs_root: self.bpffs_root.or(other.bpffs_root),
            state_dir: self.state_dir.or(other.state_dir),
            run_dir: self.run_dir.or(other.run_dir),
            log_dir: self.log_dir.or(other.log_dir),
            container_log_dir: self.container_log_dir.or(other.container_log_dir),
            cgroup_parent: self.cgroup_parent.or(other.cgroup_parent),
            xdp: self.xdp.or(other.xdp),
            nodeport_addresses: first(self.nodeport_addresses, other.nodeport_addresses),
            external_forwarding: self.external_forwarding.or(other.external_forwarding),
            proxy_healthz_port: self.proxy_healthz_port.or(other.proxy_healthz_port),
            socket_lb: self.socket_lb.or(other.socket_lb),
            socket_lb_cgroup: self.socket_lb_cgroup.or(other.socket_lb_cgroup),
            address: self.address.or(other.address),
            port: self.port.or(other.port),
            tls_cert_file: self.tls_cert_file.or(other.tls_cert_file),
            tls_private_key_file: self.tls_private_key_file.or(other.tls_private_key_file),
            client_ca_file: self.client_ca_file.or(other.client_ca_file),
            authorized_client_name: self.authorized_client_name.or(other.authorized_client_name),
            healthz_port: self.healthz_port.or(other.healthz_port),
            vxlan_port: self.vxlan_port.or(other.vxlan_port),
            conntrack_entries: self.conntrack_entries.or(other.conntrack_entries),
            cluster_cidr: first(self.cluster_cidr, other.cluster_cidr),
            service_cluster_ip_range: first(
                self.service_cluster_ip_range,
                other.service_cluster_ip_range,
            ),
            plain_http_registry: first(self.plain_http_registry, other.plain_http_registry),
            container_log_max_size: self.container_log_max_size.or(other.container_log_max_size),
            container_log_max_files: self
                .container_log_max_files
                .or(other.container_log_max_files),
            eviction_hard: self.eviction_hard.or(other.eviction_hard),
            max_pods: self.max_pods.or(other.max_pods),
            cluster_dns: first(self.cluster_dns, other.cluster_dns),
            cluster_domain: self.cluster_domain.or(other.cluster_domain),
            resolv_conf: self.resolv_conf.or(other.resolv_conf),
            log: self.log.or(other.log),
        }
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let kubeconfig = raw.kubeconfig.clone().ok_or(ConfigError::NoKubeconfig)?;
        if !kubeconfig.is_file() {
            return Err(ConfigError::MissingKubeconfig { path: kubeconfig });
        }
        let node_name = node_name(raw.node_name.clone())?;
        let node_addresses: Vec<IpAddr> = parse_all("node-ip", &raw.node_ip)?;
        let families = node_addresses
            .iter()
            .filter(|address| address.is_ipv4())
            .count();
        if families > 1 || node_addresses.len() - families > 1 {
            return Err(ConfigError::NodeAddresses {
                value: raw.node_ip.join(","),
            });
        }
        let cgroup_parent = raw.cgroup_parent.clone().unwrap_or_else(|| "/".to_owned());
        if !cgroup_parent.starts_with('/') || cgroup_parent.split('/').any(|part| part == "..") {
            return Err(ConfigError::Value {
                option: "cgroup-parent",
                value: cgroup_parent,
                message: "must be an absolute path without `..`".to_owned(),
            });
        }
        let port = raw.port.unwrap_or(10250);
        let path = |path: &Option<PathBuf>, default: &str| {
            path.clone().unwrap_or_else(|| PathBuf::from(default))
        };
        Ok(Self {
            node_addresses,
            containerd_socket: path(&raw.containerd_socket, "/run/containerd/containerd.sock"),
            bpffs_root: path(&raw.bpffs_root, "/sys/fs/bpf/tholepin"),
            state_dir: path(&raw.state_dir, "/var/lib/tholepin"),
            run_dir: path(&raw.run_dir, "/run/tholepin"),
            log_dir: path(&raw.log_dir, "/var/log/pods"),
            container_log_dir: path(&raw.container_log_dir, "/var/log/containers"),
            container_logs: container_logs(&raw)?,
            resolv_conf: path(&raw.resolv_conf, "/etc/resolv.conf"),
            kubelet_api: kubelet_api(&raw, port)?,
            xdp: mode("xdp", raw.xdp.as_deref())?,
            socket_lb: mode("socket-lb", raw.socket_lb.as_deref())?,
            node_port_ranges: services::node_port_ranges(&raw.nodeport_addresses)?,
            external_forwarding: services::external_forwarding(raw.external_forwarding.as_deref())?,
            proxy_healthz_port: raw.proxy_healthz_port.unwrap_or(10256),
            socket_lb_cgroup: raw.socket_lb_cgroup.clone(),
            healthz_port: raw.healthz_port.unwrap_or(10248),
            vxlan_port: raw.vxlan_port.unwrap_or(8472),
            conntrack_entries: conntrack_entries(raw.conntrack_entries)?,
            cluster_ranges: ranges(
                "cluster-cidr",
                &raw.cluster_cidr,
                &["10.244.0.0/16", "fd00:10:244::/56"],
            )?,
            service_ranges: ranges(
                "service-cluster-ip-range",
                &raw.service_cluster_ip_range,
                &["10.96.0.0/16", "fd00:10:96::/112"],
            )?,
            cluster_dns: parse_all("cluster-dns", &raw.cluster_dns)?,
            eviction_hard: eviction_hard(raw.eviction_hard.as_deref())?,
            max_pods: raw.max_pods.unwrap_or(110),
            cluster_domain: raw
                .cluster_domain
                .unwrap_or_else(|| "cluster.local".to_owned()),
            log_filter: raw.log.unwrap_or_else(|| "info".to_owned()),
            plain_http_registries: raw.plain_http_registry,
            node_name,
            kubeconfig,
            cgroup_parent,
            port,
        })
    }
}

fn conntrack_entries(given: Option<u32>) -> Result<u32, ConfigError> {
    const DEFAULT: u32 = tholepin_ebpf_abi::names::CONNTRACK_CAPACITY as u32;
    /// Fewer would be evicted before they are used; more is more than 2 GiB.
    const RANGE: std::ops::RangeInclusive<u32> = 1024..=1 << 24;
    match given.unwrap_or(DEFAULT) {
        entries if RANGE.contains(&entries) => Ok(entries),
        entries => Err(ConfigError::Value {
            option: "conntrack-entries",
            value: entries.to_string(),
            message: format!("must be from {} to {}", RANGE.start(), RANGE.end()),
        }),
    }
}

/// One of a few words, or the first of them.
fn container_logs(raw: &RawConfig) -> Result<LogLimits, ConfigError> {
    let mut limits = LogLimits::default();
    if let Some(text) = &raw.container_log_max_size {
        let bytes = tholepin_model::pod::quantity::parse_units(text).ok();
        limits.max_bytes = bytes
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| ConfigError::Value {
                option: "container-log-max-size",
                value: text.clone(),
                message: "must be a quantity above 0, for example 10Mi".to_owned(),
            })?;
    }
    if let Some(files) = raw.container_log_max_files {
        if files < 2 {
            return Err(ConfigError::Value {
                option: "container-log-max-files",
                value: files.to_string(),
                message: "must be at least 2".to_owned(),
            });
        }
        limits.max_files = files;
    }
    Ok(limits)
}

fn eviction_hard(list: Option<&str>) -> Result<Thresholds, ConfigError> {
    let Some(list) = list else {
        return Ok(Thresholds::default());
    };
    Thresholds::parse(list).map_err(|error| ConfigError::Value {
        option: "eviction-hard",
        value: list.to_owned(),
        message: error.to_string(),
    })
}

fn kubelet_api(raw: &RawConfig, port: u16) -> Result<Option<KubeletApiConfig>, ConfigError> {
    let address = raw.address.as_deref().unwrap_or("0.0.0.0");
    let address: IpAddr = parse_all("address", &[address.to_owned()])?[0];
    match (
        &raw.tls_cert_file,
        &raw.tls_private_key_file,
        &raw.client_ca_file,
    ) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(private_key), Some(client_ca)) => Ok(Some(KubeletApiConfig {
            listen: SocketAddr::new(address, port),
            certificate: certificate.clone(),
            private_key: private_key.clone(),
            client_ca: client_ca.clone(),
            authorized_client_name: raw
                .authorized_client_name
                .clone()
                .unwrap_or_else(|| DEFAULT_CLIENT_NAME.to_owned()),
        })),
        (certificate, private_key, client_ca) => {
            let missing: Vec<&str> = [
                ("--tls-cert-file", certificate),
                ("--tls-private-key-file", private_key),
                ("--client-ca-file", client_ca),
            ]
            .into_iter()
            .filter(|(_, path): &(&str, &Option<PathBuf>)| path.is_none())
            .map(|(name, _)| name)
            .collect();
            Err(ConfigError::IncompleteTls {
                missing: missing.join(", "),
            })
        }
    }
}

impl Config {
    /// Directory of one pod's volumes, files and journal.
    #[must_use]
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    #[must_use]
    pub fn pods_dir(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    /// Log file of one attempt, in the kubelet's layout.
    #[must_use]
    pub fn log_path(
        &self,
        pod: &crate::runtime::PodIdentity,
        container: &str,
        attempt: u32,
    ) -> PathBuf {
        let directory = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        self.log_dir
            .join(directory)
            .join(container)
            .join(format!("{attempt}.log"))
    }
}

/// Whether a path given by API data may become part of one of our paths.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && Path::new(name).components().nth(1).is_none()
        && !name.contains('/')
}

#[cfg(test)]
mod tests;
