//! What a test does when the machine lacks something: it says so, is counted by `cargo xtask test`, and
//! fails under `CI=1`. It never passes in silence.

use std::fs::File;
use std::io::Write;

use anyhow::Result;

/// Names the file in which skipped tests are noted, one line each.
pub const REPORT_VARIABLE: &str = "THOLEPIN_SKIP_REPORT";

/// The value, or `None` after the skip was reported: `let Some(x) = skip::unless(...) else { return };`.
///
/// # Panics
/// Under `CI=1` (or `CI=true`), where nothing may be missing.
pub fn unless<T>(needed: Result<T>) -> Option<T> {
    match needed {
        Ok(value) => Some(value),
        Err(cause) => {
            let ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "0");
            assert!(!ci, "missing on a CI machine: {cause:#}");
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("(unnamed)");
            eprintln!("SKIPPED {test}: {cause:#}");
            report(&format!("{test}: {cause:#}"));
            None
        }
    }
}

/// An error unless this process may make namespaces, mounts and cgroups.
pub fn root() -> Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "needs root");
    Ok(())
}

fn report(line: &str) {
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else {
        return;
    };
    let file = File::options().append(true).create(true).open(&path);
    // The line has been printed as well; a report that cannot be written must not fail the test.
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{}", line.replace('\n', " "))) {
        eprintln!("cannot note the skip in {}: {error}", path.display());
    }
}
