//! Thresholds below which the node reports pressure, in the kubelet's `--eviction-hard` syntax. Pure.

/// A threshold: an amount, or a share of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    /// Bytes, or a count for inodes and process ids.
    Absolute(u64),
    /// 0 to 100.
    Percent(f64),
}

impl Amount {
    /// Whether `available` of `capacity` is below the threshold. Nothing is below an unknown capacity.
    fn is_above(self, available: u64, capacity: u64) -> bool {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share needs no more than 53 bits"
        )]
        match self {
            Self::Absolute(least) => available < least,
            Self::Percent(share) => {
                capacity > 0 && (available as f64) * 100.0 < (capacity as f64) * share
            }
        }
    }
}

/// The hard eviction thresholds of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    memory: Amount,
    disk: Amount,
    inodes: Amount,
    pids: Amount,
}

/// Why a threshold list was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidThreshold {
    #[error("{0:?} is not of the form SIGNAL<VALUE")]
    Form(String),
    #[error(
        "signal {0:?} is not one of memory.available, nodefs.available, nodefs.inodesFree, pid.available"
    )]
    Signal(String),
    #[error("{0:?} is neither a quantity such as 100Mi nor a percentage such as 10%")]
    Value(String),
}

impl Default for Thresholds {
    /// The kubelet's defaults, and a tenth of the process ids.
    fn default() -> Self {
        Self {
            memory: Amount::Absolute(100 << 20),
            disk: Amount::Percent(10.0),
            inodes: Amount::Percent(5.0),
            pids: Amount::Percent(10.0),
        }
    }
}

impl Thresholds {
    /// Parses `memory.available<100Mi,nodefs.available<10%`. A list replaces the defaults whole: what
    /// it leaves out has no threshold, as for the kubelet.
    ///
    /// # Errors
    /// Names the part that cannot be understood.
    pub fn parse(text: &str) -> Result<Self, InvalidThreshold> {
        let none = Amount::Absolute(0);
        let mut thresholds = Self {
            memory: none,
            disk: none,
            inodes: none,
            pids: none,
        };
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (signal, value) = part
                .split_once('<')
                .ok_or_else(|| InvalidThreshold::Form(part.to_owned()))?;
            let field = match signal {
                "memory.available" => &mut thresholds.memory,
                "nodefs.available" => &mut thresholds.disk,
                "nodefs.inodesFree" => &mut thresholds.inodes,
                "pid.available" => &mut thresholds.pids,
                _ => return Err(InvalidThreshold::Signal(signal.to_owned())),
            };
            *field = amount(value).ok_or_else(|| InvalidThreshold::Value(value.to_owned()))?;
        }
        Ok(thresholds)
    }

    /// Bytes kept from pods' memory requests.
    #[must_use]
    pub fn reserved_memory(&self, capacity: u64) -> u64 {
        reserved(self.memory, capacity)
    }

    /// Bytes kept from pods' disk requests.
    #[must_use]
    pub fn reserved_disk(&self, capacity: u64) -> u64 {
        reserved(self.disk, capacity)
    }

    #[must_use]
    pub fn memory_is_short(&self, available: u64, capacity: u64) -> bool {
        self.memory.is_above(available, capacity)
    }

    #[must_use]
    pub fn disk_is_short(&self, free: u64, total: u64) -> bool {
        self.disk.is_above(free, total)
    }

    /// File systems without a fixed number of inodes report none.
    #[must_use]
    pub fn inodes_are_short(&self, free: u64, total: u64) -> bool {
        total > 0 && self.inodes.is_above(free, total)
    }

    #[must_use]
    pub fn pids_are_short(&self, used: u64, limit: u64) -> bool {
        self.pids.is_above(limit.saturating_sub(used), limit)
    }
}

fn amount(text: &str) -> Option<Amount> {
    if let Some(share) = text.strip_suffix('%') {
        let share: f64 = share.parse().ok()?;
        return (0.0..=100.0)
            .contains(&share)
            .then_some(Amount::Percent(share));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1000 * 1000,
        "G" => 1000 * 1000 * 1000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .map(Amount::Absolute)
}

fn reserved(amount: Amount, capacity: u64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a capacity, between 0 and the capacity"
    )]
    match amount {
        Amount::Absolute(bytes) => bytes.min(capacity),
        Amount::Percent(share) => (capacity as f64 * share / 100.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_kubelets() {
        let defaults = Thresholds::parse(
            "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<10%",
        );
        assert_eq!(defaults, Ok(Thresholds::default()));
    }

    #[test]
    fn a_list_replaces_the_defaults_whole() {
        let disk_only = Thresholds::parse("nodefs.available<1Gi").unwrap();
        assert!(disk_only.disk_is_short((1 << 30) - 1, 1 << 40));
        assert!(!disk_only.disk_is_short(1 << 30, 1 << 40));
        assert!(!disk_only.memory_is_short(0, 1 << 30));
        assert!(!Thresholds::parse("").unwrap().disk_is_short(0, 100));
    }

    #[test]
    fn shares_are_of_the_capacity() {
        let thresholds = Thresholds::default();
        assert!(thresholds.disk_is_short(9, 100) && !thresholds.disk_is_short(10, 100));
        assert!(!thresholds.inodes_are_short(0, 0));
        assert!(thresholds.pids_are_short(91, 100) && !thresholds.pids_are_short(90, 100));
        assert_eq!(thresholds.reserved_disk(1000), 100);
        assert_eq!(thresholds.reserved_memory(1 << 30), 100 << 20);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |text: &str| Thresholds::parse(text).unwrap_err().to_string();
        assert!(error("memory.available=1").contains("memory.available=1"));
        assert!(error("disk<1%").contains("disk"));
        assert!(error("nodefs.available<many").contains("many"));
        assert!(error("nodefs.available<101%").contains("101%"));
    }
}
