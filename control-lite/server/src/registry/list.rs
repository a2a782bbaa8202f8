//! Lists: revisions, pages and selectors.

use tholepin_apimachinery::continue_token::ContinueToken;
use tholepin_apimachinery::{ApiError, Kind};
use tholepin_store::{KeyValue, ListRequest, Listed, StoreError};

use super::selection::Selection;
use super::{
    ApiResult, ListOptions, ObjectList, Registry, RequestContext, Resource, VersionMatch, folder,
    key, store_error, stored,
};

/// With selectors a page is filled from reads of at least this many objects.
const MIN_READ: usize = 500;

/// A list as it lies in the store: for clients that want JSON nothing has to be parsed.
#[derive(Debug)]
pub(crate) struct StoredList {
    pub(crate) items: Vec<KeyValue>,
    pub(crate) resource_version: u64,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

/// Where a list starts and which moment it shows.
struct Position {
    revision: Option<u64>,
    start: Option<String>,
}

impl Registry {
    /// The objects of a namespace, or of all (`namespace` empty).
    pub async fn list(
        &self,
        _ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> ApiResult<ObjectList> {
        let kind = resource.kind()?;
        let list = self.list_stored(kind, namespace, options).await?;
        let decode =
            |item: &KeyValue| Ok(kind.from_storage(stored::decode(&item.value, item.revision)?));
        Ok(ObjectList {
            items: list.items.iter().map(decode).collect::<ApiResult<_>>()?,
            resource_version: list.resource_version,
            continue_token: list.continue_token,
            remaining: list.remaining,
        })
    }

    pub(crate) async fn list_stored(
        &self,
        kind: &'static Kind,
        namespace: &str,
        options: &ListOptions,
    ) -> ApiResult<StoredList> {
        let selection = Selection::parse(kind, &options.label_selector, &options.field_selector)?;
        let namespace = match selection.only_namespace() {
            Some(only) if namespace.is_empty() && kind.is_namespaced => only,
            _ => namespace,
        };
        let prefix = folder(kind, namespace);
        let position = self.position(&prefix, options)?;
        if let Some(name) = selection.only_name()
            && position.revision.is_none()
            && (!namespace.is_empty() || !kind.is_namespaced)
        {
            return self.list_one(kind, namespace, name, &selection).await;
        }
        self.list_folder(prefix, position, options.limit, &selection)
            .await
    }

    /// The list of one object, by its name.
    async fn list_one(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        selection: &Selection,
    ) -> ApiResult<StoredList> {
        let key = key(kind, namespace, name);
        let fetched = self.shared.store.get(&key).await.map_err(store_error)?;
        let mut items = Vec::new();
        if let Some(found) = fetched.stored {
            let item = KeyValue {
                key: key.into(),
                value: found.value,
                revision: found.revision,
            };
            if selects(selection, &item)? {
                items.push(item);
            }
        }
        let resource_version = fetched.revision;
        Ok(StoredList {
            items,
            resource_version,
            continue_token: None,
            remaining: None,
        })
    }

    async fn list_folder(
        &self,
        prefix: String,
        position: Position,
        limit: usize,
        selection: &Selection,
    ) -> ApiResult<StoredList> {
        let Position {
            mut revision,
            mut start,
        } = position;
        let continued = start.is_some();
        let everything = selection.is_everything();
        let mut items = Vec::new();
        loop {
            let read = match limit {
                0 => 0,
                limit if everything => limit,
                limit => limit.max(MIN_READ),
            };
            let request = ListRequest {
                prefix: prefix.clone(),
                revision,
                start: start.clone(),
                limit: read,
            };
            let listed = self
                .shared
                .store
                .list(request)
                .await
                .map_err(|error| match error {
                    StoreError::Compacted { .. } if continued => {
                        ApiError::continue_expired(inconsistent(&prefix, start.as_deref()))
                    }
                    error => store_error(error),
                })?;
            // Further reads of this request show the same moment.
            revision = Some(listed.revision);
            let Listed {
                items: page,
                remaining,
                revision: resource_version,
            } = listed;
            let last_read = page.last().map(|item| item.key.clone());
            let mut page = page.into_iter();
            for item in page.by_ref() {
                if everything || selects(selection, &item)? {
                    items.push(item);
                    if limit > 0 && items.len() == limit {
                        break;
                    }
                }
            }
            let behind = page.len() + remaining;
            let is_full = limit > 0 && items.len() == limit;
            if behind == 0 || is_full {
                let continue_token = (behind > 0)
                    .then(|| items.last())
                    .flatten()
                    .map(|last| ContinueToken::after(&last.key[prefix.len()..], revision).encode());
                // How many of those behind a selector would match is not known.
                let remaining = continue_token
                    .as_ref()
                    .filter(|_| everything)
                    .map(|_| behind);
                return Ok(StoredList {
                    items,
                    resource_version,
                    continue_token,
                    remaining,
                });
            }
            start = last_read.map(|key| format!("{key}\0"));
        }
    }

    fn position(&self, prefix: &str, options: &ListOptions) -> ApiResult<Position> {
        let asked = options
            .resource_version
            .as_deref()
            .filter(|version| !version.is_empty());
        if let Some(token) = options
            .continue_token
            .as_deref()
            .filter(|token| !token.is_empty())
        {
            if asked.is_some_and(|version| version != "0") {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = ContinueToken::decode(token)?;
            let start = Some(format!("{prefix}{}", token.start));
            return Ok(Position {
                revision: token.revision,
                start,
            });
        }
        let version = match asked {
            None | Some("0") => {
                return Ok(Position {
                    revision: None,
                    start: None,
                });
            }
            Some(version) => parse_version(version)?,
        };
        let exact = match options.version_match {
            Some(version_match) => version_match == VersionMatch::Exact,
            None => options.limit > 0,
        };
        let current = self.current_revision();
        if version > current {
            return Err(ApiError::resource_version_too_large(version, current));
        }
        Ok(Position {
            revision: exact.then_some(version),
            start: None,
        })
    }
}

/// A token that goes on at `start`, at whatever revision there is then.
fn inconsistent(prefix: &str, start: Option<&str>) -> String {
    let start = start.unwrap_or_default();
    let start = start.strip_prefix(prefix).unwrap_or(start).to_owned();
    let token = ContinueToken {
        revision: None,
        start,
    };
    token.encode()
}

fn selects(selection: &Selection, item: &KeyValue) -> ApiResult<bool> {
    if selection.is_everything() {
        return Ok(true);
    }
    Ok(selection.matches(&stored::decode(&item.value, item.revision)?))
}

/// A resourceVersion parameter.
pub(super) fn parse_version(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}
