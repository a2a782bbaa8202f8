//! What becomes of an object, from the state of its owners alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tholepin_informer::Propagation;

/// One owner, as far as its dependents care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It exists.
    Solid,
    /// It does not exist.
    Absent,
    /// It is being deleted in the foreground and waits for its dependents.
    WaitingForDependents,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Keep,
    /// It has an owner left: only the references to these uids go.
    DropReferences(Vec<String>),
    Delete(Propagation),
}

/// Decides as upstream's `attemptToDeleteItem` does. The states are those of `owners`, in order.
pub(super) fn decide(
    owners: &[OwnerReference],
    states: &[OwnerState],
    has_dependents: bool,
) -> Decision {
    if owners.is_empty() {
        return Decision::Keep;
    }
    let not_solid: Vec<String> = owners
        .iter()
        .zip(states)
        .filter(|(_, state)| **state != OwnerState::Solid)
        .map(|(owner, _)| owner.uid.clone())
        .collect();
    if not_solid.is_empty() {
        return Decision::Keep;
    }
    if not_solid.len() < owners.len() {
        return Decision::DropReferences(not_solid);
    }
    let waited_for = states.contains(&OwnerState::WaitingForDependents);
    if waited_for && has_dependents {
        Decision::Delete(Propagation::Foreground)
    } else {
        Decision::Delete(Propagation::Background)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OwnerState::{Absent, Solid, WaitingForDependents};

    fn decided(states: &[OwnerState], has_dependents: bool) -> Decision {
        let owners: Vec<OwnerReference> = (0..states.len())
            .map(|i| OwnerReference {
                uid: i.to_string(),
                ..Default::default()
            })
            .collect();
        decide(&owners, states, has_dependents)
    }

    #[test]
    fn an_object_lives_as_long_as_one_owner() {
        assert_eq!(decided(&[], false), Decision::Keep);
        assert_eq!(decided(&[Solid], false), Decision::Keep);
        assert_eq!(
            decided(&[Solid, Absent], true),
            Decision::DropReferences(vec!["1".into()])
        );
        assert_eq!(
            decided(&[WaitingForDependents, Solid], true),
            Decision::DropReferences(vec!["0".into()])
        );
        assert_eq!(
            decided(&[Absent, Absent], true),
            Decision::Delete(Propagation::Background)
        );
    }

    #[test]
    fn foreground_deletion_goes_down_the_tree() {
        assert_eq!(
            decided(&[WaitingForDependents], true),
            Decision::Delete(Propagation::Foreground)
        );
        assert_eq!(
            decided(&[WaitingForDependents], false),
            Decision::Delete(Propagation::Background)
        );
    }
}
