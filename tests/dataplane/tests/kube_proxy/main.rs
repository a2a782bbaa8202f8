//! kube-proxy's own cases under their names, against the reference model and against the programs.

mod deviations;
mod model;
mod node;
mod programs;
mod random;
