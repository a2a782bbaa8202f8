//! What every command needs of the outside: cargo with the workspace as its folder, steps with their
//! durations.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tholepin_harness::command::describe;
use tholepin_harness::workspace_root;

/// The cargo that runs this program, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// Runs a command whose output the user sees.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// `1.2 s` or `3 min 5 s`.
pub(crate) fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Runs a named step and says how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    println!("==> {name}");
    let started = Instant::now();
    let value = work()?;
    let time = started.elapsed();
    println!("    {name}: {}", human(time));
    Ok((value, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_seconds_and_then_in_minutes() {
        assert_eq!(human(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(human(Duration::from_secs(185)), "3 min 5 s");
    }
}
