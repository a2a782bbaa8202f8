//! The scheduler of control-lite.
