//! Whether a user may do something. Today every authenticated user may do everything; RBAC and the
//! Node authorizer come here and nowhere else.

use http::Method;
use tholepin_apimachinery::ApiError;

use super::route::Route;
use crate::registry::UserInfo;

/// Refuses what the user may not do, with upstream's 403.
#[expect(clippy::unnecessary_wraps, reason = "the seam where RBAC refuses")]
pub(super) fn authorize(
    _user: &UserInfo,
    _method: &Method,
    _route: &Route<'_>,
) -> Result<(), ApiError> {
    Ok(())
}
