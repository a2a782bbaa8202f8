//! Label selectors.

use std::sync::Arc;

/// Labels, sorted by key. Small, because there are as many as there are pods in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key));
        at.ok().map(|at| &*self.0[at].1)
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels = labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()));
        let mut labels: Vec<(Box<str>, Box<str>)> = labels.collect();
        labels.sort();
        labels.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(labels.into())
    }
}

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label is there with one of the values.
    In(Arc<str>, Vec<Arc<str>>),
    /// The label is not there, or has none of the values.
    NotIn(Arc<str>, Vec<Arc<str>>),
    /// The label is there.
    Exists(Arc<str>),
    /// The label is not there.
    DoesNotExist(Arc<str>),
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let is_one_of = |key, values: &[Arc<str>]| {
            let value = labels.get(key);
            value.is_some_and(|value| values.iter().any(|one| **one == *value))
        };
        match self {
            Self::In(key, values) => is_one_of(key, values),
            Self::NotIn(key, values) => !is_one_of(key, values),
            Self::Exists(key) => labels.get(key).is_some(),
            Self::DoesNotExist(key) => labels.get(key).is_none(),
        }
    }
}

/// A label selector: everything it says must hold, so one that says nothing selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Selects everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether the labels are selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|one| one.holds(labels))
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        let mut requirements: Vec<_> = requirements.into_iter().collect();
        // Selectors that say the same share what is compiled from them.
        requirements.sort();
        requirements.dedup();
        Self { requirements }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter_map(|one| one.split_once('='))
            .collect()
    }

    #[test]
    fn each_operator_means_what_the_api_says() {
        let values = || vec!["a".into(), "b".into()];
        let one = |requirement| Selector::from_iter([requirement]);
        let (with, other, without) = (labels("k=a"), labels("k=c"), labels("x=a"));
        let within = one(Requirement::In("k".into(), values()));
        assert!(within.matches(&with) && !within.matches(&other) && !within.matches(&without));
        let outside = one(Requirement::NotIn("k".into(), values()));
        assert!(!outside.matches(&with) && outside.matches(&other) && outside.matches(&without));
        let exists = one(Requirement::Exists("k".into()));
        assert!(exists.matches(&with) && !exists.matches(&without));
        let missing = one(Requirement::DoesNotExist("k".into()));
        assert!(!missing.matches(&with) && missing.matches(&without));
    }

    #[test]
    fn all_requirements_must_hold_and_none_selects_all() {
        let both = Selector::from_iter([
            Requirement::Exists("k".into()),
            Requirement::DoesNotExist("x".into()),
        ]);
        assert!(both.matches(&labels("k=a")));
        assert!(!both.matches(&labels("k=a,x=b")));
        assert!(Selector::all().matches(&Labels::default()));
    }
}
