//! Texts and shapes of `Status`, compared with what upstream's clients parse.

use super::*;
use crate::field::Path;

#[test]
fn a_missing_object_of_a_named_group_is_named_with_its_group() {
    let error = ApiError::not_found("apps", "deployments", "web");
    assert_eq!(
        error.to_status(),
        json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"deployments.apps \"web\" not found","reason":"NotFound",
            "details":{"name":"web","group":"apps","kind":"deployments"},"code":404})
    );
}

#[test]
fn a_stale_update_says_to_try_again_with_the_latest_version() {
    assert_eq!(
        ApiError::stale("", "pods", "a").message,
        "Operation cannot be fulfilled on pods \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
}

#[test]
fn several_field_errors_are_bracketed_and_each_is_a_cause() {
    let root = Path::new("spec");
    let errors = vec![
        FieldError::required(&root.child("selector"), ""),
        FieldError::invalid(
            &root.child("replicas"),
            -1,
            "must be greater than or equal to 0",
        ),
        FieldError::required(&root.child("selector"), ""),
    ];
    let error = ApiError::invalid("apps", "Deployment", "web", &errors);
    assert_eq!(
        error.message,
        "Deployment.apps \"web\" is invalid: [spec.selector: Required value, \
         spec.replicas: Invalid value: -1: must be greater than or equal to 0]"
    );
    let causes = &error.details.expect("details").causes;
    assert_eq!(causes.len(), 3);
    assert_eq!(causes[1].reason, "FieldValueInvalid");
    assert_eq!(
        causes[1].message,
        "Invalid value: -1: must be greater than or equal to 0"
    );
}

#[test]
fn a_future_revision_is_a_timeout_with_the_cause_clients_look_for() {
    let status = ApiError::resource_version_too_large(9, 3).to_status();
    assert_eq!(status["code"], 504);
    assert_eq!(
        status["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(status["details"]["retryAfterSeconds"], 1);
}

#[test]
fn forbidden_names_what_is_known() {
    assert_eq!(
        ApiError::forbidden("", "", "", "no").message,
        "forbidden: no"
    );
    assert_eq!(
        ApiError::forbidden("", "pods", "", "no").message,
        "pods is forbidden: no"
    );
    assert_eq!(
        ApiError::forbidden("apps", "deployments", "d", "no").message,
        "deployments.apps \"d\" is forbidden: no"
    );
}
