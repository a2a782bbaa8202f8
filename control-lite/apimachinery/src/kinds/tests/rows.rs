//! Rows of `kubectl get -o wide`, kind by kind.

use super::*;

fn row(kind: &Kind, mut object: Value) -> Vec<String> {
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let text = |cell: Value| {
        cell.as_str()
            .map_or_else(|| cell.to_string(), str::to_owned)
    };
    kind.row_cells(&object, now())
        .into_iter()
        .map(text)
        .collect()
}

#[test]
fn nodes_show_state_roles_and_addresses() {
    let node = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "172.30.0.11"}],
        "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Debian", "kernelVersion": "6.18", "containerRuntimeVersion": "containerd://1.6.20"}}});
    assert_eq!(
        row(&NODE, node),
        [
            "n1",
            "Ready,SchedulingDisabled",
            "edge,worker",
            "10m",
            "v1.35.0",
            "172.30.0.11",
            "<none>",
            "Debian",
            "6.18",
            "containerd://1.6.20"
        ]
    );
    assert_eq!(
        row(
            &NODE,
            json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
        )[1],
        "NotReady"
    );
    assert_eq!(
        row(&NODE, json!({"metadata": {"name": "n"}}))[1..3],
        ["Unknown", "<none>"]
    );
}

#[test]
fn services_show_type_addresses_and_ports() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
        "selector": {"b": "2", "a": "1"}, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}});
    assert_eq!(
        row(&SERVICE, service),
        [
            "s",
            "NodePort",
            "10.96.0.9",
            "<none>",
            "80:30080/TCP,53/UDP",
            "10m",
            "a=1,b=2"
        ]
    );
    let named = json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "example.com"}});
    assert_eq!(
        row(&SERVICE, named),
        [
            "s",
            "ExternalName",
            "<none>",
            "example.com",
            "<none>",
            "10m",
            "<none>"
        ]
    );
    let balanced = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"]}});
    assert_eq!(row(&SERVICE, balanced)[3], "<pending>");
}

#[test]
fn workloads_show_counts_containers_and_selector() {
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "template": {"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}}});
    let status =
        json!({"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
    let object = json!({"metadata": {"name": "web"}, "spec": spec, "status": status});
    assert_eq!(
        row(&DEPLOYMENT, object.clone()),
        ["web", "2/3", "3", "1", "10m", "a,b", "a:1,b:1", "app=web"]
    );
    assert_eq!(
        row(&REPLICA_SET, object.clone()),
        ["web", "3", "3", "2", "10m", "a,b", "a:1,b:1", "app=web"]
    );
    let mut rc = object;
    rc["spec"]["selector"] = json!({"app": "web"});
    assert_eq!(
        row(&REPLICATION_CONTROLLER, rc),
        ["web", "3", "3", "2", "10m", "a,b", "a:1,b:1", "app=web"]
    );
}

#[test]
fn endpoints_show_three_addresses_and_how_many_more() {
    let subsets = json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]);
    assert_eq!(
        row(
            &ENDPOINTS,
            json!({"metadata": {"name": "e"}, "subsets": subsets})
        )[1],
        "10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more..."
    );
    assert_eq!(
        row(&ENDPOINTS, json!({"metadata": {"name": "e"}}))[1],
        "<none>"
    );
    let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}, {}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
    assert_eq!(
        row(&ENDPOINT_SLICE, slice),
        ["e", "IPv4", "80,x,*", "10.0.0.1,10.0.0.2", "10m"]
    );
    assert_eq!(
        row(
            &ENDPOINT_SLICE,
            json!({"metadata": {"name": "e"}, "addressType": "IPv4"})
        )[2..4],
        ["<unset>", "<unset>"]
    );
}

#[test]
fn events_show_when_what_and_who() {
    let event = json!({"metadata": {"name": "e.1"}, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"},
        "type": "Normal", "reason": "Pulled", "message": " done \n", "source": {"component": "agent", "host": "n1"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z", "count": 4});
    assert_eq!(
        row(&EVENT, event),
        [
            "60s",
            "Normal",
            "Pulled",
            "pod/p",
            "spec.containers{a}",
            "agent, n1",
            "done",
            "10m",
            "4",
            "e.1"
        ]
    );
    let series = json!({"metadata": {"name": "e.2"}, "involvedObject": {"kind": "Node"}, "eventTime": "2026-01-01T00:05:00.000000Z",
        "series": {"count": 7, "lastObservedTime": "2026-01-01T00:09:50.000000Z"}, "reportingComponent": "r"});
    assert_eq!(
        row(&EVENT, series),
        ["10s", "", "", "node", "", "r", "", "5m", "7", "e.2"]
    );
}

#[test]
fn the_small_kinds_show_their_counts() {
    let data = json!({"metadata": {"name": "x"}, "data": {"a": "", "b": ""}, "binaryData": {"c": ""}, "type": "Opaque", "secrets": [{"name": "s"}],
        "spec": {"holderIdentity": "n1"}, "status": {"phase": "Active"}});
    assert_eq!(row(&CONFIG_MAP, data.clone()), ["x", "3", "10m"]);
    assert_eq!(row(&SECRET, data.clone()), ["x", "Opaque", "2", "10m"]);
    assert_eq!(row(&SERVICE_ACCOUNT, data.clone()), ["x", "1", "10m"]);
    assert_eq!(row(&LEASE, data.clone()), ["x", "n1", "10m"]);
    assert_eq!(row(&NAMESPACE, data), ["x", "Active", "10m"]);
}

#[test]
fn a_table_carries_columns_rows_and_what_was_asked_for() {
    use crate::list::ListMeta;
    use crate::table::{IncludeObject, table};
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Succeeded"}});
    let meta = ListMeta {
        resource_version: 7,
        continue_token: "t".to_owned(),
        remaining_item_count: Some(2),
    };
    let full = table(
        &POD,
        &meta,
        std::slice::from_ref(&pod),
        IncludeObject::Metadata,
        true,
        now(),
    );
    assert_eq!(
        full["metadata"],
        json!({"resourceVersion": "7", "continue": "t", "remainingItemCount": 2})
    );
    assert_eq!(
        full["columnDefinitions"][0],
        json!({"name": "Name", "type": "string", "format": "name", "description": "Unique within its namespace.", "priority": 0})
    );
    assert_eq!(
        full["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "p"}})
    );
    assert_eq!(full["rows"][0]["conditions"][0]["type"], "Completed");
    let bare = table(
        &POD,
        &meta,
        std::slice::from_ref(&pod),
        IncludeObject::None,
        false,
        now(),
    );
    assert!(bare["rows"][0].get("object").is_none() && bare["columnDefinitions"] == json!([]));
    let whole = table(
        &POD,
        &meta,
        std::slice::from_ref(&pod),
        IncludeObject::Object,
        true,
        now(),
    );
    assert_eq!(whole["rows"][0]["object"], pod);
}
