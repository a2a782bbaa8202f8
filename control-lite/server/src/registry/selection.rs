//! A label and a field selector of a request, parsed and checked against the kind.

use serde_json::Value;
use tholepin_apimachinery::selector::{FieldSelector, LabelSelector};
use tholepin_apimachinery::{ApiError, Kind, meta};

use super::ApiResult;

/// What a list or watch selects.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    kind: &'static Kind,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    pub(crate) fn parse(kind: &'static Kind, labels: &str, fields: &str) -> ApiResult<Self> {
        let refuse = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
        let labels = LabelSelector::parse(labels).map_err(|error| refuse(&error))?;
        let fields = FieldSelector::parse(fields).map_err(|error| refuse(&error))?;
        kind.check_field_selector(&fields)
            .map_err(|error| refuse(&error))?;
        Ok(Self {
            kind,
            labels,
            fields,
        })
    }

    /// Whether every object is selected, so that none needs to be looked at.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        (self.labels.is_everything() || self.labels.matches(meta::labels(object)))
            && self.kind.matches_fields(object, &self.fields)
    }

    /// The one name that is selected, if the selector names it: that object's key is read or
    /// watched, and not the folder.
    pub(crate) fn only_name(&self) -> Option<&str> {
        self.fields
            .requires("metadata.name")
            .filter(|name| !name.is_empty())
    }

    /// The one namespace that is selected.
    pub(crate) fn only_namespace(&self) -> Option<&str> {
        self.fields
            .requires("metadata.namespace")
            .filter(|namespace| !namespace.is_empty())
    }
}
