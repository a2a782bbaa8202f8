//! Failures as clients see them: `metav1.Status` with upstream's reasons, codes and texts.
//!
//! One type for the whole API on purpose: this *is* the wire format, and every operation family ends in it.

mod details;
mod reason;

pub use details::{Cause, Details};
pub use reason::Reason;

use crate::field::{ErrorList, FieldError};
use serde_json::{Value, json};

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Why; decides the HTTP code.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// About which object; boxed, because results carry this type everywhere.
    pub details: Option<Box<Details>>,
}

/// What upstream says when an update carries a resourceVersion that is not the latest.
pub const OPTIMISTIC_LOCK_MESSAGE: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// `pods`, or `deployments.apps` for a group that is not the core one.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn about(group: &str, resource: &str, name: &str) -> Option<Box<Details>> {
    Some(Box::new(Details {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: resource.to_owned(),
        ..Details::default()
    }))
}

impl ApiError {
    /// An error without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            details: None,
        }
    }

    /// `pods "x" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} not found",
            qualified(group, resource),
            crate::field::quote(name)
        );
        Self {
            reason: Reason::NotFound,
            message,
            details: about(group, resource, name),
        }
    }

    /// An address that names no resource of this server.
    pub fn unknown_path() -> Self {
        Self {
            reason: Reason::NotFound,
            message: "the server could not find the requested resource".to_owned(),
            details: Some(Box::default()),
        }
    }

    /// `pods "x" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists",
            qualified(group, resource),
            crate::field::quote(name)
        );
        Self {
            reason: Reason::AlreadyExists,
            message,
            details: about(group, resource, name),
        }
    }

    /// Every generated name tried was taken.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let mut error = Self::already_exists(group, resource, name);
        error
            .message
            .push_str(", the server was not able to generate a unique name for the object");
        if let Some(details) = error.details.as_mut() {
            details.retry_after_secs = 1;
        }
        error
    }

    /// `Operation cannot be fulfilled on pods "x": <cause>`.
    pub fn conflict(group: &str, resource: &str, name: &str, cause: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {cause}",
            qualified(group, resource),
            crate::field::quote(name)
        );
        Self {
            reason: Reason::Conflict,
            message,
            details: about(group, resource, name),
        }
    }

    /// The conflict of an update with an outdated resourceVersion.
    pub fn stale(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(group, resource, name, OPTIMISTIC_LOCK_MESSAGE)
    }

    /// A delete or update precondition on `UID` or `ResourceVersion` that does not hold.
    pub fn precondition_failed(
        group: &str,
        resource: &str,
        name: &str,
        what: &str,
        expected: &str,
        actual: &str,
    ) -> Self {
        let cause = format!(
            "Precondition failed: {what} in precondition: {expected}, {what} in object meta: {actual}"
        );
        Self::conflict(group, resource, name, &cause)
    }

    /// `pods "x" is forbidden: <cause>`.
    pub fn forbidden(group: &str, resource: &str, name: &str, cause: &str) -> Self {
        let subject = qualified(group, resource);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {cause}"),
            (false, true) => format!("{subject} is forbidden: {cause}"),
            (false, false) => format!(
                "{subject} {} is forbidden: {cause}",
                crate::field::quote(name)
            ),
        };
        Self {
            reason: Reason::Forbidden,
            message,
            details: about(group, resource, name),
        }
    }

    /// No valid credentials.
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// `Pod "x" is invalid: …` with one cause per field error.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let subject = format!(
            "{} {} is invalid",
            qualified(group, kind),
            crate::field::quote(name)
        );
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for text in errors.iter().map(FieldError::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let message = match texts.as_slice() {
            [] => subject,
            [one] => format!("{subject}: {one}"),
            several => format!("{subject}: [{}]", several.join(", ")),
        };
        let causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().to_owned(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        let details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        };
        Self {
            reason: Reason::Invalid,
            message,
            details: Some(Box::new(details)),
        }
    }

    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// A verb the resource does not have.
    pub fn method_not_supported(group: &str, resource: &str, action: &str) -> Self {
        let subject = qualified(group, resource);
        Self {
            reason: Reason::MethodNotAllowed,
            message: format!(
                "{action} is not supported on resources of kind {}",
                crate::field::quote(&subject)
            ),
            details: about(group, resource, ""),
        }
    }

    /// An HTTP method the path does not have.
    pub fn method_not_allowed() -> Self {
        let mut error = Self::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        );
        error.details = Some(Box::default());
        error
    }

    /// No response format that the client takes; `accepted` lists ours.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!(
                "only the following media types are accepted: {}",
                accepted.join(", ")
            ),
        )
    }

    /// A body in a format that is not read here; `supported` lists ours.
    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                supported.join(", ")
            ),
        )
    }

    /// A watch or list at a revision that is compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// A watch from `requested` when the oldest kept revision is `oldest`.
    pub fn too_old_resource_version(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// A list that continues at a compacted revision: the client starts again, or goes on with `token`, which
    /// names no revision.
    pub fn continue_expired(token: String) -> Self {
        let details = Details {
            continue_token: token,
            ..Details::default()
        };
        let message = "The provided continue parameter is too old to display a consistent list result. You can \
                       start a new list without the continue parameter, or use the continue token in this \
                       response to retrieve the remainder of the results. Continuing with the provided token \
                       results in an inconsistent list - objects that were created, modified, or deleted between \
                       the time the first chunk was returned and now may show up in the list.";
        Self {
            details: Some(Box::new(details)),
            ..Self::expired(message)
        }
    }

    /// A revision that does not exist yet: 504 with the cause clients look for.
    pub fn resource_version_too_large(requested: u64, current: u64) -> Self {
        let details = Details {
            causes: vec![Cause {
                reason: "ResourceVersionTooLarge".to_owned(),
                message: "Too large resource version".to_owned(),
                field: String::new(),
            }],
            retry_after_secs: 1,
            ..Details::default()
        };
        Self {
            reason: Reason::Timeout,
            message: format!(
                "Timeout: Too large resource version: {requested}, current: {current}"
            ),
            details: Some(Box::new(details)),
        }
    }

    /// Our own failure. The cause must hold no secret.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        let details = Details {
            causes: vec![Cause {
                message: cause.to_string(),
                ..Cause::default()
            }],
            ..Details::default()
        };
        Self {
            reason: Reason::InternalError,
            message: format!("Internal error occurred: {cause}"),
            details: Some(Box::new(details)),
        }
    }

    /// A body above `limit_bytes`.
    pub fn request_entity_too_large(limit_bytes: usize) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit_bytes}"),
        )
    }

    /// Come back in `retry_after_secs`.
    pub fn too_many_requests(message: impl Into<String>, retry_after_secs: u32) -> Self {
        let mut error = Self::new(Reason::TooManyRequests, message);
        error.details = Some(Box::new(Details {
            retry_after_secs,
            ..Details::default()
        }));
        error
    }

    /// Starting, stopping, or a dependency is away.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// No result within the request's time.
    pub fn timeout(message: &str) -> Self {
        let mut error = Self::new(Reason::Timeout, format!("Timeout: {message}"));
        error.details = Some(Box::default());
        error
    }

    /// An operation that gave up after conflicts or load; the client may retry.
    pub fn server_timeout(
        group: &str,
        resource: &str,
        operation: &str,
        retry_after_secs: u32,
    ) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        let mut details = about(group, resource, operation);
        if let Some(details) = details.as_mut() {
            details.retry_after_secs = retry_after_secs;
        }
        Self {
            reason: Reason::ServerTimeout,
            message,
            details,
        }
    }

    /// The HTTP status code.
    pub const fn code(&self) -> u16 {
        self.reason.code()
    }

    /// Seconds for a `Retry-After` header.
    pub fn retry_after_secs(&self) -> Option<u32> {
        self.details
            .as_ref()
            .map(|d| d.retry_after_secs)
            .filter(|s| *s > 0)
    }

    /// Whether the object is absent.
    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    /// Whether a retry with the latest object may succeed.
    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    /// Whether the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    /// Whether the revision asked for is forgotten: list again.
    pub fn is_expired(&self) -> bool {
        self.reason == Reason::Expired
    }

    /// The `Status` object to send.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason.as_str(),
        });
        if let Some(details) = &self.details {
            let json = details.to_json();
            if details.continue_token.is_empty() {
                status["details"] = json;
            } else {
                status["metadata"]["continue"] = details.continue_token.as_str().into();
            }
        }
        status["code"] = self.code().into();
        status
    }
}

/// The `Status` of a delete that left nothing behind.
pub fn deleted_status(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: resource.to_owned(),
        uid: uid.to_owned(),
        ..Details::default()
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_json()})
}

#[cfg(test)]
mod tests;
