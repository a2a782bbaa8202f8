//! The `tholepin` command. Only the frame is here: options, subcommands and exit codes (0 done, 1 failure,
//! 2 usage, 3 no dataplane on this node).

mod detach;
mod drops;
mod events;
mod explain;
mod flows;
mod maps;
mod names;
mod output;
mod pcap;
mod policies;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::maps::NoDataplane;
use self::names::Names;
use self::output::Format;

/// There is no dataplane to look at.
const NO_DATAPLANE: u8 = 3;

/// Look into this node's dataplane, or remove it
///
/// Every command reads the eBPF maps that are pinned below the bpffs root, so all of them work while
/// the agent is down, and none needs the API server. Only `drops --follow` and `detach-all` change
/// anything. Names of Services come from the agent while it runs, names of pods from its lease journal;
/// without them addresses and ids are shown.
///
/// Examples:
///   tholepin services                            which frontends there are, and what is behind them
///   tholepin flows --service default/web         connections through one Service
///   tholepin drops --follow                      packets as they are dropped, and why
///   tholepin explain tcp 10.244.0.5 10.96.0.10:80
///                                                what becomes of a packet, step by step
///
/// Exit codes: 0 done, 1 failure (explain: the packet is dropped), 2 usage, 3 no dataplane on this node.
#[derive(Debug, Parser)]
#[command(name = "tholepin", version, max_term_width = 100, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where the agent has its things; the agent's options of the same names.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Directory on a bpffs below which the maps are pinned
    #[arg(
        long,
        global = true,
        default_value = "/sys/fs/bpf/tholepin",
        value_name = "DIR"
    )]
    pub(crate) bpffs_root: PathBuf,
    /// Where the agent's socket is
    #[arg(
        long,
        global = true,
        default_value = "/run/tholepin",
        value_name = "DIR"
    )]
    pub(crate) run_dir: PathBuf,
    /// Where the agent's journals are
    #[arg(
        long,
        global = true,
        default_value = "/var/lib/tholepin",
        value_name = "DIR"
    )]
    pub(crate) state_dir: PathBuf,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    Services(services::Options),
    Flows(flows::Options),
    Policies(policies::Options),
    Drops(drops::Options),
    Explain(explain::Options),
    DetachAll(detach::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let place = &arguments.place;
    let outcome = match arguments.command {
        Command::Services(options) => services::run(place, &options),
        Command::Flows(options) => flows::run(place, &options),
        Command::Policies(options) => policies::run(place, &options),
        Command::Drops(options) => drops::run(place, &options),
        Command::Explain(options) => explain::run(place, &options),
        Command::DetachAll(options) => detach::run(place, &options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        match error.downcast_ref::<NoDataplane>() {
            Some(_) => ExitCode::from(NO_DATAPLANE),
            None => ExitCode::FAILURE,
        }
    })
}

impl Place {
    fn names(&self) -> Names {
        Names::read(&self.run_dir, &self.state_dir)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_is_explained() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
