//! Label selectors: the requirement list behind query strings, `matchLabels` and `matchExpressions`.

use super::parse::{InvalidLabelSelector, Parser};
use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use serde_json::{Map, Value};
use std::fmt;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `key = value`.
    Equals,
    /// `key != value`; true when the key is absent.
    NotEquals,
    /// `key in (…)`.
    In,
    /// `key notin (…)`; true when the key is absent.
    NotIn,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key > 1`.
    GreaterThan,
    /// `key < 1`.
    LessThan,
}

/// One term of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// With what; sorted and without repeats.
    pub values: Vec<String>,
}

/// All requirements must hold; none selects everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects every object.
    pub const fn everything() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: false,
        }
    }

    /// Selects no object: what an absent selector means.
    pub const fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Parses the query string's form, for example `app=web,tier in (a,b),!old`.
    pub fn parse(text: &str) -> Result<Self, InvalidLabelSelector> {
        let requirements = Parser::new(text).requirements()?;
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// From a plain map, as Services and ReplicationControllers have: all pairs must match.
    /// An empty or absent map selects nothing there; use [`Self::everything`] where it should not.
    pub fn from_map(map: Option<&Map<String, Value>>) -> Self {
        match map {
            Some(map) if !map.is_empty() => Self {
                requirements: equals(map),
                nothing: false,
            },
            _ => Self::nothing(),
        }
    }

    /// From a `metav1.LabelSelector` that passed validation. Absent selects nothing, empty selects everything.
    pub fn from_spec(spec: Option<&Value>) -> Self {
        let Some(spec) = spec.filter(|s| !s.is_null()) else {
            return Self::nothing();
        };
        let mut requirements = spec
            .get("matchLabels")
            .and_then(Value::as_object)
            .map(equals)
            .unwrap_or_default();
        for expression in crate::value::list_at(spec, "matchExpressions") {
            let operator = match crate::value::str_at(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                // Validation refuses anything else; a selector that is not understood must not select too much.
                _ => return Self::nothing(),
            };
            let values = crate::value::list_at(expression, "values")
                .iter()
                .filter_map(Value::as_str);
            let key = crate::value::str_at(expression, "key").to_owned();
            requirements.push(Requirement {
                key,
                operator,
                values: sorted(values.map(str::to_owned).collect()),
            });
        }
        Self {
            requirements,
            nothing: false,
        }
    }

    /// Whether it selects every object.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The terms.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether `object` is selected by its `metadata.labels`.
    pub fn matches_object(&self, object: &Value) -> bool {
        (self.requirements.is_empty() && !self.nothing) || self.matches(crate::meta::labels(object))
    }
}

fn equals(map: &Map<String, Value>) -> Vec<Requirement> {
    let mut requirements: Vec<Requirement> = map
        .iter()
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or_default().to_owned()],
        })
        .collect();
    requirements.sort_by(|a, b| a.key.cmp(&b.key));
    requirements
}

pub(super) fn sorted(mut values: Vec<String>) -> Vec<String> {
    values.sort();
    values.dedup();
    values
}

impl Requirement {
    fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = labels
            .and_then(|l| l.get(&self.key))
            .and_then(Value::as_str);
        let is_listed = |v: &str| self.values.iter().any(|w| w == v);
        let number = || self.values.first().and_then(|v| v.parse::<i64>().ok());
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(is_listed),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(is_listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                match (value.and_then(|v| v.parse::<i64>().ok()), number()) {
                    (Some(have), Some(limit)) if self.operator == Operator::GreaterThan => {
                        have > limit
                    }
                    (Some(have), Some(limit)) => have < limit,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        match self.operator {
            Operator::Equals => write!(f, "{}={values}", self.key),
            Operator::NotEquals => write!(f, "{}!={values}", self.key),
            Operator::In if self.values.len() == 1 => write!(f, "{}={values}", self.key),
            Operator::In => write!(f, "{} in ({values})", self.key),
            Operator::NotIn => write!(f, "{} notin ({values})", self.key),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::GreaterThan => write!(f, "{}>{values}", self.key),
            Operator::LessThan => write!(f, "{}<{values}", self.key),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// Validates a `metav1.LabelSelector` below `path`.
pub fn validate_spec(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = crate::meta::validate_labels(
        crate::value::map_at(spec, "matchLabels"),
        &path.child("matchLabels"),
    );
    for (i, expression) in crate::value::list_at(spec, "matchExpressions")
        .iter()
        .enumerate()
    {
        let path = path.child("matchExpressions").index(i);
        let values = crate::value::list_at(expression, "values");
        match crate::value::str_at(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if values.is_empty() => {}
            "Exists" | "DoesNotExist" => errors.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            other => errors.push(FieldError::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = crate::value::str_at(expression, "key");
        errors.extend(names::errors(
            &path.child("key"),
            key,
            names::qualified_name(key),
        ));
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(names::errors(
                &path.child("values").index(j),
                value,
                names::label_value(value),
            ));
        }
    }
    errors
}
