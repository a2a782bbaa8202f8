//! Settings of the C library's allocator. The only unsafe of the frame.
#![expect(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Limits glibc to two arenas and gives memory back to the system early. Call it before threads start.
pub fn limit() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only stores integers; no thread but this one runs yet.
        let accepted = unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 2)
                & libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024)
                & libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024)
        };
        if accepted == 0 {
            tracing::debug!("the allocator did not take its limits");
        }
    }
}
