//! SIGTERM and SIGINT as a call on a thread of its own. A container's first process ignores signals
//! it has no handler for, so without this every pod would take its whole grace period to stop.
#![expect(
    unsafe_code,
    reason = "signal masks have no safe interface in the standard library"
)]

use std::mem::MaybeUninit;

/// Ends the process at once. Everything that must be written has been.
#[expect(
    clippy::disallowed_methods,
    reason = "ending the process from another thread is this program's purpose"
)]
pub(crate) fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// Blocks the ending signals in this thread and all it starts, and calls `ended` when one comes.
/// Must be called before any other thread exists.
pub(crate) fn on_termination(ended: impl FnOnce(i32) + Send + 'static) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that the other calls read; the old mask is not asked for.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        set.assume_init()
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        while unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {}
        ended(signal);
    });
}
