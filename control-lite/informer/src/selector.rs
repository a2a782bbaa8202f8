//! Label selectors over typed labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// A compiled selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

/// A selector that cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSelector {
    /// An operator that is not one of the four.
    #[error("\"{operator}\" is not a valid label selector operator")]
    Operator {
        /// The word found.
        operator: String,
    },
    /// In and NotIn want values.
    #[error("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty")]
    NoValues,
}

impl Selector {
    /// Compiles `matchLabels` and `matchExpressions`.
    ///
    /// # Errors
    /// If an operator is unknown, or one that needs values has none.
    pub fn new(selector: &LabelSelector) -> Result<Self, InvalidSelector> {
        let mut requirements = Self::from_labels(selector.match_labels.as_ref()).requirements;
        for expression in selector.match_expressions.iter().flatten() {
            let key = expression.key.clone();
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(match expression.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => return Err(InvalidSelector::NoValues),
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                other => {
                    return Err(InvalidSelector::Operator {
                        operator: other.to_owned(),
                    });
                }
            });
        }
        Ok(Self { requirements })
    }

    /// All of these labels, as Services and ReplicationControllers select. No labels match everything.
    #[must_use]
    pub fn from_labels(labels: Option<&BTreeMap<String, String>>) -> Self {
        let requirements = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]))
            .collect();
        Self { requirements }
    }

    /// Whether it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether `labels` satisfy every requirement.
    #[must_use]
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value_of = |key: &String| labels.and_then(|labels| labels.get(key));
        self.requirements
            .iter()
            .all(|requirement| match requirement {
                Requirement::In(key, values) => {
                    value_of(key).is_some_and(|value| values.contains(value))
                }
                Requirement::NotIn(key, values) => {
                    value_of(key).is_none_or(|value| !values.contains(value))
                }
                Requirement::Exists(key) => value_of(key).is_some(),
                Requirement::DoesNotExist(key) => value_of(key).is_none(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "app".into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
            match_labels: None,
        }
    }

    fn matches(operator: &str, values: &[&str], app: Option<&str>) -> bool {
        let labels = app.map(|app| BTreeMap::from([("app".to_owned(), app.to_owned())]));
        Selector::new(&expression(operator, values))
            .expect("valid")
            .matches(labels.as_ref())
    }

    #[test]
    fn operators_treat_a_missing_label_as_upstream_does() {
        assert!(matches("In", &["a", "b"], Some("b")));
        assert!(!matches("In", &["a"], None));
        assert!(matches("NotIn", &["a"], None));
        assert!(!matches("NotIn", &["a"], Some("a")));
        assert!(matches("Exists", &[], Some("x")));
        assert!(!matches("Exists", &[], None));
        assert!(matches("DoesNotExist", &[], None));
        assert!(!matches("DoesNotExist", &[], Some("x")));
    }

    #[test]
    fn an_unknown_operator_or_an_empty_set_is_refused() {
        assert_eq!(
            Selector::new(&expression("Near", &["a"])),
            Err(InvalidSelector::Operator {
                operator: "Near".into()
            })
        );
        assert_eq!(
            Selector::new(&expression("In", &[])),
            Err(InvalidSelector::NoValues)
        );
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        let selector = Selector::new(&LabelSelector::default()).expect("valid");
        assert!(selector.is_empty() && selector.matches(None));
    }
}
