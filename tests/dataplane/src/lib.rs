//! eBPF programs through BPF_PROG_TEST_RUN against a reference model.
