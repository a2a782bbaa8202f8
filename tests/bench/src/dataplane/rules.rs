//! Rule sets of kube-proxy's shape, written from a description of it: what a packet has to pass is the
//! same, the comments and names are as long as there. Pure text; loading them is at the end.

pub(crate) mod iptables;
pub(crate) mod nft;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tholepin_harness::{command, netns};

use super::spec::ServiceSpec;

/// Pods' addresses: what comes from elsewhere to a Service is masqueraded.
pub(crate) const CLUSTER_RANGE: &str = "10.244.0.0/16";
/// The mark of packets to be masqueraded.
pub(crate) const MARK: &str = "0x4000";

/// Whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rules {
    Nft,
    Iptables,
}

impl Rules {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Nft => "nftables",
            Self::Iptables => "iptables",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables-restore",
        }
    }

    /// The program's version, or why there is none.
    pub(crate) fn version(self) -> Result<String, String> {
        let mut command = Command::new(self.program());
        match command::run(command.arg("--version")) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(_) => Err(format!(
                "{} is not installed (package {})",
                self.program(),
                self.label()
            )),
        }
    }

    /// Loads the rules for these Services into a namespace; how long it took.
    pub(crate) fn load(self, namespace: &str, services: &[ServiceSpec]) -> Result<Duration> {
        let mut command = Command::new(self.program());
        let text = match self {
            Self::Nft => {
                command.args(["-f", "-"]);
                nft::text(services)
            }
            Self::Iptables => iptables::text(services),
        };
        netns::run_inside(&mut command, namespace)?;
        let started = Instant::now();
        command::run_with_input(&mut command, &text)
            .with_context(|| format!("loading {} Services", services.len()))?;
        Ok(started.elapsed())
    }
}

/// Sixteen characters from a name, as kube-proxy hashes the names of chains.
fn hashed(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut rest = u128::from(hasher.finish());
    // The second half keeps 10,000 names apart with room to spare.
    (text, 1).hash(&mut hasher);
    rest |= u128::from(hasher.finish()) << 64;
    (0..16)
        .map(|_| {
            let character = ALPHABET[(rest % 32) as usize];
            rest /= 32;
            char::from(character)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_sixteen_characters_and_differ() {
        let mut all: Vec<String> = (0..50_000).map(|n| hashed(&n.to_string())).collect();
        assert!(all.iter().all(|hash| hash.len() == 16));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 50_000);
    }
}
