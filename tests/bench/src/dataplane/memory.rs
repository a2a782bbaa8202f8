//! What a node's maps and its process cost: memory of every map the process holds or has pinned, resident
//! memory, and processor time while nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use tholepin_harness::command::pause;
use tholepin_harness::process::resident_bytes;

use super::tholepin::TholepinNodes;
use crate::rows::{Bar, Row};
use crate::stats::Summary;

const SECTION: &str = "Cost of a node";

/// Memory of the maps and of the agent with this number of Services; a bar where the table has one.
pub(crate) fn rows(nodes: &TholepinNodes, services: u32, idle: Duration) -> Result<Vec<Row>> {
    let node = nodes.nodes.first().context("there is a first node")?;
    let mut maps = held(node.pid)?;
    maps.extend(pinned(&nodes.pins)?);
    ensure!(!maps.is_empty(), "the node has no maps");
    let megabytes = |bytes: u64| flat(bytes as f64 / 1e6);
    let total = maps.values().map(|(_, bytes)| bytes).sum();
    let name = |what: &str| format!("{what}, {services} Services × 5 endpoints");
    let mut all = Row::value(
        SECTION,
        &name("all maps, default sizes"),
        "MB",
        megabytes(total),
    );
    if services == 1_000 {
        all = all.with_bar(Bar::AtMost(30.0, 12.0));
    }
    let mut rows = vec![all];
    let mut largest: Vec<&(String, u64)> = maps.values().collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    if services == 1_000 {
        for (map, bytes) in largest.into_iter().take(8) {
            let name = format!("  of which {map}");
            rows.push(Row::value(SECTION, &name, "MB", megabytes(*bytes)));
        }
    }
    let resident = resident_bytes(node.pid)?;
    rows.push(Row::value(
        SECTION,
        &name("network half of the agent, resident"),
        "MB",
        megabytes(resident),
    ));
    let before = processor_time(node.pid)?;
    let started = Instant::now();
    // There is nothing to wait for: that nothing happens is what is measured.
    pause(idle);
    let used = processor_time(node.pid)?
        .saturating_sub(before)
        .as_secs_f64();
    rows.push(Row::value(
        SECTION,
        &name("processor while idle"),
        "% cpu",
        flat(100.0 * used / started.elapsed().as_secs_f64()),
    ));
    Ok(rows)
}

fn flat(value: f64) -> Summary {
    Summary {
        median: value,
        low: value,
        high: value,
    }
}

/// Name and bytes of every map that a process has open, by the map's id.
fn held(pid: i32) -> Result<BTreeMap<u32, (String, u64)>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some((id, bytes)) = map_of(&text) {
            maps.insert(id, ("a map without a pin".to_owned(), bytes));
        }
    }
    Ok(maps)
}

/// The same of the maps that are pinned below a directory.
fn pinned(root: &Path) -> Result<BTreeMap<u32, (String, u64)>> {
    let mut maps = BTreeMap::new();
    for version in fs::read_dir(root)?.flatten() {
        for pin in fs::read_dir(version.path())?.flatten() {
            if pin.file_type()?.is_dir() {
                continue;
            }
            let map = MapData::from_pin(pin.path())
                .with_context(|| format!("{} is not a map", pin.path().display()))?;
            let fd = std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
            let (id, bytes) = map_of(&text).context("a map's memory")?;
            let name = pin.file_name().to_string_lossy().into_owned();
            maps.insert(id, (name, bytes));
        }
    }
    Ok(maps)
}

/// Id and bytes, if the descriptor is a map.
fn map_of(fdinfo: &str) -> Option<(u32, u64)> {
    let field = |name: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    field("map_type:")?;
    Some((u32::try_from(field("map_id:")?).ok()?, field("memlock:")?))
}

/// Processor time of a process, threads that have ended included.
fn processor_time(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks_of(&stat)
        .map(|ticks| Duration::from_millis(ticks * 10))
        .context("the process's processor time")
}

/// User and system time, fields 14 and 15, in the 100 ticks a second that Linux shows to programs.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_told_from_other_descriptors_by_its_fields() {
        let map = "pos:\t0\nflags:\t02\nmap_type:\t1\nmemlock:\t4096\nmap_id:\t7\nfrozen:\t0\n";
        assert_eq!(map_of(map), Some((7, 4096)));
        assert_eq!(map_of("pos:\t0\nprog_type:\t3\nmemlock:\t4096\n"), None);
    }

    #[test]
    fn user_and_system_time_are_added_whatever_the_command_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 55";
        assert_eq!(ticks_of(stat), Some(42));
    }
}
