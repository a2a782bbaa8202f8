//! Event: core/v1 (the stored form) and events.k8s.io/v1, two views of the same objects.

use super::{ALL_VERBS, Conversion, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, i64_at, str_at};
use jiff::Timestamp;
use serde_json::Value;

const COLUMNS: &[super::Column] = &[
    cells::text("Last Seen", 0, "Time since it happened last."),
    cells::text("Type", 0, "Normal or Warning."),
    cells::text("Reason", 0, "What happened, in one word."),
    cells::text("Object", 0, "What it happened to."),
    cells::text("Subobject", 1, "Which part of it."),
    cells::text("Source", 1, "Who reports it."),
    cells::text("Message", 0, "What happened."),
    cells::text("First Seen", 1, "Time since it happened first."),
    cells::integer("Count", 1, "How often it happened."),
    super::Column {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 1,
        description: "Name of the event.",
    },
];

const SELECTORS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// The table entry of core/v1.
pub static EVENT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "core.Event",
    storage: "/events",
    is_volatile: true,
    columns: COLUMNS,
    cells: row,
    field_selectors: SELECTORS,
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        validate,
        ..Strategy::PLAIN
    },
};

/// The table entry of events.k8s.io/v1.
pub static EVENTS_EVENT: Kind = Kind {
    group: "events.k8s.io",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "events.Event",
    storage: "/events",
    is_volatile: true,
    columns: COLUMNS,
    cells: |object, now| row(&to_core(object.clone()), now),
    field_selectors: SELECTORS,
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        validate: validate_events_v1,
        conversion: Some(Conversion {
            to_storage: to_core,
            from_storage: to_events,
        }),
        ..Strategy::PLAIN
    },
};

/// `(core/v1, events.k8s.io/v1)` names of the fields that differ.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: Value, api_version: &str, pairs: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(map) = object else {
        return object;
    };
    let renamed = map.into_iter().map(|(key, value)| match key.as_str() {
        "apiVersion" => (key, api_version.into()),
        other => (
            pairs(other).map_or_else(|| other.to_owned(), str::to_owned),
            value,
        ),
    });
    Value::Object(renamed.collect())
}

fn to_core(object: Value) -> Value {
    rename(object, "v1", |key| {
        RENAMED.iter().find(|(_, e)| *e == key).map(|(c, _)| *c)
    })
}

fn to_events(object: Value) -> Value {
    rename(object, "events.k8s.io/v1", |key| {
        RENAMED.iter().find(|(c, _)| *c == key).map(|(_, e)| *e)
    })
}

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let since = |path: &str| crate::duration::since(str_at(event, path), now);
    let first = if str_at(event, "firstTimestamp").is_empty() {
        since("eventTime")
    } else {
        since("firstTimestamp")
    };
    let mut last = if str_at(event, "lastTimestamp").is_empty() {
        first.clone()
    } else {
        since("lastTimestamp")
    };
    let mut count = i64_at(event, "count").unwrap_or_default();
    if at(event, "series").is_some() {
        last = since("series.lastObservedTime");
        count = i64_at(event, "series.count").unwrap_or_default();
    } else if count == 0 {
        count = 1;
    }
    let (kind, name) = (
        str_at(event, "involvedObject.kind").to_lowercase(),
        str_at(event, "involvedObject.name"),
    );
    let target = if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    };
    vec![
        last.into(),
        str_at(event, "type").into(),
        str_at(event, "reason").into(),
        target.into(),
        str_at(event, "involvedObject.fieldPath").into(),
        source(event).into(),
        str_at(event, "message").trim().into(),
        first.into(),
        count.into(),
        cells::name(event),
    ]
}

fn source(event: &Value) -> String {
    let either = |a, b| match str_at(event, a) {
        "" => str_at(event, b),
        text => text,
    };
    let component = either("source.component", "reportingComponent");
    let host = either("source.host", "reportingInstance");
    if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    }
}

fn validate(event: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (own, involved) = (
        crate::meta::namespace(event),
        str_at(event, "involvedObject.namespace"),
    );
    // Events about cluster-scoped objects live in `default`.
    let is_in_place = if involved.is_empty() {
        own == "default" || own == "kube-system"
    } else {
        own == involved
    };
    if !is_in_place {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(FieldError::invalid(
            &path,
            involved,
            "does not match event.namespace",
        ));
    }
    errors
}

/// Takes the stored form or the request's; paths are the request's.
fn validate_events_v1(event: &Value) -> ErrorList {
    let core = to_core(event.clone());
    let mut errors = validate(&core);
    for (key, stored) in [
        ("reportingController", "reportingComponent"),
        ("reportingInstance", "reportingInstance"),
        ("action", "action"),
        ("reason", "reason"),
    ] {
        if str_at(&core, stored).is_empty() {
            errors.push(FieldError::required(&Path::new(key), ""));
        }
    }
    if !["Normal", "Warning"].contains(&str_at(&core, "type")) {
        let value = str_at(&core, "type");
        let detail = format!("has invalid value: {value}");
        errors.push(FieldError::invalid(&Path::new("type"), "", detail));
    }
    if at(&core, "eventTime").is_none() {
        errors.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_versions_convert_without_loss() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"name": "p"},
            "message": "m", "source": {"component": "c"}, "count": 2, "reportingComponent": "r", "reason": "x"});
        let events = to_events(core.clone());
        assert_eq!(events["apiVersion"], "events.k8s.io/v1");
        assert_eq!(
            (
                &events["regarding"]["name"],
                &events["note"],
                &events["reportingController"]
            ),
            (&json!("p"), &json!("m"), &json!("r"))
        );
        assert_eq!(to_core(events), core);
    }

    #[test]
    fn an_event_of_the_new_version_is_valid_in_both_forms() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "d"},
            "regarding": {"kind": "Pod", "namespace": "d", "name": "p"}, "reportingController": "agent", "reportingInstance": "n1",
            "action": "Pull", "reason": "Pulled", "type": "Normal", "note": "done", "eventTime": "2026-01-01T00:00:00.000000Z"});
        assert_eq!(EVENTS_EVENT.validate_create(&event), Ok(()));
        assert_eq!(
            EVENTS_EVENT.validate_create(&EVENTS_EVENT.to_storage(event)),
            Ok(())
        );
        let bare = json!({"metadata": {"name": "e", "namespace": "default"}});
        let error = EVENTS_EVENT
            .validate_create(&bare)
            .expect_err("nothing given")
            .message;
        for field in [
            "reportingController: Required value",
            "action: Required value",
            "eventTime: Required value",
            "type: Invalid value",
        ] {
            assert!(error.contains(field), "{error}");
        }
    }
}
