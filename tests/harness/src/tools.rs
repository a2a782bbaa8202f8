//! Finding the programs a cluster needs: on PATH, or where `cargo xtask setup` unpacked other versions
//! (`target/tools/<name>/usr/bin`).

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::layout::target_dir;

/// Where setup unpacks versions that the machine's own packages do not have.
#[must_use]
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// A program on PATH, or in the system folders that a user's PATH may lack.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A program in several versions: PATH's first, then those that setup unpacked.
fn installations(program: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = find(program).into_iter().collect();
    if let Ok(entries) = fs::read_dir(tools_dir()) {
        let mut unpacked: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path().join("usr/bin").join(program))
            .filter(|file| is_executable(file))
            .collect();
        unpacked.sort();
        found.extend(unpacked);
    }
    found
}

/// A program on PATH, or else the one that setup unpacked.
#[must_use]
pub fn find_installed(program: &str) -> Option<PathBuf> {
    installations(program).into_iter().next()
}

/// An installed program and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// `1.32.3`.
    pub version: String,
    /// The program.
    pub path: PathBuf,
}

impl Versioned {
    /// Whether this is version `wanted`, `1.32` matching `1.32.3`.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        self.version
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// All containerd versions on this machine.
#[must_use]
pub fn containerds() -> Vec<Versioned> {
    versions("containerd", &["--version"])
}

/// All kubectl versions on this machine.
#[must_use]
pub fn kubectls() -> Vec<Versioned> {
    versions("kubectl", &["version", "--client"])
}

fn versions(program: &str, arguments: &[&str]) -> Vec<Versioned> {
    let all = installations(program).into_iter();
    all.filter_map(|path| {
        let text = command::run(Command::new(&path).args(arguments)).ok()?;
        Some(Versioned {
            version: version_in(&text)?,
            path,
        })
    })
    .collect()
}

/// The first `1.2.3` in a text, without what packagers add.
fn version_in(text: &str) -> Option<String> {
    text.split_whitespace().find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let end = word
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(word.len());
        let version = word[..end].trim_end_matches('.');
        (version.split('.').count() >= 2 && version.split('.').all(|part| !part.is_empty()))
            .then(|| version.to_owned())
    })
}

/// The containerd to use: `None` is the first found.
pub fn containerd(version: Option<&str>) -> Result<Versioned> {
    choose("containerd", version, containerds())
}

/// The kubectl to use: `None` is the first found.
pub fn kubectl(version: Option<&str>) -> Result<Versioned> {
    choose("kubectl", version, kubectls())
}

fn choose(program: &str, wanted: Option<&str>, found: Vec<Versioned>) -> Result<Versioned> {
    let have: Vec<String> = found.iter().map(|one| one.version.clone()).collect();
    match (
        found
            .into_iter()
            .find(|one| wanted.is_none_or(|wanted| one.is(wanted))),
        wanted,
    ) {
        (Some(one), _) => Ok(one),
        (None, None) => bail!("{program} is not installed: run `cargo xtask setup`"),
        (None, Some(wanted)) => bail!(
            "{program} {wanted} is not installed (found: {}): run `cargo xtask setup --ci`",
            if have.is_empty() {
                "none".to_owned()
            } else {
                have.join(", ")
            }
        ),
    }
}

/// A busybox that needs no library, for images.
pub fn static_busybox() -> Result<PathBuf> {
    let candidates = ["busybox", "busybox.static", "busybox-static"];
    candidates
        .iter()
        .filter_map(|name| find(name))
        .find(|path| is_static(path).unwrap_or(false))
        .context("no statically linked busybox: run `cargo xtask setup` (package busybox-static)")
}

/// Whether an ELF file names no interpreter, so that it runs in an empty image.
pub fn is_static(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(64 * 1024).read_to_end(&mut head)?;
    has_no_interpreter(&head).with_context(|| format!("{} is no ELF program", path.display()))
}

/// Looks for a PT_INTERP segment in a little-endian 64-bit ELF file's program headers.
fn has_no_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..count {
        let at = table.checked_add(index * size)?;
        if u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let version = |text| version_in(text).unwrap();
        assert_eq!(
            version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20"),
            "1.6.20"
        );
        assert_eq!(
            version("containerd github.com/containerd/containerd/v2 2.1.9+unknown"),
            "2.1.9"
        );
        assert_eq!(
            version("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0"),
            "1.32.4"
        );
        assert_eq!(version_in("no version"), None);
    }

    #[test]
    fn a_version_matches_by_its_parts_and_not_by_its_letters() {
        let tool = Versioned {
            version: "1.32.3".to_owned(),
            path: PathBuf::new(),
        };
        assert!(tool.is("1.32") && tool.is("1") && tool.is("1.32.3"));
        assert!(!tool.is("1.3"));
    }

    #[test]
    fn this_test_is_linked_dynamically_and_a_script_is_no_elf() {
        assert!(!is_static(&std::env::current_exe().unwrap()).unwrap());
        assert_eq!(has_no_interpreter(b"#!/bin/sh"), None);
    }

    #[test]
    fn a_missing_version_says_what_is_there() {
        let found = vec![Versioned {
            version: "1.6.20".to_owned(),
            path: PathBuf::new(),
        }];
        let error = choose("containerd", Some("9.9"), found)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1.6.20") && error.contains("setup --ci"),
            "{error}"
        );
    }
}
