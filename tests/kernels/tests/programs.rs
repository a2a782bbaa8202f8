//! Every program passes this kernel's verifier, with room to spare.

use std::time::Instant;

use tholepin_harness::skip;
use tholepin_tests_dataplane::stage::Globals;
use tholepin_tests_dataplane::{Hook, Stage};
use tholepin_tests_kernels::note;

/// The verifier gives up at 1,000,000. Kernels differ by a few percent from one release to the next, and
/// a program that is close to the end on one is over it on another.
const ROOM: u32 = 800_000;

/// One thing switched at a time: what a switch rules out is not looked at, so that combinations show
/// nothing that the single ones do not.
fn variants() -> Vec<(&'static str, Globals)> {
    let on = Globals::default();
    vec![
        ("default", on),
        (
            "without source check",
            Globals {
                enforce_source: 0,
                ..on
            },
        ),
        (
            "without redirect_peer",
            Globals {
                redirect_peer: 0,
                ..on
            },
        ),
        ("with BPF_F_IPV6", Globals { csum_ipv6: 1, ..on }),
        (
            "without overlay",
            Globals {
                overlay: false,
                ..on
            },
        ),
        (
            "without masquerade",
            Globals {
                masquerade: false,
                ..on
            },
        ),
        ("without MTU", Globals { mtu: 0, ..on }),
    ]
}

#[test]
fn every_variant_of_every_program_loads_and_leaves_the_verifier_room() {
    if skip::unless(skip::root()).is_none() {
        return;
    }
    for (name, globals) in variants() {
        let started = Instant::now();
        let mut stage = Stage::load(globals).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let mut most = 0;
        for hook in Hook::ALL {
            // Kernels before 5.16 do not tell.
            let Some(count) = stage.verified_instructions(hook) else {
                continue;
            };
            most = most.max(count);
            if name == "default" {
                note(
                    &format!("verified instructions of {}", hook.program()),
                    count,
                );
            }
            assert!(
                count < ROOM,
                "{}, {name}: {count} instructions verified",
                hook.program()
            );
        }
        note(&format!("most verified {name}"), most);
        println!("{name}: loaded in {:?}", started.elapsed());
    }
}
