//! Who has a frontend that more than one owner wants: the oldest.

use std::collections::{BTreeSet, HashMap};

use crate::service::{Frontend, Owner};

/// Age and name: the least of these wins.
type Claim = (i64, Owner);

/// What every owner wants.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_owner: HashMap<Owner, (i64, Vec<Frontend>)>,
    winners: HashMap<Frontend, Owner>,
    /// All claims of the frontends with more than one.
    contested: HashMap<Frontend, BTreeSet<Claim>>,
}

impl Claims {
    /// Sets what an owner wants now; returns the others that have won or lost a frontend by it.
    pub(super) fn set(
        &mut self,
        owner: &Owner,
        created_at: i64,
        wanted: Vec<Frontend>,
    ) -> Vec<Owner> {
        let (old_age, old) = self
            .by_owner
            .remove(owner)
            .unwrap_or((created_at, Vec::new()));
        let mut others = Vec::new();
        if old_age != created_at || old != wanted {
            for frontend in old
                .iter()
                .filter(|f| old_age != created_at || !wanted.contains(f))
            {
                others.extend(self.withdraw(*frontend, owner));
            }
            for frontend in &wanted {
                others.extend(self.add(*frontend, created_at, owner));
            }
        }
        if !wanted.is_empty() {
            self.by_owner.insert(owner.clone(), (created_at, wanted));
        }
        others.retain(|other| other != owner);
        others
    }

    /// Who has the frontend.
    #[must_use]
    pub(super) fn winner(&self, frontend: &Frontend) -> Option<&Owner> {
        self.winners.get(frontend)
    }

    fn withdraw(&mut self, frontend: Frontend, owner: &Owner) -> Option<Owner> {
        let Some(claims) = self.contested.get_mut(&frontend) else {
            self.winners.remove(&frontend);
            return None;
        };
        claims.retain(|(_, claimant)| claimant != owner);
        let winner = claims.first().map(|(_, winner)| winner.clone());
        if claims.len() < 2 {
            self.contested.remove(&frontend);
        }
        self.crown(frontend, winner?)
    }

    fn add(&mut self, frontend: Frontend, created_at: i64, owner: &Owner) -> Option<Owner> {
        let Some(holder) = self.winners.get(&frontend) else {
            self.winners.insert(frontend, owner.clone());
            return None;
        };
        if holder == owner && !self.contested.contains_key(&frontend) {
            return None;
        }
        let holder_claim = (
            self.by_owner
                .get(holder)
                .map_or(created_at, |(age, _)| *age),
            holder.clone(),
        );
        let claims = self.contested.entry(frontend).or_default();
        if holder_claim.1 != *owner {
            claims.insert(holder_claim);
        }
        claims.insert((created_at, owner.clone()));
        let winner = claims.first().map(|(_, winner)| winner.clone());
        self.crown(frontend, winner?)
    }

    /// Makes `winner` the one; the owner besides the one that asks whose standing this changed.
    fn crown(&mut self, frontend: Frontend, winner: Owner) -> Option<Owner> {
        let before = self.winners.insert(frontend, winner.clone());
        match before {
            Some(before) if before == winner => None,
            // Either the winner is the one that asks and `before` lost, or the one that asks has
            // withdrawn and `winner` has won.
            Some(before) if self.by_owner.contains_key(&before) => Some(before),
            _ => Some(winner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Protocol, Scope, ServiceName};

    fn owner(name: &str) -> Owner {
        Owner::Service(ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        })
    }

    fn frontend(last: u8) -> Frontend {
        Frontend {
            address: [10, 96, 0, last].into(),
            port: 80,
            protocol: Protocol::Tcp,
            scope: Scope::Cluster,
        }
    }

    #[test]
    fn the_oldest_has_it_and_the_next_gets_it_when_it_goes() {
        let mut claims = Claims::default();
        let (a, b, c) = (owner("a"), owner("b"), owner("c"));
        assert_eq!(claims.set(&b, 2, vec![frontend(1)]), []);
        assert_eq!(claims.set(&c, 3, vec![frontend(1), frontend(2)]), []);
        assert_eq!(claims.winner(&frontend(1)), Some(&b));
        assert_eq!(
            claims.set(&a, 1, vec![frontend(1)]),
            std::slice::from_ref(&b)
        );
        assert_eq!(claims.winner(&frontend(1)), Some(&a));
        assert_eq!(claims.set(&a, 1, vec![]), std::slice::from_ref(&b));
        assert_eq!(claims.set(&b, 2, vec![]), std::slice::from_ref(&c));
        assert_eq!(claims.set(&c, 3, vec![frontend(2)]), []);
        assert_eq!(claims.winner(&frontend(1)), None);
        assert_eq!(claims.winner(&frontend(2)), Some(&c));
    }

    #[test]
    fn a_frontend_that_was_contested_once_can_be_kept_and_given_up() {
        let mut claims = Claims::default();
        let (a, b) = (owner("a"), owner("b"));
        claims.set(&a, 1, vec![frontend(1)]);
        claims.set(&b, 2, vec![frontend(1)]);
        assert_eq!(claims.set(&a, 1, vec![frontend(1), frontend(2)]), []);
        assert_eq!(claims.winner(&frontend(1)), Some(&a));
        // Recreated under the same name it is the younger.
        assert_eq!(
            claims.set(&a, 5, vec![frontend(1)]),
            std::slice::from_ref(&b)
        );
        assert_eq!(claims.winner(&frontend(1)), Some(&b));
        assert_eq!(claims.winner(&frontend(2)), None);
    }
}
