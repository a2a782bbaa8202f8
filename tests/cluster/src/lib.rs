//! control-lite, agents and kubectl end to end.
