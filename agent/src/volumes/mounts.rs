//! Mount points: tmpfs on, tmpfs off, and which exist below a directory. Blocking.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

/// Mounts a tmpfs on `path` unless something is mounted there.
pub fn ensure_tmpfs(path: &Path, size_bytes: Option<u64>, mode: u32) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    let canonical = path.canonicalize()?;
    if below(&canonical)?.contains(&canonical) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size_bytes {
        options.push_str(&format!(",size={size}"));
    }
    nix::mount::mount(
        Some("tmpfs"),
        &canonical,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )?;
    Ok(())
}

/// Binds `source` (a file or directory) on `target`, which is made to fit.
pub fn bind(source: &Path, target: &Path) -> std::io::Result<()> {
    nix::mount::mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Detaches one mount. A mount that is gone already is fine.
pub fn unmount(path: &Path) -> std::io::Result<()> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Mount points at and below `directory`, deepest first.
pub fn below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = parse(&table, &directory);
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

fn parse(table: &str, directory: &Path) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(directory))
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_directory_are_listed() {
        let table = "1 0 0:1 / /var/lib/a rw - tmpfs x rw\n\
                     2 0 0:1 / /var/lib/a/b\\040c rw - tmpfs x rw\n\
                     3 0 0:1 / /var/lib/ab rw - tmpfs x rw\n";
        let found = parse(table, Path::new("/var/lib/a"));
        assert_eq!(
            found,
            [PathBuf::from("/var/lib/a"), PathBuf::from("/var/lib/a/b c")]
        );
    }
}
