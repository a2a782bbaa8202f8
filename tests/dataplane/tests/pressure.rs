//! Maps that are full: what is lost may be lost, but nothing may go to anybody else.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tholepin_tests_dataplane::stage::{Outcome, in_v6};
use tholepin_tests_dataplane::wire::end;
use tholepin_tests_dataplane::{Hook, Packet, Stage, stage, tcp, udp};

/// Flows opened, several times what the stage's table of 1,024 halves has room for.
const FLOWS: u32 = 3_000;

/// A Service and its endpoints.
struct Target {
    frontend: &'static str,
    protocol: u8,
    backends: &'static [&'static str],
}

const TARGETS: [Target; 3] = [
    Target {
        frontend: "10.96.0.10:53",
        protocol: 17,
        backends: &["10.244.1.7:5353", "10.244.2.9:5353"],
    },
    Target {
        frontend: "10.96.0.11:80",
        protocol: 6,
        backends: &["10.244.1.7:8080", "10.244.2.8:8080", "10.244.2.9:8080"],
    },
    Target {
        frontend: "10.96.0.12:53",
        protocol: 17,
        backends: &["10.244.2.8:53"],
    },
];

/// A flow as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    target: usize,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
}

struct Crowd {
    stage: Stage,
    v6: bool,
    flows: Vec<Flow>,
}

impl Crowd {
    fn at(&self, text: &str) -> SocketAddr {
        end(&if self.v6 {
            in_v6(text)
        } else {
            text.to_owned()
        })
    }

    fn packet(&self, protocol: u8, flags: &str, from: SocketAddr, to: SocketAddr) -> Packet {
        let ends = format!("{from} -> {to}");
        match protocol {
            17 => udp(&ends),
            _ => tcp(flags, &ends),
        }
    }

    /// Sends from the client; it must reach an endpoint of the Service it asked, as this client.
    fn send(&mut self, mut flow: Flow, flags: &str) -> Flow {
        let target = &TARGETS[flow.target];
        let packet = self.packet(target.protocol, flags, flow.client, flow.frontend);
        let (Outcome::Pod(_, out) | Outcome::Overlay(out)) =
            self.stage.run(Hook::PodEgress, &packet)
        else {
            panic!("{packet} was not delivered");
        };
        let backends: Vec<_> = target.backends.iter().map(|text| self.at(text)).collect();
        assert!(backends.contains(&out.destination), "{packet} became {out}");
        assert_eq!(out.source, flow.client, "{packet} became {out}");
        flow.backend = out.destination;
        flow
    }

    /// The endpoint answers; true if the client gets it from the Service.
    fn answer(&mut self, flow: Flow, flags: &str) -> bool {
        let protocol = TARGETS[flow.target].protocol;
        let packet = self.packet(protocol, flags, flow.backend, flow.client);
        let local = [self.at("10.244.1.7:0").ip()].contains(&flow.backend.ip());
        let hook = if local {
            Hook::PodEgress
        } else {
            Hook::OverlayIn
        };
        let Outcome::Pod(_, out) = self.stage.run(hook, &packet) else {
            panic!("{packet} was not delivered");
        };
        assert_eq!(out.destination, flow.client, "{packet} became {out}");
        let known = out.source == flow.frontend;
        assert!(known || out.source == flow.backend, "{packet} became {out}");
        known
    }
}

fn crowded(v6: bool) -> BTreeMap<&'static str, usize> {
    let Some(stage) = stage() else {
        return BTreeMap::new();
    };
    let mut crowd = Crowd {
        stage,
        v6,
        flows: Vec::new(),
    };
    for target in &TARGETS {
        let name = if target.protocol == 17 { "udp" } else { "tcp" };
        let own = |text: &str| if v6 { in_v6(text) } else { text.to_owned() };
        let backends: Vec<String> = target.backends.iter().map(|text| own(text)).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let frontend = format!("{}/{name}", own(target.frontend));
        crowd.stage.service(&frontend, &backends);
    }
    let mut chance = StdRng::seed_from_u64(20_261_121);
    let mut counts = BTreeMap::new();
    for number in 0..FLOWS {
        let target = chance.random_range(0..TARGETS.len());
        let pod = ["10.244.1.2", "10.244.1.3"][chance.random_range(0..2)];
        // No two flows have the same client port, so no endpoint ever needs another one.
        let client = crowd.at(&format!("{pod}:{}", 1024 + number));
        let frontend = crowd.at(TARGETS[target].frontend);
        let flow = Flow {
            target,
            client,
            frontend,
            backend: frontend,
        };
        let flow = crowd.send(flow, "S");
        assert!(
            crowd.answer(flow, "SA"),
            "the newest flow is known: {flow:?}"
        );
        crowd.flows.push(flow);
        // Somebody else goes on, known or long forgotten.
        let index = chance.random_range(0..crowd.flows.len());
        let other = crowd.flows[index];
        if chance.random_bool(0.5) {
            let answered = crowd.answer(other, "A");
            *counts
                .entry(if answered { "known" } else { "forgotten" })
                .or_default() += 1;
        } else {
            let moved = crowd.send(other, "A");
            let same = moved.backend == other.backend;
            *counts
                .entry(if same { "kept" } else { "balanced anew" })
                .or_default() += 1;
            // A kept flow may have lost its other half, which comes back within a second.
            let known = crowd.answer(moved, "A");
            assert!(known || same, "a new flow is known: {moved:?}");
            crowd.flows[index] = moved;
        }
        if number % 500 == 0 {
            assert!(crowd.stage.conntrack().len() <= 1024);
        }
    }
    counts
}

#[test]
fn a_full_flow_table_forgets_old_flows_and_never_mixes_any() {
    for v6 in [false, true] {
        let counts = crowded(v6);
        // Nothing to say where eBPF may not be loaded.
        if counts.is_empty() {
            return;
        }
        // It was full, and it was not useless.
        for kind in ["known", "forgotten", "kept", "balanced anew"] {
            assert!(
                counts.get(kind).is_some_and(|count| *count > 50),
                "{counts:?}"
            );
        }
    }
}
