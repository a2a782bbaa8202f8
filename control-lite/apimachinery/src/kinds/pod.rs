//! Pod: the table entry and what creation adds to it.

mod columns;
mod containers;
mod defaults;
mod environment;
mod qos;
mod scheduling;
mod spec;
mod update;
mod volumes;

pub(super) use defaults::pod_spec as default_pod_spec;
pub use qos::qos_class;
pub(super) use scheduling::validate_taint_effect;
pub(super) use spec::{validate_port_reference, validate_spec};

use super::{ALL_VERBS, Kind, Strategy, Subresource};
use crate::field::Path;
use crate::value::{at, copy, default_to, ensure_map, set, str_at};
use serde_json::{Value, json};

/// The table entry.
pub static POD: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource {
            name: "status",
            group: "",
            version: "v1",
            kind: "Pod",
            verbs: &["get", "patch", "update"],
        },
        Subresource {
            name: "binding",
            group: "",
            version: "v1",
            kind: "Binding",
            verbs: &["create"],
        },
        Subresource {
            name: "log",
            group: "",
            version: "v1",
            kind: "Pod",
            verbs: &["get"],
        },
        Subresource {
            name: "exec",
            group: "",
            version: "v1",
            kind: "PodExecOptions",
            verbs: &["create", "get"],
        },
        Subresource {
            name: "attach",
            group: "",
            version: "v1",
            kind: "PodAttachOptions",
            verbs: &["create", "get"],
        },
    ],
    message: "core.Pod",
    storage: "/pods",
    is_volatile: false,
    columns: columns::COLUMNS,
    cells: columns::row,
    field_selectors: &[
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.nominatedNodeName",
        "status.phase",
        "status.podIP",
    ],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default: defaults::pod,
        validate: |pod| {
            validate_spec(
                at(pod, "spec").unwrap_or(&Value::Null),
                &Path::new("spec"),
                true,
            )
        },
        validate_update: update::validate,
        validate_status_update: update::validate_status,
        prepare,
        has_generation: true,
        ..Strategy::PLAIN
    },
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What upstream's strategy and its always-on admission plugins (ServiceAccount, Priority, DefaultTolerationSeconds) set.
fn prepare(pod: &mut Value, old: Option<&Value>) {
    if let Some(old) = old {
        // A client that knows nothing of priorities keeps the one that was computed.
        for path in ["spec.priority", "spec.preemptionPolicy"] {
            if at(pod, path).is_none() {
                copy(old, pod, path);
            }
        }
        return;
    }
    let class = qos_class(pod);
    set(
        pod,
        "status",
        json!({"phase": "Pending", "qosClass": class}),
    );
    let spec = ensure_map(pod, "spec");
    default_to(spec, "serviceAccountName", "default");
    let account = spec.get("serviceAccountName").cloned().unwrap_or_default();
    spec.insert("serviceAccount".to_owned(), account);
    if !spec.contains_key("priority") {
        spec.insert("priority".to_owned(), 0.into());
    }
    default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
    add_default_tolerations(pod);
}

fn add_default_tolerations(pod: &mut Value) {
    let tolerations = ensure_map(pod, "spec")
        .entry("tolerations")
        .or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else {
        return;
    };
    for taint in [NOT_READY, UNREACHABLE] {
        let covers = |t: &Value| {
            [taint, ""].contains(&str_at(t, "key"))
                && ["NoExecute", ""].contains(&str_at(t, "effect"))
        };
        if !list.iter().any(covers) {
            list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}
