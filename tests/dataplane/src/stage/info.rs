//! What the kernel tells of the loaded programs, and what they count.

use aya::maps::PerCpuArray;
use tholepin_ebpf_abi::{DropReason, names};

use super::{Hook, Stage};

impl Stage {
    /// Instructions the verifier looked at, of the 1,000,000 it allows. Kernel 5.16.
    pub fn verified_instructions(&mut self, hook: Hook) -> Option<u32> {
        let info = self.program(hook).info().expect("the program is loaded");
        info.verified_instruction_count()
    }

    /// Total nanoseconds and runs of a hook, counted while statistics are on.
    pub fn run_stats(&mut self, hook: Hook) -> (u64, u64) {
        let info = self.program(hook).info().expect("the program is loaded");
        (info.run_time().as_nanos() as u64, info.run_count())
    }

    /// Packets dropped for a reason.
    pub fn drops(&mut self, reason: DropReason) -> u64 {
        let map = self
            .ebpf
            .map_mut(names::DROPS)
            .expect("the object counts drops");
        let drops: PerCpuArray<_, u64> = map.try_into().expect("a per-CPU array");
        drops
            .get(&(reason as u32), 0)
            .expect("a slot for each reason")
            .iter()
            .sum()
    }

    /// All reasons with drops.
    pub fn all_drops(&mut self) -> Vec<(DropReason, u64)> {
        let all = DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.drops(*reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }
}
