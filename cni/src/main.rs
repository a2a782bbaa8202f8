//! The CNI plugin: asks the agent over its unix socket. Holds no state of its own.
//!
//! One file per verb. Whatever happens, standard output is one JSON document: a result or an error.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

mod add;
mod agent;
mod check;
mod config;
mod del;
mod error;
mod gc;
mod result;
mod status;
mod version;

use config::{Config, Environment};
use error::CniError;

fn main() -> ExitCode {
    let environment = Environment::from_process();
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    let outcome = read.map_err(|source| CniError::ReadInput { source });
    let outcome = outcome.and_then(|_| run(&environment, &input));
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (
            error.to_json(&config::version_for_errors(&input)),
            ExitCode::FAILURE,
        ),
    };
    // Nobody reads it: there is nowhere left to say so.
    std::io::stdout().write_all(text.as_bytes()).ok();
    code
}

/// Runs one verb and returns what goes to standard output; many verbs print nothing.
fn run(environment: &Environment, input: &[u8]) -> Result<String, CniError> {
    let command = environment.command()?;
    if command == "VERSION" {
        return version::run(input);
    }
    let config = Config::parse(input)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CniError::Runtime { source })?;
    runtime.block_on(async {
        match command {
            "ADD" => add::run(&environment.add_arguments()?, &config).await,
            "DEL" => del::run(&environment.del_arguments()?, &config).await,
            "CHECK" => check::run(&environment.add_arguments()?, &config).await,
            "STATUS" => status::run(&config).await,
            "GC" => gc::run(&config).await,
            other => Err(CniError::InvalidEnvironment {
                variable: "CNI_COMMAND",
                problem: format!("unknown verb {other:?}"),
            }),
        }
    })
}
