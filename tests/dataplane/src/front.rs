//! The XDP program on the node's underlay interface, `up0` of [`crate::uplink`].
//!
//! It is attached for real, because only then the kernel lets a test say that a packet came by it.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use nix::time::{ClockId, clock_gettime};
use tholepin_ebpf_abi::conntrack::TICK_SHIFT;
use tholepin_ebpf_abi::names::{HOST_MAC, OVERLAY_SOURCE_MAC, XDP_FRONT};
use tholepin_ebpf_abi::{Be16, ConntrackEntry};

use crate::stage::{Stage, frame, patiently};
use crate::wire::Packet;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// MACs of the node's interface, and of the node that has the remote pods.
const NODE_MAC: &str = "02:00:00:00:1e:0b";
const OTHER_MAC: &str = "02:00:00:00:1e:0c";
const OTHER: &str = "172.30.0.12";

/// The backend of [`entry`].
pub const BACKEND_ID: u32 = 5;

/// The clock of the entries.
#[must_use]
pub fn tick() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    let nanoseconds = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    (nanoseconds >> TICK_SHIFT) as u32
}

/// The client's half of a flow that becomes one from `source` to `destination`, not seen yet.
#[must_use]
pub fn entry(source: SocketAddr, destination: SocketAddr, flags: u32) -> ConntrackEntry {
    ConntrackEntry {
        last_seen: 0,
        policy_generation: 0,
        source: source.ip().into(),
        destination: destination.ip().into(),
        source_port: Be16::new(source.port()),
        destination_port: Be16::new(destination.port()),
        service_id: 3,
        backend_id: BACKEND_ID,
        backend_generation: 1,
        ifindex: 0,
        flags,
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// Passed on, not a byte of it changed.
    Untouched,
    /// Sent to the other node in the overlay, under a network identifier.
    Sent(u32, Packet),
}

/// A stage whose front door is attached.
#[derive(Debug)]
pub struct FrontStage {
    pub stage: Stage,
    up0: u32,
}

impl FrontStage {
    /// Attaches the program.
    pub fn new(mut stage: Stage) -> Result<Self> {
        ip(&["link", "set", "up0", "address", NODE_MAC])?;
        let neighbour = ["neigh", "replace", OTHER, "lladdr", OTHER_MAC];
        ip(&[&neighbour[..], &["dev", "up0", "nud", "permanent"]].concat())?;
        let program = program(&mut stage);
        patiently(|| program.load())?;
        program.attach("up0", XdpMode::Driver)?;
        let up0 = nix::net::if_::if_nametoindex("up0")?;
        Ok(Self { stage, up0 })
    }

    /// Makes the kernel's route to the other node another interface's.
    pub fn take_away_the_neighbour(&self) -> Result<()> {
        ip(&["neigh", "del", OTHER, "dev", "up0"])
    }

    /// Runs a packet through the program.
    pub fn run(&mut self, packet: &Packet) -> Front {
        self.run_frame(&frame(packet))
    }

    /// Runs a frame through the program.
    pub fn run_frame(&mut self, bytes: &[u8]) -> Front {
        match self.run_raw(bytes) {
            Some(out) => unwrapped(&out),
            None => Front::Untouched,
        }
    }

    /// The frame that is sent, if one is. What is passed on must not have been touched.
    pub fn run_raw(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; bytes.len() + 256];
        let context = self.context(bytes.len());
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = program(&mut self.stage)
            .test_run(options)
            .expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);
        match result.return_value {
            XDP_PASS => {
                assert_eq!(out, bytes, "what is passed on has not been touched");
                None
            }
            XDP_TX => Some(out),
            other => panic!("action {other}"),
        }
    }

    /// Runs a frame without a look at what comes out.
    pub fn run_blind(&mut self, bytes: &[u8]) {
        let context = self.context(bytes.len());
        let options = TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        program(&mut self.stage)
            .test_run(options)
            .expect("the kernel runs the program");
    }

    /// Mean nanoseconds of `runs` runs with a packet of an established flow, whose entry is `entry`.
    /// Statistics must be on.
    pub fn cost(&mut self, packet: &Packet, entry: ConntrackEntry, runs: u32) -> f64 {
        let bytes = frame(packet);
        loop {
            let last_seen = tick();
            let entry = ConntrackEntry { last_seen, ..entry };
            self.stage.set_entry(packet, entry);
            self.run_blind(&bytes);
            let (time, count) = self.run_stats();
            for _ in 0..runs {
                self.run_blind(&bytes);
            }
            let (time_after, count_after) = self.run_stats();
            // The first packet of another tick goes the long way.
            if tick() == last_seen {
                return (time_after - time) as f64 / (count_after - count).max(1) as f64;
            }
        }
    }

    /// Total nanoseconds and runs, counted while statistics are on.
    pub fn run_stats(&mut self) -> (u64, u64) {
        let info = program(&mut self.stage).info().expect("it is loaded");
        (info.run_time().as_nanos() as u64, info.run_count())
    }

    /// `struct xdp_md` of a frame that came by `up0`.
    fn context(&self, len: usize) -> Vec<u8> {
        let fields = [0, len as u32, 0, self.up0, 0, 0];
        fields.into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

fn program(stage: &mut Stage) -> &mut Xdp {
    let program = stage
        .ebpf
        .program_mut(XDP_FRONT)
        .expect("the object has the program");
    program.try_into().expect("an XDP program")
}

/// The packet within the overlay's headers, each of which must be right.
fn unwrapped(bytes: &[u8]) -> Front {
    let (outer, inner) = bytes.split_at(50);
    assert_eq!(mac(&outer[..6]), OTHER_MAC);
    assert_eq!(mac(&outer[6..12]), NODE_MAC);
    assert_eq!(outer[12..14], [0x08, 0x00]);
    let (udp, vxlan) = (&outer[34..42], &outer[42..]);
    assert_eq!((&vxlan[..4], vxlan[7]), (&[8, 0, 0, 0][..], 0));
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    assert_eq!(udp[2..4], 8472_u16.to_be_bytes());
    assert_eq!(
        usize::from(u16::from_be_bytes([udp[4], udp[5]])),
        inner.len() + 16
    );
    assert_eq!(outer[26..34], [172, 30, 0, 11, 172, 30, 0, 12]);
    assert_eq!(
        usize::from(u16::from_be_bytes([outer[16], outer[17]])),
        inner.len() + 36
    );
    let sum: u32 = outer[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the outer checksum");
    assert_eq!(inner[..6], HOST_MAC);
    assert_eq!(inner[6..12], OVERLAY_SOURCE_MAC);
    let packet = Packet::from_ip_bytes(&inner[14..]).unwrap_or_else(|error| panic!("{error}"));
    let kind: [u8; 2] = if packet.is_v4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    assert_eq!(inner[12..14], kind);
    Front::Sent(vni, packet)
}

fn mac(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .context("iproute2")?;
    ensure!(status.success(), "ip {}", arguments.join(" "));
    Ok(())
}
