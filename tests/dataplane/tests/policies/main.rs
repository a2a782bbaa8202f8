//! NetworkPolicies: what the agent compiles and programs, judged by the real programs.

mod flows;
mod upstream;
mod upstream_egress;
mod world;
