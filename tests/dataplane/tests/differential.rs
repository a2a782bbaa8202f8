//! Random Services, backends and packets: the programs and the reference model agree.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_tests_dataplane::model::{Endpoint, Model, Service};
use tholepin_tests_dataplane::stage::in_v6;
use tholepin_tests_dataplane::wire::{Body, end};
use tholepin_tests_dataplane::{Hook, Packet, Stage, stage, tcp, udp};

/// One thing that happens to the node.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends to a Service or elsewhere.
    Send {
        hook: Hook,
        client: usize,
        port: u16,
        to: usize,
        flags: &'static str,
    },
    /// A backend answers a client.
    Reply {
        backend: usize,
        to: usize,
        port: u16,
        flags: &'static str,
    },
    /// A Service gets this set of backends, under new ids.
    Scale {
        service: usize,
        backends: Vec<usize>,
    },
    /// The endpoint of a backend id stops serving, or is replaced.
    Endpoint {
        index: usize,
        serving: bool,
        replaced: bool,
    },
}

const CLIENTS: [&str; 5] = [
    "10.244.1.2",
    "10.244.1.3",
    "10.244.1.7",
    "10.244.1.1",
    "10.244.1.99",
];
const SERVICES: [(&str, u8); 3] = [
    ("10.96.0.10:53", 17),
    ("10.96.0.10:53", 6),
    ("10.96.0.11:80", 6),
];
const BACKENDS: [&str; 7] = [
    "10.244.1.2:53",
    "10.244.1.3:53",
    "10.244.1.7:80",
    "10.244.2.9:53",
    "10.244.2.8:80",
    "172.30.0.1:6443",
    "172.30.0.11:6443",
];
const ELSEWHERE: [&str; 6] = [
    "10.244.1.3:53",
    "10.244.2.9:53",
    "10.244.1.1:22",
    "192.168.7.7:443",
    "172.30.0.1:6443",
    "172.30.0.11:22",
];
const FLAGS: [&str; 6] = ["S", "S", "A", "A", "FA", "R"];

fn event() -> impl Strategy<Value = Event> {
    let flags = || prop::sample::select(&FLAGS[..]);
    let hook = prop::sample::select(vec![Hook::PodEgress, Hook::PodEgress, Hook::HostEgress]);
    prop_oneof![
        8 => (hook, 0..CLIENTS.len(), 4000_u16..4003, 0..SERVICES.len() + ELSEWHERE.len(), flags())
            .prop_map(|(hook, client, port, to, flags)| Event::Send { hook, client, port, to, flags }),
        6 => (0..BACKENDS.len(), 0..CLIENTS.len(), 4000_u16..4003, flags())
            .prop_map(|(backend, to, port, flags)| Event::Reply { backend, to, port, flags }),
        2 => (0..SERVICES.len(), prop::collection::vec(0..BACKENDS.len(), 0..4))
            .prop_map(|(service, backends)| Event::Scale { service, backends }),
        1 => (0_usize..8, any::<bool>(), any::<bool>())
            .prop_map(|(index, serving, replaced)| Event::Endpoint { index, serving, replaced }),
    ]
}

/// The node under test and the model of it.
struct Pair<'stage> {
    stage: &'stage mut Stage,
    model: Model,
    v6: bool,
}

impl Pair<'_> {
    fn text(&self, text: &str) -> String {
        if self.v6 {
            in_v6(text)
        } else {
            text.to_owned()
        }
    }

    fn apply(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Send {
                hook,
                client,
                port,
                to,
                flags,
            } => {
                let (to, protocol) = match SERVICES.get(*to) {
                    Some((at, protocol)) => (*at, *protocol),
                    None => (
                        ELSEWHERE[to - SERVICES.len()],
                        if port % 2 == 0 { 6 } else { 17 },
                    ),
                };
                // The node itself only sends from its own address.
                let client = if *hook == Hook::HostEgress {
                    "10.244.1.1"
                } else {
                    CLIENTS[*client]
                };
                let ends = format!("{client}:{port} -> {to}");
                let ends = self.text(&ends);
                self.send(*hook, packet(protocol, flags, &ends))?;
                // The same from the underlay is nobody's answer.
                if *hook == Hook::HostEgress {
                    let (_, to) = ends.split_once(" -> ").expect("two ends");
                    let back = format!("{to} -> {}", self.text("172.30.0.11:61500"));
                    return self.send(Hook::UnderlayIn, packet(protocol, flags, &back));
                }
                Ok(())
            }
            Event::Reply {
                backend,
                to,
                port,
                flags,
            } => {
                let from = BACKENDS[*backend];
                let hook = match from {
                    _ if from.starts_with("10.244.1.") => Hook::PodEgress,
                    _ if from.starts_with("10.244.2.") => Hook::OverlayIn,
                    "172.30.0.11:6443" => Hook::HostEgress,
                    _ => Hook::UnderlayIn,
                };
                for protocol in [6, 17] {
                    let from = self.text(from);
                    let anyone = self.text(&format!("{}:{port}", CLIENTS[*to]));
                    // Ports of masqueraded flows cannot be guessed.
                    let seen_as = self.model.seen_as(end(&from), protocol);
                    let to = seen_as.map_or(anyone, |seen_as| seen_as.to_string());
                    self.send(hook, packet(protocol, flags, &format!("{from} -> {to}")))?;
                }
                Ok(())
            }
            Event::Scale { service, backends } => {
                let (at, protocol) = SERVICES[*service];
                let at = self.text(at);
                let texts: Vec<_> = backends
                    .iter()
                    .map(|index| self.text(BACKENDS[*index]))
                    .collect();
                let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                let name = if protocol == 17 { "udp" } else { "tcp" };
                let ids = self.stage.service(&format!("{at}/{name}"), &texts);
                for (id, text) in ids.iter().zip(&texts) {
                    let endpoint = Endpoint {
                        at: end(text),
                        serving: true,
                        generation: 1,
                    };
                    self.model.endpoints.insert(*id, endpoint);
                }
                self.model
                    .services
                    .insert((end(&at), protocol), Service { backends: ids });
                Ok(())
            }
            Event::Endpoint {
                index,
                serving,
                replaced,
            } => {
                let Some(id) = self.model.endpoints.keys().rev().nth(*index).copied() else {
                    return Ok(());
                };
                let endpoint = self.model.endpoints.get_mut(&id).expect("just found");
                endpoint.serving = *serving;
                endpoint.generation += u32::from(*replaced);
                let flags = if *serving { BACKEND_SERVING } else { 0 };
                let at = endpoint.at.to_string();
                self.stage.backend(id, &at, 0, flags, endpoint.generation);
                Ok(())
            }
        }
    }

    fn send(&mut self, hook: Hook, packet: Packet) -> Result<(), String> {
        let observed = self.stage.run(hook, &packet);
        self.model
            .step(hook, &packet, &observed)
            .map_err(|error| format!("{packet} enters {}\n{error}", hook.program()))?;
        let entries = self.stage.conntrack().len();
        if entries != self.model.entries() {
            return Err(format!(
                "{packet} enters {}: {entries} entries instead of {}",
                hook.program(),
                self.model.entries()
            ));
        }
        Ok(())
    }
}

fn packet(protocol: u8, flags: &str, ends: &str) -> Packet {
    if protocol == 17 {
        udp(ends)
    } else {
        tcp(flags, ends)
    }
}

thread_local! {
    /// Loading takes longer than a case, so the cases share the programs.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

#[test]
fn programs_and_model_agree() {
    let Some(stage) = stage() else { return };
    STAGE.set(Some(stage));
    let config = Config {
        cases: 256,
        failure_persistence: None,
        ..Config::default()
    };
    let events = prop::collection::vec(event(), 1..60);
    proptest!(config, |(events in events, v6: bool)| {
        STAGE.with_borrow_mut(|stage| {
            let stage = stage.as_mut().expect("set above");
            stage.reset();
            let mut pair = Pair { stage, model: Model::default(), v6 };
            for event in &events {
                pair.apply(event).map_err(TestCaseError::fail)?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    });
}

#[test]
fn every_packet_size_keeps_its_checksum() {
    let Some(mut stage) = stage() else { return };
    for v6 in [false, true] {
        let text = |text: &str| if v6 { in_v6(text) } else { text.to_owned() };
        let backend = text("10.244.1.7:5353");
        stage.service(&text("10.96.0.10:53/udp"), &[&backend]);
        for size in 0..300_u16 {
            let bytes: Vec<u8> = (0..size)
                .map(|at| (at.wrapping_mul(31) ^ size) as u8)
                .collect();
            let packet = udp(&text(&format!(
                "10.244.1.2:{} -> 10.96.0.10:53",
                5000 + size
            )));
            // `run` insists on every checksum of what comes out.
            let out = stage.run(Hook::PodEgress, &packet.payload(&bytes));
            let tholepin_tests_dataplane::stage::Outcome::Pod(7, out) = out else {
                panic!("{out:?}");
            };
            assert_eq!(out.body, Body::Udp { payload: bytes });
        }
    }
}
