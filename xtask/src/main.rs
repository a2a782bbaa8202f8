//! The one entry point for development: `cargo xtask COMMAND`. Every command is a file with `run`.

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod down;
mod kubectl;
mod setup;
mod shell;
mod test;
mod tidy;
mod up;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests Tholepin.
///
/// New here? `cargo xtask up --demo` installs what is missing, builds everything, starts a two-node
/// cluster on this machine and shows a Service at work. `cargo xtask down` removes it all again.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Options),
    Up(up::Options),
    Down(down::Options),
    Kubectl(kubectl::Options),
    Test(test::Options),
    Bench(bench::Options),
    Vm(vm::Options),
    Tidy(tidy::Options),
    Ci(ci::Options),
    BuildEbpf(build_ebpf::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup(options) => setup::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Up(options) => up::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Down(options) => down::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Kubectl(options) => kubectl::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Tidy(options) => tidy::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Ci(options) => ci::run(&options),
        Command::BuildEbpf(options) => build_ebpf::run(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
