//! Packages of other Debian suites, unpacked below `target/tools` and run in place. They are read with
//! an apt configuration of its own, so that the machine's sources, lists and packages stay as they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tholepin_harness::{command, tools};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Names a Debian mirror where the machine's own sources have none (Ubuntu).
const MIRROR_VARIABLE: &str = "THOLEPIN_DEBIAN_MIRROR";

/// Fetches a package of `suite` and unpacks it as `target/tools/<folder>`.
pub(super) fn fetch(suite: &str, package: &str, folder: &str) -> Result<()> {
    let mirror = mirror()?;
    let apt = OwnApt::prepare(suite, &mirror)?;
    let dir = tempfile::tempdir()?;
    let wanted = format!("{package}/{suite}");
    let download = || {
        let mut command = apt.command("apt-get");
        command
            .args(["-q", "-q", "download", &wanted])
            .current_dir(dir.path());
        command::run(&mut command)
    };
    // Another package of the suite may have brought its lists already.
    if download().is_err() {
        apt.run("apt-get", &["-q", "-q", "update"])
            .with_context(|| format!("cannot read Debian {suite} at {mirror}"))?;
        download().with_context(|| format!("Debian {suite} has no {package}"))?;
    }
    unpack(dir.path(), folder)
}

/// Fetches a package of the machine's own suites and unpacks it as `target/tools/<folder>`.
pub(super) fn fetch_own(package: &str, folder: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let download = || {
        let mut command = Command::new("apt-get");
        command.args([
            "-q",
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            package,
        ]);
        command::run(command.current_dir(dir.path()))
    };
    download().with_context(|| {
        format!("cannot download {package}; if the package lists are old, run `apt-get update`")
    })?;
    unpack(dir.path(), folder)
}

/// Fetches those packages of `suite` that `package` depends on, at any depth, and that `is_part` names, and
/// unpacks them all as `target/tools/<folder>`.
pub(crate) fn fetch_closure(
    suite: &str,
    package: &str,
    is_part: fn(&str) -> bool,
    folder: &str,
) -> Result<()> {
    let mirror = mirror()?;
    let apt = OwnApt::prepare(suite, &mirror)?;
    // Kernels are replaced by newer ones all the time, so old lists name files that are gone.
    apt.run("apt-get", &["-q", "-q", "update"])
        .with_context(|| format!("cannot read Debian {suite} at {mirror}"))?;
    let listing = apt.run(
        "apt-cache",
        &[
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            package,
        ],
    )?;
    let mut parts: Vec<&str> = listing
        .lines()
        .filter(|line| !line.starts_with([' ', '<']) && *line != package && is_part(line))
        .collect();
    parts.sort_unstable();
    parts.dedup();
    ensure!(
        !parts.is_empty(),
        "{package} of Debian {suite} depends on nothing to unpack"
    );
    let dir = tempfile::tempdir()?;
    let mut download = apt.command("apt-get");
    download.args(["-q", "-q", "download"]).args(&parts);
    command::run(download.current_dir(dir.path()))?;
    unpack(dir.path(), folder)
}

/// Unpacks every archive in `dir`.
fn unpack(dir: &Path, folder: &str) -> Result<()> {
    let archives: Vec<_> = fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    ensure!(!archives.is_empty(), "apt-get downloaded nothing");
    let target = tools::tools_dir().join(folder);
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::create_dir_all(&target)?;
    for archive in archives {
        command::run(Command::new("dpkg").arg("-x").arg(archive).arg(&target))?;
    }
    Ok(())
}

/// An apt with its own sources, lists and cache.
struct OwnApt {
    options: Vec<String>,
}

impl OwnApt {
    fn prepare(suite: &str, mirror: &str) -> Result<Self> {
        let dir = tools::tools_dir().join("apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let signed = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let sources = dir.join("sources.list");
        fs::write(&sources, format!("deb {signed}{mirror} {suite} main\n"))?;
        fs::write(dir.join("status"), "")?;
        let path = |part: &str| dir.join(part).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            // Pins of the machine would choose other versions.
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        Ok(Self {
            options: options.to_vec(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        command::run(self.command(program).args(arguments))
    }
}

/// The Debian mirror that the machine's own sources use, in whatever format they are written: apt
/// itself is asked.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let format = "$(REPO_URI)|$(ORIGIN)|$(LABEL)";
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let listing = command::run(&mut ask).context("cannot ask apt for its sources")?;
    match mirror_in(&listing) {
        Some(mirror) => Ok(mirror),
        None => bail!(
            "no Debian mirror among this machine's apt sources: name one in {MIRROR_VARIABLE}"
        ),
    }
}

/// The first source of Debian proper. Lists that were never fetched have no origin (apt leaves the
/// placeholder), so that the folder's name decides.
fn mirror_in(listing: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (uri, origin, label) = (fields.next()?, fields.next()?, fields.next()?);
        let unknown = origin.is_empty() || origin.starts_with("$(");
        let is_debian = if unknown {
            uri.trim_end_matches('/').ends_with("/debian")
        } else {
            origin == "Debian" && label == "Debian"
        };
        is_debian.then(|| uri.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_first_source_of_debian_proper() {
        let listing = "https://a.example/apt/|vendor|vendor\n\
                       http://b.example/debian-security/|Debian|Debian-Security\n\
                       http://b.example/debian/|Debian|Debian\n";
        assert_eq!(
            mirror_in(listing).as_deref(),
            Some("http://b.example/debian/")
        );
    }

    #[test]
    fn a_source_that_was_never_fetched_is_known_by_its_folder() {
        let listing = "http://c.example/ubuntu/|$(ORIGIN)|$(LABEL)\n\
                       http://c.example/debian/|$(ORIGIN)|$(LABEL)\n";
        assert_eq!(
            mirror_in(listing).as_deref(),
            Some("http://c.example/debian/")
        );
        assert_eq!(mirror_in("http://c.example/ubuntu/|Ubuntu|Ubuntu\n"), None);
    }
}
