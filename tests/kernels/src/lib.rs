//! What differs between kernels. The tests are meant for the guests of `cargo xtask vm`, where each kernel
//! says what it has (`FEATURE name: yes`), and are ignored elsewhere unless they say something anywhere.

use std::io::Write as _;

use aya::util::KernelVersion;

/// Names a feature for the report of `cargo xtask vm`, whether or not tests' output is captured.
///
/// # Panics
/// If standard output is closed.
pub fn report(name: &str, has: bool) {
    note(name, if has { "yes" } else { "no" });
}

/// Notes a figure of this kernel for the report of `cargo xtask vm`.
///
/// # Panics
/// If standard output is closed.
pub fn note(name: &str, value: impl std::fmt::Display) {
    // `print!` would be captured, and shown for failed tests only.
    writeln!(std::io::stdout().lock(), "\nFEATURE {name}: {value}").expect("standard output");
}

/// Whether the running kernel is that version or newer.
///
/// # Panics
/// If the kernel does not tell its version.
#[must_use]
pub fn at_least(major: u8, minor: u8) -> bool {
    let running = KernelVersion::current().expect("the kernel tells its version");
    running >= KernelVersion::new(major, minor, 0)
}
