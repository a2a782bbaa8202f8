//! The holder of unread container output, as a program of its own.
//!
//! The agent's binary can be it too, at the price of 2 MB: the dynamic linker dirties a page for every
//! table of pointers in a binary, and the agent's has many.

use std::process::ExitCode;

use tholepin_agent::runtime::holder::process;

fn main() -> ExitCode {
    let Some(run_dir) = process::run_dir_of(std::env::args_os()) else {
        eprintln!("started by tholepin-agent as: tholepin-holder hold-output RUN-DIR");
        return ExitCode::from(64);
    };
    match process::run(&run_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
