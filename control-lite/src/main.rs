//! The control plane: API server, store, controllers and scheduler in one process.
//!
//! This file parses arguments, sets up logging and maps the outcome to an exit code:
//! 0 success, 1 failure, 64 wrong usage.

mod cli;
mod listeners;
mod registry_client;
mod serve;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
            error.print().ok();
            return code;
        }
    };
    start_logging(cli.verbose);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<cli::UsageError>() => {
            eprintln!("error: {error:#}");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => {
            "info,tholepin=debug,tholepin_controllers=debug,tholepin_scheduler=debug,tholepin_apiserver=debug,tholepin_informer=debug"
        }
        _ => "debug",
    };
    // RUST_LOG wins over -v; a broken one must not keep the control plane from starting.
    let filter = std::env::var("RUST_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let colors = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colors)
        .init();
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(options) => {
            // Before anything else opens descriptors.
            let passed = listeners::inherited()?;
            let config = options.validate()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("failed to start the async runtime")?;
            runtime.block_on(serve::run(config, passed))
        }
        Command::NodeCredentials(options) => {
            let out = options.out.clone();
            let credentials = options.into_credentials();
            credentials.write().with_context(|| {
                format!(
                    "failed to write the credentials of node {}",
                    credentials.node
                )
            })?;
            println!(
                "wrote kubeconfig, ca.crt, kubelet.crt and kubelet.key to {}",
                out.display()
            );
            Ok(())
        }
    }
}
