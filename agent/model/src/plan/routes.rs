//! Plans the changes to the table of remote pod ranges.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::route::RouteTable;

/// One change. Every one can be applied alone: routes do not depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Insert or replace.
    Upsert {
        /// Pod range.
        range: IpNet,
        /// Tunnel endpoint.
        endpoint: IpAddr,
    },
    /// Remove.
    Remove {
        /// Pod range.
        range: IpNet,
    },
}

/// Changes from `realized` to `desired`. Without `synced` nothing is removed.
#[must_use]
pub fn plan(desired: &RouteTable, realized: &RouteTable, synced: bool) -> Vec<Op> {
    let upserts = desired
        .iter()
        .filter(|(range, endpoint)| realized.get(*range) != Some(*endpoint))
        .map(|(range, endpoint)| Op::Upsert {
            range: *range,
            endpoint: *endpoint,
        });
    let removals = realized
        .keys()
        .filter(|range| synced && !desired.contains_key(*range))
        .map(|range| Op::Remove { range: *range });
    upserts.chain(removals).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str)]) -> RouteTable {
        routes
            .iter()
            .map(|(r, e)| (r.parse().unwrap(), e.parse().unwrap()))
            .collect()
    }

    fn applied(mut table: RouteTable, ops: &[Op]) -> RouteTable {
        for op in ops {
            match *op {
                Op::Upsert { range, endpoint } => drop(table.insert(range, endpoint)),
                Op::Remove { range } => drop(table.remove(&range)),
            }
        }
        table
    }

    #[test]
    fn applying_the_plan_reaches_the_desired_table_and_leaves_nothing_to_do() {
        let desired = table(&[
            ("10.244.1.0/24", "172.30.0.12"),
            ("10.244.2.0/24", "172.30.0.13"),
        ]);
        let realized = table(&[
            ("10.244.1.0/24", "172.30.0.99"),
            ("10.244.3.0/24", "172.30.0.14"),
        ]);
        let ops = plan(&desired, &realized, true);
        let after = applied(realized, &ops);
        assert_eq!(after, desired);
        assert_eq!(plan(&desired, &after, true), []);
    }

    #[test]
    fn nothing_is_removed_before_the_nodes_have_synced() {
        let realized = table(&[("10.244.3.0/24", "172.30.0.14")]);
        assert_eq!(plan(&RouteTable::new(), &realized, false), []);
    }
}
