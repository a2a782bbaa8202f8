//! The node daemon: pods through containerd, the dataplane through eBPF.
//!
//! Only the frame is here: options, tracing, exit codes (0 stopped by a signal, 1 failure, 64 usage), and
//! the other life of this binary as the holder of container output.

use std::process::ExitCode;

use clap::Parser;
use tholepin_agent::config::{Config, RawConfig};
use tholepin_agent::runtime::holder::process;
use tholepin_agent::{observe, supervisor};

/// `EX_USAGE` of sysexits.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(run_dir) = process::run_dir_of(std::env::args_os()) {
        // Nobody reads what it would say: the agent that started it may be gone.
        return match process::run(&run_dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let raw = match RawConfig::try_parse() {
        Ok(raw) => raw,
        Err(error) => {
            let code = if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
            // Nothing sensible is left to do if even this cannot be printed.
            error.print().ok();
            return code;
        }
    };
    let config = match raw.with_file().and_then(Config::try_from) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tholepin-agent: {}", tholepin_agent::errors::chain(&error));
            eprintln!("Try 'tholepin-agent --help'.");
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = observe::init_tracing(&config.log_filter) {
        eprintln!("tholepin-agent: {}", tholepin_agent::errors::chain(&error));
        return ExitCode::from(USAGE);
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    use anyhow::Context;
    supervisor::keep_memory_small();
    // Two workers: one pod's blocking moment does not stop the others, and stacks and caches stay small.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    let result = runtime.block_on(supervisor::run(config));
    // A blocking call that hangs (a dead mount) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    Ok(result?)
}
