//! Query parameters, parsed into the registry's options.

use std::borrow::Cow;
use std::time::Duration;

use tholepin_apimachinery::ApiError;
use tholepin_apimachinery::table::IncludeObject;

use crate::registry::{
    ApiResult, DeleteOptions, FieldValidation, ListOptions, Propagation, RequestContext,
    VersionMatch, WatchOptions,
};

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(crate) fn parse(text: Option<&'a str>) -> Self {
        Self(url::form_urlencoded::parse(text.unwrap_or_default().as_bytes()).collect())
    }

    /// The first value of a parameter; `None` if it is absent or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_ref())
            .filter(|value| !value.is_empty())
    }

    /// Every value of a parameter, in order.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let found = self.0.iter().filter(move |(key, _)| key == name);
        found.map(|(_, value)| value.as_ref())
    }

    /// Whether a parameter is there at all, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// A flag in any of Go's spellings.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE"))
    }

    fn number(&self, name: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax (parameter {name})"
            ))
        })
    }

    fn version_match(&self) -> ApiResult<Option<VersionMatch>> {
        let Some(text) = self.get("resourceVersionMatch") else {
            return Ok(None);
        };
        let forbidden = |why: &str| {
            Err(ApiError::bad_request(format!(
                "resourceVersionMatch: Forbidden: {why}"
            )))
        };
        if !self.flag("watch") && self.get("continue").is_some() {
            return forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        let version = self.get("resourceVersion");
        match text {
            "NotOlderThan" if version.is_none() && !self.flag("watch") => {
                forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided")
            }
            "NotOlderThan" => Ok(Some(VersionMatch::NotOlderThan)),
            "Exact" if version.is_none_or(|version| version == "0") => forbidden(
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\" or none",
            ),
            "Exact" => Ok(Some(VersionMatch::Exact)),
            other => Err(ApiError::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \
                 \"Exact\", \"NotOlderThan\""
            ))),
        }
    }

    pub(crate) fn list(&self) -> ApiResult<ListOptions> {
        Ok(ListOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            limit: self
                .number("limit")?
                .and_then(|limit| limit.try_into().ok())
                .unwrap_or(0),
            continue_token: self.get("continue").map(str::to_owned),
            resource_version: self.get("resourceVersion").map(str::to_owned),
            version_match: self.version_match()?,
        })
    }

    pub(crate) fn watch(&self) -> ApiResult<WatchOptions> {
        let send_initial_events = self.flag("sendInitialEvents");
        let version_match = self.version_match()?;
        let allow_bookmarks = self.flag("allowWatchBookmarks");
        if self.get("sendInitialEvents").is_some() != version_match.is_some() {
            return Err(ApiError::bad_request(if version_match.is_some() {
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch \
                 unless sendInitialEvents is provided"
            } else {
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                 resourceVersionMatch to NotOlderThan"
            }));
        }
        if send_initial_events && version_match != Some(VersionMatch::NotOlderThan) {
            return Err(ApiError::bad_request(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                 resourceVersionMatch to NotOlderThan",
            ));
        }
        Ok(WatchOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            resource_version: self.get("resourceVersion").map(str::to_owned),
            send_initial_events,
            bookmarks: allow_bookmarks,
        })
    }

    /// `timeoutSeconds`: how long a watch or list may take.
    pub(crate) fn timeout(&self) -> ApiResult<Option<Duration>> {
        let secs = self
            .number("timeoutSeconds")?
            .and_then(|secs| u64::try_from(secs).ok());
        Ok(secs.filter(|secs| *secs > 0).map(Duration::from_secs))
    }

    pub(crate) fn include_object(&self) -> ApiResult<IncludeObject> {
        let text = self.get("includeObject").unwrap_or_default();
        IncludeObject::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "Invalid value: {text:?}: must be one of None, Metadata or Object"
            ))
        })
    }

    /// Puts what a write says about itself into its context.
    pub(crate) fn fill(&self, ctx: &mut RequestContext) -> ApiResult<()> {
        for value in self
            .0
            .iter()
            .filter(|(key, _)| key == "dryRun")
            .map(|(_, value)| value)
        {
            match value.as_ref() {
                "" => (),
                "All" => ctx.dry_run = true,
                other => {
                    return Err(ApiError::bad_request(format!(
                        "dryRun: Unsupported value: {other:?}: supported values: \"All\""
                    )));
                }
            }
        }
        if let Some(manager) = self.get("fieldManager") {
            ctx.field_manager = manager.to_owned();
        }
        let validation = self.get("fieldValidation").unwrap_or_default();
        ctx.field_validation = FieldValidation::parse(validation)?;
        Ok(())
    }

    /// Options of a deletion given as parameters; a body wins over them.
    pub(crate) fn delete(&self) -> ApiResult<DeleteOptions> {
        Ok(DeleteOptions {
            grace_period_seconds: self.number("gracePeriodSeconds")?,
            propagation: self.get("propagationPolicy").map(propagation).transpose()?,
            ..DeleteOptions::default()
        })
    }
}

/// A propagation policy by its name.
pub(crate) fn propagation(text: &str) -> ApiResult<Propagation> {
    match text {
        "Orphan" => Ok(Propagation::Orphan),
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        other => Err(ApiError::bad_request(format!(
            "propagationPolicy: Unsupported value: {other:?}: supported values: \
             \"Background\", \"Foreground\", \"Orphan\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lists_parameters_become_options() {
        let query = Query::parse(Some("limit=500&labelSelector=app%3Dx&resourceVersion=0"));
        let list = query.list().unwrap();
        assert_eq!((list.limit, list.label_selector.as_str()), (500, "app=x"));
        assert_eq!(list.resource_version.as_deref(), Some("0"));
    }

    #[test]
    fn a_watch_list_needs_its_version_match() {
        let complete = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        assert!(
            Query::parse(Some(complete))
                .watch()
                .unwrap()
                .send_initial_events
        );
        assert!(
            Query::parse(Some("watch=true&sendInitialEvents=true"))
                .watch()
                .is_err()
        );
        let without = "watch=true&resourceVersionMatch=NotOlderThan";
        assert!(Query::parse(Some(without)).watch().is_err());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let mut ctx = RequestContext::default();
        let error = Query::parse(Some("dryRun=Some"))
            .fill(&mut ctx)
            .unwrap_err();
        assert!(error.message.contains("dryRun"), "{}", error.message);
        let error = Query::parse(Some("limit=x")).list().unwrap_err();
        assert!(error.message.contains("limit"), "{}", error.message);
    }
}
