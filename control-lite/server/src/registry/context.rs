//! Who asks, and how the request is to be treated. Every registry call carries one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tholepin_apimachinery::codec::FieldValidation;

/// The authenticated user of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name, for a client certificate its common name.
    pub name: String,
    /// Stable id, empty if the authenticator has none.
    pub uid: String,
    /// Groups, for a client certificate its organizations plus `system:authenticated`.
    pub groups: Vec<String>,
    /// Further attributes of the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A component of this process, in the group that may do everything.
    #[must_use]
    pub fn component(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            groups: vec![
                "system:masters".to_owned(),
                "system:authenticated".to_owned(),
            ],
            ..Self::default()
        }
    }
}

/// Warnings collected while a request runs; the HTTP layer sends them as `Warning` headers.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning unless it is already there.
    pub fn push(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut warnings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Takes what was collected.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who asks and how.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// The authenticated user.
    pub user: UserInfo,
    /// Everything but the write happens.
    pub dry_run: bool,
    /// Who is named as the manager of the fields that are set.
    pub field_manager: String,
    /// How unknown fields are treated.
    pub field_validation: FieldValidation,
    /// Warnings for the client.
    pub warnings: Warnings,
}

impl RequestContext {
    /// The context of a component of this process (a controller, the scheduler).
    #[must_use]
    pub fn component(name: &str) -> Self {
        Self {
            user: UserInfo::component(name),
            field_manager: name.to_owned(),
            ..Self::default()
        }
    }
}
