//! The configuration from flags, environment and file.

use clap::CommandFactory;

use super::*;

fn kubeconfig() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().unwrap()
}

fn parse(arguments: &[&str]) -> Result<Config, ConfigError> {
    let file = kubeconfig();
    let kubeconfig = file.path().to_str().unwrap();
    let mut all = vec![
        "tholepin-agent",
        "--kubeconfig",
        kubeconfig,
        "--node-name",
        "n1",
    ];
    all.extend(arguments);
    Config::try_from(RawConfig::try_parse_from(all).unwrap())
}

#[test]
fn the_command_line_is_consistent() {
    RawConfig::command().debug_assert();
}

#[test]
fn sockets_are_balanced_as_the_option_says() {
    let mode = |arguments: &[&str]| parse(arguments).map(|config| config.socket_lb);
    assert_eq!(mode(&[]).unwrap(), SocketLb::Off);
    assert_eq!(mode(&["--socket-lb", "all"]).unwrap(), SocketLb::All);
    assert_eq!(mode(&["--socket-lb", "tcp"]).unwrap(), SocketLb::Tcp);
    let error = mode(&["--socket-lb", "udp"]).unwrap_err().to_string();
    assert_eq!(error, "--socket-lb \"udp\": expected `off`, `tcp` or `all`");
}

#[test]
fn the_front_door_is_where_the_option_says() {
    let mode = |arguments: &[&str]| parse(arguments).map(|config| config.xdp);
    assert_eq!(mode(&[]).unwrap(), XdpFront::Off);
    assert_eq!(mode(&["--xdp", "native"]).unwrap(), XdpFront::Native);
    assert!(mode(&["--xdp", "yes"]).is_err());
}

#[test]
fn log_limits_are_the_kubelets_unless_said_otherwise() {
    let limits = |arguments: &[&str]| parse(arguments).map(|config| config.container_logs);
    assert_eq!(limits(&[]).unwrap(), LogLimits::default());
    let given = [
        "--container-log-max-size",
        "1Mi",
        "--container-log-max-files",
        "2",
    ];
    let given = limits(&given).unwrap();
    assert_eq!((given.max_bytes, given.max_files), (1 << 20, 2));
    for bad in [
        ["--container-log-max-size", "0"],
        ["--container-log-max-files", "1"],
    ] {
        let error = limits(&bad).unwrap_err().to_string();
        assert!(error.starts_with(bad[0]), "{error}");
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = parse(&["--node-ip", "172.30.0.11,fd00:30::11"]).unwrap();
    assert_eq!(
        (config.port, config.healthz_port, config.max_pods),
        (10250, 10248, 110)
    );
    assert_eq!(config.node_addresses.len(), 2);
    assert!(config.kubelet_api.is_none());
    assert_eq!(config.cluster_ranges.len(), 2);
}

#[test]
fn wrong_values_name_the_option_and_the_value() {
    for (arguments, text) in [
        (vec!["--node-ip", "nowhere"], "--node-ip \"nowhere\""),
        (vec!["--node-ip", "1.1.1.1,1.1.1.2"], "at most one IPv4"),
        (vec!["--cgroup-parent", "a/b"], "--cgroup-parent \"a/b\""),
        (
            vec!["--tls-cert-file", "x"],
            "missing: --tls-private-key-file, --client-ca-file",
        ),
        (vec!["--cluster-cidr", "10.0.0.0"], "--cluster-cidr"),
    ] {
        let error = parse(&arguments).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    assert!(matches!(
        node_name(Some("Bad_Name".into())),
        Err(ConfigError::NodeName { .. })
    ));
}

#[test]
fn flags_win_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "max-pods: 5\nport: 1234\ncluster-dns: [10.96.0.10]\n",
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let raw = RawConfig::try_parse_from(["a", "--config", path, "--port", "999"]).unwrap();
    let merged = raw.with_file().unwrap();
    assert_eq!((merged.max_pods, merged.port), (Some(5), Some(999)));
    std::fs::write(file.path(), "no-such-option: 5\n").unwrap();
    let raw = RawConfig::try_parse_from(["a", "--config", path]).unwrap();
    assert!(matches!(
        raw.with_file(),
        Err(ConfigError::ParseFile { .. })
    ));
}

#[test]
fn room_for_flows_is_bounded() {
    let entries = |arguments: &[&str]| parse(arguments).map(|config| config.conntrack_entries);
    assert_eq!(entries(&[]).unwrap(), 65_536);
    assert_eq!(
        entries(&["--conntrack-entries", "1000000"]).unwrap(),
        1_000_000
    );
    let error = entries(&["--conntrack-entries", "10"])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "--conntrack-entries \"10\": must be from 1024 to 16777216"
    );
}
