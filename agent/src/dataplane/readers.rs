//! Waits for the packets that are under way.

#![expect(unsafe_code, reason = "membarrier has no safe wrapper")]

use std::io;

/// Returns when every packet whose processing began before the call has left the programs.
///
/// Programs run inside RCU read-side sections, and the global membarrier is one RCU grace period.
pub fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full CPUs refuse it. A packet is under way for microseconds, so a pause of
        // many grace periods' usual length is the same in practice.
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "no global membarrier; pausing instead");
        let (_sender, receiver) = std::sync::mpsc::channel::<()>();
        receiver
            .recv_timeout(std::time::Duration::from_millis(100))
            .ok();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn waiting_for_readers_ends() {
        super::wait_for_readers();
    }
}
