//! Pure packet logic of the eBPF programs, tested on the host.
