//! What is accepted but not acted upon yet is said to the client, as a warning.

use serde_json::Value;
use tholepin_apimachinery::Kind;
use tholepin_apimachinery::value::{list_at, str_at};

use super::RequestContext;

/// Warns of fields that nothing serves yet, when they are new to the object.
pub(super) fn warn(ctx: &RequestContext, kind: &Kind, object: &Value, before: Option<&Value>) {
    if kind.kind != "Service" {
        return;
    }
    let type_ = str_at(object, "spec.type");
    let had = before.map(|before| str_at(before, "spec.type"));
    if matches!(type_, "NodePort" | "LoadBalancer") && had != Some(type_) {
        ctx.warnings.push(format!(
            "spec.type: {type_} is not served by this version: the Service gets its cluster IP only"
        ));
    }
    let externals = list_at(object, "spec.externalIPs");
    let had = before.map_or(&[][..], |before| list_at(before, "spec.externalIPs"));
    if !externals.is_empty() && externals != had {
        ctx.warnings.push(
            "spec.externalIPs: not served by this version: the addresses are not answered"
                .to_owned(),
        );
    }
}
