//! A packet's life, hook by hook, in both families.

mod answers;
mod cleaning;
mod clients;
mod events;
mod external;
mod flows;
mod forwarding;
mod outside;
mod selection;

use tholepin_tests_dataplane::Hook::PodEgress;
use tholepin_tests_dataplane::stage::{Outcome, in_v6};
use tholepin_tests_dataplane::{Frontend, Packet, Stage, stage, tcp, udp};

/// Turns the addresses of a text into a family's.
type Family = fn(&str) -> String;

/// Runs a scenario on a stage of its own for each family.
fn both(scenario: impl Fn(&mut Stage, Family)) {
    for family in [str::to_owned as Family, in_v6] {
        let Some(mut stage) = stage() else { return };
        scenario(&mut stage, family);
    }
}

fn client_udp(f: Family) -> Packet {
    udp(&f("10.244.1.2:4000 -> 10.96.0.10:53"))
}

fn client_tcp(flags: &str, f: Family) -> Packet {
    tcp(flags, &f("10.244.1.2:4000 -> 10.96.0.10:80"))
}

fn service(stage: &mut Stage, f: Family, frontend: &str, backends: &[&str]) -> Vec<u32> {
    let backends: Vec<_> = backends.iter().map(|backend| f(backend)).collect();
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    stage.service(&f(frontend), &backends)
}

/// A frontend in a family, for clients inside and outside.
fn front<'a>(f: Family, at: &str, backends: &[&str], local: u16) -> Frontend<'a> {
    Frontend {
        at: f(at),
        backends: backends.iter().map(|backend| f(backend)).collect(),
        local,
        external: true,
        ..Frontend::default()
    }
}

/// Which of two pods `.3` and `.7` a packet reaches.
fn reaches(stage: &mut Stage, packet: &Packet) -> u8 {
    match stage.run(PodEgress, packet) {
        Outcome::Pod(last, _) => last,
        other => panic!("{other:?}"),
    }
}

/// Whether sending `packet` anew, after `between`, ever reaches another backend.
fn ever_moves(
    f: Family,
    ids: impl Fn(&mut Stage, &[u32]),
    first: &Packet,
    then: &[&Packet],
) -> bool {
    (0..24).any(|_| {
        let Some(mut stage) = stage() else {
            return false;
        };
        let protocol = if first.protocol() == 17 {
            "10.96.0.10:53/udp"
        } else {
            "10.96.0.10:80/tcp"
        };
        let all = service(&mut stage, f, protocol, &["10.244.1.3:53", "10.244.1.7:53"]);
        let before = reaches(&mut stage, first);
        ids(&mut stage, &all);
        let after: Vec<_> = then
            .iter()
            .map(|packet| reaches(&mut stage, packet))
            .collect();
        after.last().is_some_and(|after| *after != before)
    })
}
