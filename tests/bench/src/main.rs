//! `tholepin-bench`: measurements, one suite per module. `cargo xtask bench SUITE` builds and starts it.

mod chart;
mod dataplane;
mod machine;
mod rows;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Tholepin on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    Dataplane(dataplane::Options),
    /// A node of a measured cluster; started by the suite, not by people
    #[command(hide = true)]
    Node {
        /// The node's configuration as JSON.
        config: String,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().suite {
        Suite::Dataplane(options) => dataplane::run(&options),
        Suite::Node { config } => dataplane::node::run(&config).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
