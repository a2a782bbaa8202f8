//! The Maglev table: which backend a flow's hash leads to, nearly the same after a backend changed.
//!
//! Every node computes the same table from the same set of backends, so a flow whose packets come in
//! by another node than before still finds its backend.

use super::BackendAddress;

/// Sizes a table may have: primes, in wide steps, because another size is another table.
const SIZES: [u16; 5] = [251, 1_021, 4_093, 16_381, 65_521];
/// Entries per backend for shares that differ by about a percent.
const ENTRIES_PER_BACKEND: usize = 100;

/// Size of the table for that many backends; 0 for none.
#[must_use]
pub fn table_size(backends: usize) -> u16 {
    if backends == 0 {
        return 0;
    }
    let wanted = backends * ENTRIES_PER_BACKEND;
    let fits = SIZES.into_iter().find(|size| usize::from(*size) >= wanted);
    fits.unwrap_or(SIZES[SIZES.len() - 1])
}

/// The table: for every entry the index of a backend. The order of `backends` does not matter for
/// where a flow goes.
#[must_use]
pub fn table(backends: &[BackendAddress]) -> Vec<u16> {
    let size = u64::from(table_size(backends.len()));
    let entries = usize::try_from(size).expect("a u16");
    if size == 0 {
        return Vec::new();
    }
    // Whoever comes first takes contested entries, so the order must be everybody's.
    let mut order: Vec<u16> = (0..u16::try_from(backends.len()).unwrap_or(u16::MAX)).collect();
    order.sort_unstable_by_key(|index| backends[usize::from(*index)]);
    // (offset, step): the permutation of entries a backend prefers.
    let mut preferences: Vec<(u64, u64)> = order
        .iter()
        .map(|index| {
            let backend = &backends[usize::from(*index)];
            let offset = hash(backend, 0x9e37_79b9_7f4a_7c15) % size;
            (
                offset,
                hash(backend, 0xc2b2_ae3d_27d4_eb4f) % (size - 1) + 1,
            )
        })
        .collect();
    const FREE: u16 = u16::MAX;
    let mut table = vec![FREE; entries];
    let mut filled = 0;
    loop {
        for (rank, (next, step)) in preferences.iter_mut().enumerate() {
            loop {
                let entry = usize::try_from(*next).expect("below a u16");
                *next = (*next + *step) % size;
                if table[entry] == FREE {
                    table[entry] = order[rank];
                    break;
                }
            }
            filled += 1;
            if filled == entries {
                return table;
            }
        }
    }
}

/// FNV-1a over the address, finished by a mixer. Part of what nodes agree on: never change it.
fn hash(backend: &BackendAddress, seed: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    match backend.address {
        std::net::IpAddr::V4(address) => address.octets().into_iter().for_each(&mut add),
        std::net::IpAddr::V6(address) => address.octets().into_iter().for_each(&mut add),
    }
    backend.port.to_be_bytes().into_iter().for_each(&mut add);
    add(backend.protocol.number());
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    fn backends(count: u16) -> Vec<BackendAddress> {
        let backend = |n: u16| BackendAddress {
            address: [10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]].into(),
            port: 8080,
            protocol: Protocol::Tcp,
        };
        (1..=count).map(backend).collect()
    }

    fn is_prime(n: u16) -> bool {
        (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
    }

    #[test]
    fn the_size_is_a_prime_that_gives_every_backend_a_hundred_entries() {
        assert_eq!(table_size(0), 0);
        for count in [1, 2, 5, 10, 40, 163, 600] {
            let size = table_size(count);
            assert!(is_prime(251) && is_prime(1_021) && is_prime(4_093) && is_prime(16_381));
            assert!(usize::from(size) >= count * 100, "{count} backends: {size}");
        }
    }

    #[test]
    fn shares_are_balanced_within_two_percent_of_the_table() {
        for count in [1_u16, 3, 5, 40, 150] {
            let backends = backends(count);
            let table = table(&backends);
            let mut shares = vec![0_usize; backends.len()];
            table
                .iter()
                .for_each(|index| shares[usize::from(*index)] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            // Each takes its turn, so no two differ by more than one.
            assert!(most - least <= 1, "{count} backends: {least}..{most}");
        }
    }

    #[test]
    fn a_backend_that_goes_moves_few_flows_of_the_others() {
        let before = backends(10);
        for gone in 0..10 {
            let mut after = before.clone();
            after.remove(gone);
            let (old, new) = (table(&before), table(&after));
            assert_eq!(old.len(), new.len());
            let pairs = old.iter().zip(&new);
            let kept = pairs.filter(|(a, _)| usize::from(**a) != gone);
            let (mut moved, mut total) = (0, 0);
            for (a, b) in kept {
                total += 1;
                moved += usize::from(before[usize::from(*a)] != after[usize::from(*b)]);
            }
            assert!(moved * 100 <= total * 15, "{moved} of {total} moved");
        }
    }

    #[test]
    fn the_order_of_the_backends_does_not_matter() {
        let forward = backends(7);
        let mut reversed = forward.clone();
        reversed.reverse();
        let of = |backends: &[BackendAddress]| -> Vec<BackendAddress> {
            let table = table(backends);
            table
                .iter()
                .map(|index| backends[usize::from(*index)])
                .collect()
        };
        assert_eq!(of(&forward), of(&reversed));
    }
}
