//! Domain types, desired state and pure planners of the node agent.
