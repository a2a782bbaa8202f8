//! Processes that end in a known way: `lines`, `fail`, `sleep`.

use std::process::ExitCode;
use std::time::Duration;

use crate::args::{Args, UsageError};
use crate::signals;

/// Waits; a parked thread, because there is nothing else for this process to do.
pub(crate) fn pause(time: Duration) {
    let end = std::time::Instant::now() + time;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

pub(crate) fn lines(args: Args) -> Result<ExitCode, UsageError> {
    signals::on_termination(|_| signals::exit(0));
    let count: u64 = args.or("count", 10)?;
    let interval = Duration::from_millis(args.or("interval-ms", 0)?);
    let stderr_every: Option<u64> = args.optional("stderr-every")?;
    for number in 1..=count {
        if stderr_every.is_some_and(|every| every > 0 && number % every == 0) {
            eprintln!("line {number}");
        } else {
            println!("line {number}");
        }
        pause(interval);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn fail(args: Args) -> Result<ExitCode, UsageError> {
    signals::on_termination(|signal| signals::exit(128 + signal));
    let code: u8 = args.or("code", 1)?;
    pause(Duration::from_secs_f64(args.or("after", 0.0)?));
    eprintln!(
        "{}",
        args.or("message", format!("failing with code {code}"))?
    );
    Ok(ExitCode::from(code))
}

pub(crate) fn sleep(args: Args) -> Result<ExitCode, UsageError> {
    let stays = args.has("ignore-term");
    signals::on_termination(move |_| {
        if !stays {
            signals::exit(0)
        }
    });
    match args.positional.first() {
        Some(text) => {
            let seconds = text
                .parse()
                .map_err(|_| UsageError(format!("cannot sleep `{text}` seconds")))?;
            pause(Duration::from_secs_f64(seconds));
            Ok(ExitCode::SUCCESS)
        }
        None => loop {
            std::thread::park();
        },
    }
}
