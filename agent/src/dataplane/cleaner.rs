//! Runs the program that removes flows that are over, and tells what it counted.
//!
//! The walk is the kernel's: this only starts it, by a test run of a program that is at
//! no tracepoint. One for packets would run with soft interrupts off: tens of milliseconds for a full table.

use aya::maps::{Array, MapError, MapInfo};
use aya::programs::{ProgramError, RawTracePointRunOptions, TestRun as _};
use tholepin_ebpf_abi::FlowStats;
use tholepin_ebpf_abi::names::{CLEANER, CONNTRACK, FLOW_STATS};

use super::loader::Programs;
use super::pin::PinDirectory;

/// How often the table is walked through. Flows live 120 s and more after their last packet.
pub const PERIOD: std::time::Duration = std::time::Duration::from_secs(30);

/// What the table of flows holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTable {
    /// Entries the table has room for. Where they are all used, a new flow replaces those that were
    /// unused the longest.
    pub capacity: u32,
    /// As of the last walk.
    pub stats: FlowStats,
}

/// Why the table was not cleaned.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("program {CLEANER} or its map {FLOW_STATS} is missing in the eBPF object")]
    Missing,
    #[error("failed to run program {CLEANER}")]
    Run { source: ProgramError },
    #[error("failed to read {map}")]
    Read { map: &'static str, source: MapError },
}

/// Walks through the table once.
pub fn clean(programs: &mut Programs, pins: &PinDirectory) -> Result<FlowTable, CleanError> {
    let run = |source| CleanError::Run { source };
    let program = programs.cleaner().ok_or(CleanError::Missing)?;
    if program.fd().is_err() {
        program.load().map_err(run)?;
    }
    program
        .test_run(RawTracePointRunOptions::new())
        .map_err(run)?;
    let read = |map| move |source| CleanError::Read { map, source };
    let map = programs.map(FLOW_STATS).ok_or(CleanError::Missing)?;
    let stats: Array<_, FlowStats> = Array::try_from(map).map_err(read(FLOW_STATS))?;
    let info = MapInfo::from_pin(pins.map(CONNTRACK)).map_err(read(CONNTRACK))?;
    Ok(FlowTable {
        capacity: info.max_entries(),
        stats: stats.get(&0, 0).map_err(read(FLOW_STATS))?,
    })
}
