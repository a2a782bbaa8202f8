//! The controllers of control-lite, one file each.
