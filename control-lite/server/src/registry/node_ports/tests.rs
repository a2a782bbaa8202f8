//! Node ports as users see them: given, requested, refused, kept, released.

use serde_json::json;

use super::super::resources::SERVICES;
use super::super::tests::Fixture;
use super::*;

async fn create(fixture: &Fixture, name: &str, spec: Value) -> ApiResult<Value> {
    let object = json!({"metadata": {"name": name}, "spec": spec});
    fixture.create(SERVICES, "ns", object).await
}

fn node_ports(service: &Value) -> Vec<i64> {
    let ports = list_at(service, "spec.ports").iter();
    ports
        .map(|port| i64_at(port, "nodePort").unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn a_node_port_service_gets_ports_of_the_range_one_for_both_protocols() {
    let fixture = Fixture::new().await;
    let spec = json!({"type": "NodePort", "ports": [
        {"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 80},
    ]});
    let ports = node_ports(&create(&fixture, "dns", spec).await.unwrap());
    assert!(
        ports.iter().all(|port| (30_000..=32_767).contains(port)),
        "{ports:?}"
    );
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], ports[2]);
    let plain = create(&fixture, "plain", json!({"ports": [{"port": 80}]}))
        .await
        .unwrap();
    assert_eq!(node_ports(&plain), [0]);
}

#[tokio::test]
async fn a_requested_port_is_given_once_and_again_after_its_release() {
    let fixture = Fixture::new().await;
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    create(&fixture, "a", spec.clone()).await.unwrap();
    let error = create(&fixture, "b", spec.clone()).await.unwrap_err();
    assert_eq!(
        error.message,
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is \
         already allocated"
    );
    fixture.delete(SERVICES, "a").await;
    create(&fixture, "b", spec).await.unwrap();
}

#[tokio::test]
async fn a_port_outside_of_the_range_is_refused_with_the_range() {
    let fixture = Fixture::new().await;
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
    let error = create(&fixture, "a", spec).await.unwrap_err();
    assert_eq!(
        error.message,
        "Service \"a\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in \
         the valid range. The range of valid ports is 30000-32767"
    );
}

#[tokio::test]
async fn a_local_load_balancer_gets_a_health_check_port() {
    let fixture = Fixture::new().await;
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
    });
    let service = create(&fixture, "lb", spec).await.unwrap();
    let port = i64_at(&service, "spec.healthCheckNodePort").unwrap();
    assert!((30_000..=32_767).contains(&port) && !node_ports(&service).contains(&port));
    let spec = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}],
    });
    let service = create(&fixture, "lb2", spec).await.unwrap();
    assert_eq!(node_ports(&service), [0]);
    assert_eq!(i64_at(&service, "spec.healthCheckNodePort"), None);
}

#[tokio::test]
async fn a_failed_write_gives_its_ports_back() {
    let ports = NodePorts::default();
    let kind = SERVICES.kind().unwrap();
    let mut service =
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
    let lease = ports.assign(kind, &mut service, None).unwrap();
    assert_eq!(ports.set().len(), 1);
    drop(lease);
    assert!(ports.set().is_empty());
    ports.assign(kind, &mut service, None).unwrap().keep();
    // Another number: the old one is given back, but only when the write has happened.
    let old = service.clone();
    set(&mut service["spec"]["ports"][0], "nodePort", 30_081);
    let lease = ports.assign(kind, &mut service, Some(&old)).unwrap();
    assert_eq!(
        ports.set().iter().copied().collect::<Vec<_>>(),
        [30_080, 30_081]
    );
    lease.keep();
    assert_eq!(ports.set().iter().copied().collect::<Vec<_>>(), [30_081]);
}
