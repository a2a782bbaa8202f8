//! Which processor a load process runs on, and before whom.
#![expect(
    unsafe_code,
    reason = "affinity and priority have no safe interface in the standard library"
)]

use std::io;

use crate::args::{Args, UsageError};

/// Applies `--cpu` and `--realtime` to this process, before it has other threads.
pub(super) fn settle(args: &Args) -> Result<(), UsageError> {
    if let Some(cpu) = args.optional::<usize>("cpu")? {
        pin(cpu).map_err(|error| UsageError(format!("`--cpu {cpu}`: {error}")))?;
    }
    if args.has("realtime")
        && let Err(error) = before_others()
    {
        // Only a hint: measurements are more noisy without it, not wrong.
        eprintln!("toolbox: cannot get real-time priority: {error}");
    }
    Ok(())
}

fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero set is a valid empty one; the macros and the call only touch that local.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu % libc::CPU_SETSIZE as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The lowest real-time priority: still before every ordinary process.
fn before_others() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is a live local that the call reads.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
