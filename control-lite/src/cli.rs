//! The command line: flags as they are written, and the validated configuration made of them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use tholepin_apiserver::NodeCredentials;

/// Kubernetes control plane in one process: API server, store, controllers and scheduler.
///
/// Start it, point kubectl at the kubeconfig it writes, and join nodes with `node-credentials`:
///
///   tholepin-control serve --data-dir /var/lib/tholepin/control --advertise-address 192.0.2.1 \
///       --write-kubeconfig admin.conf
///   KUBECONFIG=admin.conf kubectl get namespaces
#[derive(Debug, Parser)]
#[command(name = "tholepin-control", version, verbatim_doc_comment)]
pub(crate) struct Cli {
    /// Say more (-v: our own debug messages, -vv: everybody's). RUST_LOG overrides it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the control plane until SIGTERM or SIGINT.
    Serve(ServeOptions),
    /// Sign and write what a node needs to join.
    NodeCredentials(NodeCredentialsOptions),
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Folder of the database and of the certificates (in `pki`); made if it is not there.
    #[arg(long, default_value = "/var/lib/tholepin/control")]
    data_dir: PathBuf,
    /// Address to listen at. Sockets passed by systemd (LISTEN_FDS) are served as well.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Port to listen at.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address nodes and pods reach this server at. Default: the bind address, or else loopback.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Further name or address for the serving certificate; may be repeated.
    #[arg(long)]
    tls_san: Vec<String>,
    /// Ranges of Service addresses: one, or one per address family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    service_cluster_ip_range: Vec<IpNet>,
    /// Ranges of pod addresses: one, or one per address family.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNet>,
    /// Prefix length of a node's IPv4 pod range.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size_ipv4: u8,
    /// Prefix length of a node's IPv6 pod range.
    #[arg(long, default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,
    /// Seconds a node may be silent before it counts as lost.
    #[arg(long, default_value_t = 40)]
    node_monitor_grace_period: u64,
    /// Seconds between two looks at the health of nodes.
    #[arg(long, default_value_t = 5)]
    node_monitor_period: u64,
    /// Where to write a kubeconfig for the administrator, once requests are answered.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
    /// Server URL in that kubeconfig. Default: https://ADVERTISE-ADDRESS:SECURE-PORT.
    #[arg(long)]
    kubeconfig_server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeCredentialsOptions {
    /// The control plane's folder.
    #[arg(long, default_value = "/var/lib/tholepin/control")]
    data_dir: PathBuf,
    /// The node's name.
    #[arg(long)]
    node: String,
    /// An address of the node, for its serving certificate; may be repeated.
    #[arg(long, required = true)]
    address: Vec<IpAddr>,
    /// URL of the API server, such as https://192.0.2.1:6443.
    #[arg(long)]
    server: String,
    /// Folder to write kubeconfig, ca.crt, kubelet.crt and kubelet.key to.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

impl NodeCredentialsOptions {
    pub(crate) fn into_credentials(self) -> NodeCredentials {
        NodeCredentials {
            pki_folder: self.data_dir.join("pki"),
            node: self.node,
            addresses: self.address,
            server: self.server,
            out: self.out,
        }
    }
}

/// Flags that contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UsageError {
    #[error("--{flag}: give one range, or one per address family, not {count}")]
    Ranges { flag: &'static str, count: usize },
    #[error("--{flag}: both ranges are {family}; give one per address family")]
    SameFamily {
        flag: &'static str,
        family: &'static str,
    },
    #[error(
        "--{flag} {mask}: a node's range must lie within {range}, and be no longer than its family allows"
    )]
    Mask {
        flag: &'static str,
        mask: u8,
        range: IpNet,
    },
    #[error("--service-cluster-ip-range {service} and --cluster-cidr {cluster} overlap")]
    Overlap { service: IpNet, cluster: IpNet },
    #[error("--{flag}: must be at least 1 second")]
    ZeroSeconds { flag: &'static str },
}

/// What `serve` runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) tls_san: Vec<String>,
    pub(crate) service_ranges: Vec<IpNet>,
    pub(crate) write_kubeconfig: Option<PathBuf>,
    pub(crate) kubeconfig_server: String,
    pub(crate) settings: tholepin_controllers::Settings,
}

impl ServeOptions {
    pub(crate) fn validate(self) -> Result<Config, UsageError> {
        check_families("service-cluster-ip-range", &self.service_cluster_ip_range)?;
        check_families("cluster-cidr", &self.cluster_cidr)?;
        for cluster in &self.cluster_cidr {
            let (flag, mask) = if cluster.addr().is_ipv4() {
                ("node-cidr-mask-size-ipv4", self.node_cidr_mask_size_ipv4)
            } else {
                ("node-cidr-mask-size-ipv6", self.node_cidr_mask_size_ipv6)
            };
            if mask < cluster.prefix_len() || mask > cluster.max_prefix_len() {
                return Err(UsageError::Mask {
                    flag,
                    mask,
                    range: *cluster,
                });
            }
            for service in &self.service_cluster_ip_range {
                if service.contains(cluster) || cluster.contains(service) {
                    return Err(UsageError::Overlap {
                        service: *service,
                        cluster: *cluster,
                    });
                }
            }
        }
        for (flag, secs) in [
            ("node-monitor-grace-period", self.node_monitor_grace_period),
            ("node-monitor-period", self.node_monitor_period),
        ] {
            if secs == 0 {
                return Err(UsageError::ZeroSeconds { flag });
            }
        }
        let loopback = if self.bind_address.is_ipv4() {
            "127.0.0.1"
        } else {
            "::1"
        };
        let advertise_address = self.advertise_address.unwrap_or_else(|| {
            if self.bind_address.is_unspecified() {
                loopback.parse().expect("a loopback address")
            } else {
                self.bind_address
            }
        });
        let server = SocketAddr::new(advertise_address, self.secure_port);
        let kubernetes_service_ip = first_address(&self.service_cluster_ip_range[0]);
        Ok(Config {
            data_dir: self.data_dir,
            listen: SocketAddr::new(self.bind_address, self.secure_port),
            tls_san: self.tls_san,
            kubeconfig_server: self
                .kubeconfig_server
                .unwrap_or_else(|| format!("https://{server}")),
            write_kubeconfig: self.write_kubeconfig,
            settings: tholepin_controllers::Settings {
                cluster_cidrs: self.cluster_cidr,
                node_mask_v4: self.node_cidr_mask_size_ipv4,
                node_mask_v6: self.node_cidr_mask_size_ipv6,
                node_monitor_period: Duration::from_secs(self.node_monitor_period),
                node_monitor_grace: Duration::from_secs(self.node_monitor_grace_period),
                advertise_address,
                secure_port: self.secure_port,
                kubernetes_service_ip,
            },
            service_ranges: self.service_cluster_ip_range,
        })
    }
}

/// The first usable address of a range: the `kubernetes` Service's.
pub(crate) fn first_address(range: &IpNet) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4((base.to_bits().wrapping_add(1)).into()),
        IpAddr::V6(base) => IpAddr::V6((base.to_bits().wrapping_add(1)).into()),
    }
}

fn check_families(flag: &'static str, ranges: &[IpNet]) -> Result<(), UsageError> {
    match ranges {
        [_] => Ok(()),
        [a, b] if a.addr().is_ipv4() == b.addr().is_ipv4() => {
            let family = if a.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            Err(UsageError::SameFamily { flag, family })
        }
        [_, _] => Ok(()),
        _ => Err(UsageError::Ranges {
            flag,
            count: ranges.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, UsageError> {
        let args = ["tholepin-control", "serve"].iter().chain(args);
        match Cli::try_parse_from(args).expect("flags parse").command {
            Command::Serve(options) => options.validate(),
            Command::NodeCredentials(_) => unreachable!("serve was given"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_architecture() {
        let config = parse(&[]).expect("valid");
        assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
        assert_eq!(
            config.settings.kubernetes_service_ip.to_string(),
            "10.96.0.1"
        );
        assert_eq!(config.kubeconfig_server, "https://127.0.0.1:6443");
        assert_eq!(config.settings.cluster_cidrs.len(), 2);
    }

    #[test]
    fn contradictions_are_refused_with_the_flags_name() {
        for (args, text) in [
            (
                &["--cluster-cidr=10.0.0.0/16,10.1.0.0/16"][..],
                "both ranges are IPv4",
            ),
            (
                &["--node-cidr-mask-size-ipv4=8"],
                "--node-cidr-mask-size-ipv4 8",
            ),
            (
                &["--node-cidr-mask-size-ipv6=129"],
                "--node-cidr-mask-size-ipv6 129",
            ),
            (&["--cluster-cidr=10.96.0.0/12"], "overlap"),
            (&["--node-monitor-period=0"], "at least 1 second"),
        ] {
            let error = parse(args).expect_err("refused").to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn an_ipv6_advertise_address_is_bracketed_in_the_url() {
        let config = parse(&["--advertise-address=fd00::1"]).expect("valid");
        assert_eq!(config.kubeconfig_server, "https://[fd00::1]:6443");
    }
}
