//! List objects: `PodList` and the like.

use serde_json::{Map, Value, json};

/// What a list says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// Revision the list is consistent at.
    pub resource_version: u64,
    /// Token of the next page; empty: the last page.
    pub continue_token: String,
    /// Objects after this page; only known without selectors.
    pub remaining_item_count: Option<u64>,
}

impl ListMeta {
    /// The `metadata` of a list.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert(
            "resourceVersion".to_owned(),
            self.resource_version.to_string().into(),
        );
        if !self.continue_token.is_empty() {
            map.insert("continue".to_owned(), self.continue_token.as_str().into());
        }
        if let Some(count) = self.remaining_item_count {
            map.insert("remainingItemCount".to_owned(), count.into());
        }
        Value::Object(map)
    }
}

/// A list object of `kind`'s list kind.
pub fn list(kind: &crate::Kind, meta: &ListMeta, items: Vec<Value>) -> Value {
    json!({
        "kind": kind.list_kind(), "apiVersion": kind.api_version(),
        "metadata": meta.to_json(), "items": items,
    })
}
