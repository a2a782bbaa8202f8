//! Agents and containerd end to end: what a single node must do, seen from its containers and packets.
//! The tests are in `tests/`.
