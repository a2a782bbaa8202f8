//! Facts about this machine, read from `/proc`, `/sys` and `/etc`.

use std::path::{Path, PathBuf};

use super::eviction::Thresholds;

/// What does not change while the machine runs.
#[derive(Clone, Debug)]
pub struct MachineFacts {
    pub cpu_count: usize,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    /// In Go's words: `amd64`, `arm64`.
    pub architecture: &'static str,
    state_dir: PathBuf,
    thresholds: Thresholds,
}

/// Which resources run short, by the node's thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

impl MachineFacts {
    /// Reads the facts. What a machine does not tell stays empty.
    #[must_use]
    pub fn read(state_dir: &Path, thresholds: Thresholds) -> Self {
        let text = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let machine_id = text("/etc/machine-id");
        let system_uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            cpu_count: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: meminfo(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0),
            disk_bytes: disk(state_dir).map_or(0, |disk| disk.total),
            system_uuid: if system_uuid.is_empty() {
                machine_id.clone()
            } else {
                system_uuid
            },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel_version: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            state_dir: state_dir.to_path_buf(),
            thresholds,
        }
    }

    /// What pods may request: the hard eviction threshold is kept free.
    #[must_use]
    pub fn allocatable_memory(&self) -> u64 {
        self.memory_bytes - self.thresholds.reserved_memory(self.memory_bytes)
    }

    /// What pods may request of the disk.
    #[must_use]
    pub fn allocatable_disk(&self) -> u64 {
        self.disk_bytes - self.thresholds.reserved_disk(self.disk_bytes)
    }

    /// Reads what is short now.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let available = meminfo(&text("/proc/meminfo"), "MemAvailable:");
        let disk = disk(&self.state_dir);
        let number = |path: &str| text(path).trim().parse::<u64>().ok();
        let tasks = text("/proc/loadavg")
            .split_whitespace()
            .nth(3)
            .and_then(|field| field.split('/').nth(1)?.parse::<u64>().ok());
        let limit = number("/proc/sys/kernel/pid_max")
            .zip(number("/proc/sys/kernel/threads-max"))
            .map(|(pids, threads)| pids.min(threads));
        Pressure {
            memory: available
                .is_some_and(|bytes| self.thresholds.memory_is_short(bytes, self.memory_bytes)),
            disk: disk.is_some_and(|disk| {
                self.thresholds.disk_is_short(disk.free, disk.total)
                    || self
                        .thresholds
                        .inodes_are_short(disk.files_free, disk.files)
            }),
            pid: tasks
                .zip(limit)
                .is_some_and(|(tasks, limit)| self.thresholds.pids_are_short(tasks, limit)),
        }
    }
}

struct Disk {
    total: u64,
    free: u64,
    files: u64,
    files_free: u64,
}

fn disk(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(Disk {
        total: stat.blocks() * stat.fragment_size(),
        free: stat.blocks_available() * stat.fragment_size(),
        files: stat.files(),
        files_free: stat.files_available(),
    })
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "Linux".to_owned(),
            |name| name.trim_matches('"').to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_files_are_read_as_written() {
        assert_eq!(
            meminfo("MemTotal:  2048 kB\nMemAvailable: 1 kB\n", "MemTotal:"),
            Some(2 << 20)
        );
        assert_eq!(
            os_image("ID=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        let facts = MachineFacts::read(Path::new("/var/lib/not-there-yet"), Thresholds::default());
        assert!(facts.cpu_count > 0 && facts.memory_bytes > 0 && facts.disk_bytes > 0);
    }
}
