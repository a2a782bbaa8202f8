//! Addresses of Services as users see them: given, requested, refused, released, restored.

use serde_json::json;

use super::super::resources::SERVICES;
use super::super::tests::Fixture;
use super::*;

async fn create(fixture: &Fixture, name: &str, spec: Value) -> ApiResult<Value> {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let extra = spec.as_object().unwrap().clone();
    service["spec"].as_object_mut().unwrap().extend(extra);
    fixture.create(SERVICES, "ns", service).await
}

#[tokio::test]
async fn a_service_gets_one_address_of_the_primary_family() {
    let fixture = Fixture::new().await;
    let service = create(&fixture, "s", json!({})).await.unwrap();
    let address: IpAddr = service["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!("10.96.0.0/16".parse::<IpNet>().unwrap().contains(&address));
    assert_eq!(service["spec"]["clusterIPs"], json!([address.to_string()]));
    assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
}

#[tokio::test]
async fn a_requested_address_is_given_once_and_again_after_its_release() {
    let fixture = Fixture::new().await;
    create(&fixture, "a", json!({"clusterIP": "10.96.0.10"}))
        .await
        .unwrap();
    let error = create(&fixture, "b", json!({"clusterIP": "10.96.0.10"}))
        .await
        .unwrap_err();
    assert_eq!(
        error.message,
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to \
         allocate IP 10.96.0.10: provided IP is already allocated"
    );
    fixture.delete(SERVICES, "a").await;
    create(&fixture, "b", json!({"clusterIP": "10.96.0.10"}))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_address_outside_of_the_range_is_refused_with_the_range() {
    let fixture = Fixture::new().await;
    let error = create(&fixture, "a", json!({"clusterIP": "10.0.0.1"}))
        .await
        .unwrap_err();
    assert!(
        error.message.ends_with(
            "failed to allocate IP 10.0.0.1: the provided IP (10.0.0.1) is not in the valid \
             range. The range of valid IPs is 10.96.0.0/16"
        ),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn dual_stack_and_ipv6_services_get_what_they_ask_for() {
    let fixture = Fixture::new().await;
    let both = create(&fixture, "a", json!({"ipFamilyPolicy": "PreferDualStack"}))
        .await
        .unwrap();
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(both["spec"]["clusterIP"], both["spec"]["clusterIPs"][0]);
    let six = create(&fixture, "b", json!({"ipFamilies": ["IPv6"]}))
        .await
        .unwrap();
    assert!(
        six["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("fd00:10:96::")
    );
}

#[tokio::test]
async fn headless_services_have_no_address_but_families() {
    let fixture = Fixture::new().await;
    let spec = json!({"clusterIP": "None", "selector": {"a": "b"}});
    let service = create(&fixture, "a", spec).await.unwrap();
    assert_eq!(service["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
    let open = create(&fixture, "b", json!({"clusterIP": "None"}))
        .await
        .unwrap();
    assert_eq!(open["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(open["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
}

#[tokio::test]
async fn an_update_keeps_the_address_and_may_not_change_it() {
    let fixture = Fixture::new().await;
    let created = create(&fixture, "a", json!({})).await.unwrap();
    let mut update = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": {"name": "a"},
        "spec": {"ports": [{"port": 81}]},
    });
    let updated = fixture.update(SERVICES, update.clone()).await.unwrap();
    assert_eq!(updated["spec"]["clusterIP"], created["spec"]["clusterIP"]);
    assert_eq!(updated["spec"]["ports"][0]["port"], 81);
    update["spec"]["clusterIP"] = "10.96.0.77".into();
    let error = fixture.update(SERVICES, update).await.unwrap_err();
    assert!(
        error.message.contains("may not change once set"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn a_service_may_become_dual_stack_and_single_stack_again() {
    let fixture = Fixture::new().await;
    let mut service = create(&fixture, "a", json!({})).await.unwrap();
    service["spec"]["ipFamilyPolicy"] = "PreferDualStack".into();
    let mut both = fixture.update(SERVICES, service).await.unwrap();
    let second = both["spec"]["clusterIPs"][1].clone();
    assert!(
        second.as_str().unwrap().starts_with("fd00:10:96::"),
        "{both}"
    );
    both["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    let single = fixture.update(SERVICES, both).await.unwrap();
    assert_eq!(single["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
    let reuse = json!({"ipFamilies": ["IPv6"], "clusterIP": second});
    create(&fixture, "b", reuse).await.unwrap();
}

#[tokio::test]
async fn addresses_in_use_are_known_after_a_restart() {
    let fixture = Fixture::new().await;
    create(&fixture, "a", json!({"clusterIP": "10.96.0.10"}))
        .await
        .unwrap();
    let fixture = fixture.restart().await;
    let error = create(&fixture, "b", json!({"clusterIP": "10.96.0.10"}))
        .await
        .unwrap_err();
    assert!(
        error.message.contains("already allocated"),
        "{}",
        error.message
    );
}
