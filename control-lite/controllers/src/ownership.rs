//! Controller references: who owns an object, and what to do with one that matches a selector.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use tholepin_informer::{Kind, Selector};

/// The owner reference with `controller: true`.
#[must_use]
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// The controller reference to the object of `kind` with this metadata.
#[must_use]
pub(crate) fn controller_reference(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller does with an object it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Keep,
    /// Nobody's and it matches: make it ours.
    Adopt,
    /// Ours but it no longer matches: let go of it.
    Release,
    /// None of our business.
    Ignore,
}

/// Decides as upstream's ControllerRefManager does.
#[must_use]
pub(crate) fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let matches = selector.matches(object.labels.as_ref());
    let owner_goes = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        // An owner that is being deleted leaves its objects to garbage collection.
        Some(_) if owner_goes => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_goes || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Merge patch that makes `reference` the controller of an object.
#[must_use]
pub(crate) fn adoption_patch(object: &ObjectMeta, reference: OwnerReference) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != reference.uid);
    owners.push(reference);
    owners_patch(object, &owners)
}

/// Merge patch that takes the references to these uids away.
#[must_use]
pub(crate) fn release_patch(object: &ObjectMeta, uids: &[&str]) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| !uids.contains(&owner.uid.as_str()));
    owners_patch(object, &owners)
}

fn owners_patch(object: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    let references = if owners.is_empty() {
        Value::Null
    } else {
        json!(owners)
    };
    json!({"metadata": {
        "resourceVersion": object.resource_version,
        "uid": object.uid,
        "ownerReferences": references,
    }})
}

/// Whether every label of `wanted` is in `labels`.
#[must_use]
pub(crate) fn has_labels(
    labels: Option<&BTreeMap<String, String>>,
    wanted: Option<&BTreeMap<String, String>>,
) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| {
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| found == value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tholepin_informer::{kinds, now};

    fn meta(uid: &str) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            ..Default::default()
        }
    }

    fn object(app: &str, owner: Option<&ObjectMeta>) -> ObjectMeta {
        ObjectMeta {
            labels: Some([("app".to_owned(), app.to_owned())].into()),
            owner_references: owner.map(|o| vec![controller_reference(kinds::REPLICA_SET, o)]),
            ..meta("object")
        }
    }

    #[test]
    fn claims_follow_the_controller_reference_and_the_selector() {
        let (us, other) = (meta("us"), meta("other"));
        let mut going = us.clone();
        going.deletion_timestamp = Some(now());
        let selector = Selector::from_labels(Some(&[("app".to_owned(), "web".to_owned())].into()));
        let cases = [
            (&us, object("web", Some(&us)), Claim::Keep),
            (&us, object("other", Some(&us)), Claim::Release),
            (&us, object("web", Some(&other)), Claim::Ignore),
            (&us, object("web", None), Claim::Adopt),
            (&us, object("other", None), Claim::Ignore),
            (&going, object("other", Some(&us)), Claim::Ignore),
            (&going, object("web", None), Claim::Ignore),
        ];
        for (owner, object, expected) in cases {
            assert_eq!(claim(owner, &selector, &object), expected, "{object:?}");
        }
        let mut dying = object("web", None);
        dying.deletion_timestamp = Some(now());
        assert_eq!(claim(&us, &selector, &dying), Claim::Ignore);
    }

    #[test]
    fn releasing_the_last_owner_removes_the_field() {
        let owner = meta("us");
        let patch = release_patch(&object("web", Some(&owner)), &["us"]);
        assert_eq!(
            patch.pointer("/metadata/ownerReferences"),
            Some(&Value::Null)
        );
    }
}
