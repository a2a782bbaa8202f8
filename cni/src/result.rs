//! The result document of ADD, in the shape of the version that was asked for.

use std::net::IpAddr;

use serde_json::{Value, json};
use tholepin_api::proto::Attachment;

use crate::config::{Arguments, Config};
use crate::error::CniError;

/// Writes the result.
pub(crate) fn render(
    attachment: &Attachment,
    arguments: &Arguments,
    config: &Config,
) -> Result<String, CniError> {
    let newest = config.cni_version == "1.1.0";
    // Until 0.4.0 an address says which family it is.
    let versioned = matches!(config.cni_version.as_str(), "0.3.1" | "0.4.0");
    let mac = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(":")
    };
    let mut inside = json!({
        "name": arguments.interface,
        "mac": mac(&attachment.mac),
        "sandbox": arguments.netns,
    });
    let mut outside = json!({"name": attachment.host_interface});
    if newest {
        inside["mtu"] = attachment.mtu.into();
        outside["mtu"] = attachment.mtu.into();
    }
    let mut addresses = Vec::new();
    let mut routes = Vec::new();
    for (address, gateway) in attachment.addresses.iter().zip(&attachment.gateways) {
        let v4 = parse(address)?.is_ipv4();
        let prefix_len = if v4 { 32 } else { 128 };
        // Index 1 is the interface inside the sandbox.
        let mut entry = json!({
            "address": format!("{address}/{prefix_len}"),
            "gateway": gateway,
            "interface": 1,
        });
        if versioned {
            entry["version"] = if v4 { "4" } else { "6" }.into();
        }
        addresses.push(entry);
        routes.push(json!({"dst": if v4 { "0.0.0.0/0" } else { "::/0" }, "gw": gateway}));
    }
    let document = json!({
        "cniVersion": config.cni_version,
        "interfaces": [outside, inside],
        "ips": addresses,
        "routes": routes,
        "dns": {},
    });
    Ok(document.to_string())
}

fn parse(address: &str) -> Result<IpAddr, CniError> {
    address.parse().map_err(|_| CniError::Agent {
        message: format!("it answered with {address:?}, which is not an address"),
    })
}

/// What differs between a `prevResult` and what the agent says now.
pub(crate) fn difference(previous: &Value, attachment: &Attachment) -> Option<String> {
    let listed = previous
        .get("ips")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let listed: Vec<&str> = listed
        .iter()
        .filter_map(|ip| ip.get("address")?.as_str())
        .map(|address| address.split('/').next().unwrap_or(address))
        .collect();
    let missing = attachment
        .addresses
        .iter()
        .find(|address| !listed.contains(&address.as_str()));
    missing.map(|address| format!("address {address} is attached but not listed"))
}
