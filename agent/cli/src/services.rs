//! `services`: which frontends there are and what is behind each, from the live maps.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::service::*;
use tholepin_ebpf_abi::{FrontendKey, FrontendValue};

use crate::Place;
use crate::maps::{Live, Maps};
use crate::names::{Names, protocol_name};
use crate::output::{self, Format};

/// Show Services as this node has them: frontends, and the backends behind each
///
/// Every frontend is looked up by clients inside the cluster (scope `cluster`) or outside (`external`).
/// New flows go to one of the listed backends; those of this node are marked `*`. `(draining)` says that
/// a backend gets no new flows.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only Services whose name, address or id contains this
    filter: Option<String>,
}

/// One frontend with everything about it resolved.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    key: FrontendKey,
    value: FrontendValue,
    name: Option<String>,
    backends: Vec<Target>,
}

#[derive(Debug, PartialEq, Eq)]
struct Target {
    id: u32,
    address: Option<std::net::SocketAddr>,
    pod: Option<String>,
    local: bool,
    serving: bool,
}

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    let live = Live::open(place)?;
    let mut frontends = live.frontends()?;
    frontends.sort_unstable();
    let names = place.names();
    let mut rows = Vec::new();
    for (key, value) in frontends {
        let row = resolve(&live, &names, key, value)?;
        if options
            .filter
            .as_ref()
            .is_none_or(|filter| row.matches(filter))
        {
            rows.push(row);
        }
    }
    match place.output {
        Format::Json => {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            output::print_json(&json!(rows))?;
        }
        Format::Table => {
            let head = ["FRONTEND", "SCOPE", "SERVICE", "ID", "FLAGS", "BACKENDS"];
            let rows: Vec<_> = rows.iter().map(Row::cells).collect();
            output::print(&output::table(&head, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn resolve(maps: &dyn Maps, names: &Names, key: FrontendKey, value: FrontendValue) -> Result<Row> {
    let mut backends = Vec::new();
    for (ordinal, id) in maps.slots(&value)?.into_iter().enumerate() {
        let backend = maps.backend(id)?;
        let address = backend.map(|backend| (backend.address.to_ip(), backend.port.get()));
        backends.push(Target {
            id,
            address: address.map(Into::into),
            pod: address.and_then(|(ip, _)| names.pod(ip)).map(str::to_owned),
            local: ordinal < usize::from(value.local_count),
            serving: backend.is_some_and(|backend| backend.flags & BACKEND_SERVING != 0),
        });
    }
    let name = names.service(key.address.to_ip(), key.port.get(), key.protocol);
    Ok(Row {
        key,
        value,
        name,
        backends,
    })
}

/// The words for a frontend's flags.
pub(crate) fn flags(value: &FrontendValue) -> Vec<String> {
    let mut words = Vec::new();
    for (bit, word) in [
        (FRONTEND_LOCAL_ONLY, "local-only"),
        (FRONTEND_SOURCE_RANGES, "source-ranges"),
        (FRONTEND_MASQUERADE, "masquerade"),
        (FRONTEND_NODE_PORT, "node-port"),
    ] {
        if value.flags & bit != 0 {
            words.push(word.to_owned());
        }
    }
    if value.flags & FRONTEND_AFFINITY != 0 {
        words.push(format!("affinity={}s", value.affinity_timeout_s));
    }
    if value.flags & FRONTEND_MAGLEV != 0 {
        words.push(format!("maglev={}", value.maglev_size));
    }
    words
}

/// `cluster` or `external`.
pub(crate) fn scope(scope: u8) -> &'static str {
    if scope == SCOPE_CLUSTER {
        "cluster"
    } else {
        "external"
    }
}

/// Address, port and protocol as people write them.
pub(crate) fn frontend(key: &FrontendKey) -> String {
    let at = std::net::SocketAddr::new(key.address.to_ip(), key.port.get());
    format!("{at}/{}", protocol_name(key.protocol))
}

impl Row {
    fn matches(&self, filter: &str) -> bool {
        self.name.as_ref().is_some_and(|name| name.contains(filter))
            || frontend(&self.key).contains(filter)
            || self.value.service_id.to_string() == filter
    }

    fn cells(&self) -> Vec<String> {
        let backends: Vec<String> = self.backends.iter().map(Target::to_string).collect();
        vec![
            frontend(&self.key),
            scope(self.key.scope).to_owned(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.value.service_id.to_string(),
            or_dash(flags(&self.value).join(",")),
            if backends.is_empty() {
                "none: rejects".to_owned()
            } else {
                backends.join(", ")
            },
        ]
    }

    fn json(&self) -> Value {
        let backends: Vec<Value> = self
            .backends
            .iter()
            .map(|one| {
                json!({
                    "id": one.id,
                    "address": one.address.map(|at| at.to_string()),
                    "pod": one.pod,
                    "local": one.local,
                    "serving": one.serving,
                })
            })
            .collect();
        json!({
            "address": self.key.address.to_ip(),
            "port": self.key.port.get(),
            "protocol": protocol_name(self.key.protocol),
            "scope": scope(self.key.scope),
            "service": self.name,
            "serviceId": self.value.service_id,
            "flags": flags(&self.value),
            "backends": backends,
        })
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}")?,
            None => write!(f, "missing backend {}", self.id)?,
        }
        if self.local {
            f.write_str("*")?;
        }
        if self.address.is_some() && !self.serving {
            f.write_str(" (draining)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::fake::Fake;

    #[test]
    fn a_frontend_is_shown_with_its_backends_local_ones_marked() {
        let mut fake = Fake::default();
        let (key, value) = fake.service(
            "10.96.0.10",
            80,
            6,
            &["10.244.0.5:8080", "10.244.1.6:8080"],
            1,
        );
        let names = Names::of(&[("10.96.0.10", 80, 6, "default/web", "http")], &[]);
        let row = resolve(&fake, &names, key, value).expect("the fake answers");
        assert_eq!(
            row.cells(),
            [
                "10.96.0.10:80/tcp",
                "cluster",
                "default/web:http",
                "1",
                "-",
                "10.244.0.5:8080*, 10.244.1.6:8080",
            ]
        );
        assert!(row.matches("web") && row.matches("96.0.10") && !row.matches("other"));
        assert_eq!(row.json()["backends"][0]["local"], true);
    }

    #[test]
    fn a_service_without_backends_says_what_it_does() {
        let mut fake = Fake::default();
        let (key, value) = fake.service("fd00:10:96::a", 53, 17, &[], 0);
        let row = resolve(&fake, &Names::default(), key, value).expect("the fake answers");
        assert_eq!(row.cells()[0], "[fd00:10:96::a]:53/udp");
        assert_eq!(row.cells()[5], "none: rejects");
    }
}
