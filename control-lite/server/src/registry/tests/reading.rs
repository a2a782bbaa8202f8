//! Lists and watches: pages, selectors, revisions, shared events.

use super::*;

#[tokio::test]
async fn pages_show_one_moment_and_add_up_to_the_whole() {
    let fixture = Fixture::new().await;
    for number in 0..5 {
        fixture.config_map(&format!("c{number}")).await;
    }
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let mut options = ListOptions {
        limit: 2,
        ..ListOptions::default()
    };
    let first = registry
        .list(ctx, CONFIG_MAPS, "ns", &options)
        .await
        .unwrap();
    assert_eq!((first.items.len(), first.remaining), (2, Some(3)));
    fixture.delete(CONFIG_MAPS, "c3").await;
    let mut names: Vec<String> = first
        .items
        .iter()
        .map(|item| meta::name(item).into())
        .collect();
    options.continue_token = first.continue_token;
    while options.continue_token.is_some() {
        let page = registry
            .list(ctx, CONFIG_MAPS, "ns", &options)
            .await
            .unwrap();
        assert_eq!(page.resource_version, first.resource_version);
        names.extend(page.items.iter().map(|item| meta::name(item).to_owned()));
        options.continue_token = page.continue_token;
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4"]);
}

#[tokio::test]
async fn selectors_choose_and_say_what_they_do_not_know() {
    let fixture = Fixture::new().await;
    for number in 0..3 {
        fixture.config_map(&format!("c{number}")).await;
    }
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let labels = ListOptions {
        label_selector: "app in (c1,c2)".into(),
        ..Default::default()
    };
    let list = registry.list(ctx, CONFIG_MAPS, "", &labels).await.unwrap();
    assert_eq!(list.items.len(), 2);
    let name = ListOptions {
        field_selector: "metadata.name=c1".into(),
        ..Default::default()
    };
    let list = registry.list(ctx, CONFIG_MAPS, "ns", &name).await.unwrap();
    assert_eq!(list.items.len(), 1);
    let unknown = ListOptions {
        field_selector: "spec.x=1".into(),
        ..Default::default()
    };
    let error = registry
        .list(ctx, CONFIG_MAPS, "ns", &unknown)
        .await
        .unwrap_err();
    assert_eq!(error.code(), 400);
}

#[tokio::test]
async fn a_list_from_the_future_is_a_timeout_and_one_at_a_revision_is_exact() {
    let fixture = Fixture::new().await;
    let first = fixture.config_map("a").await;
    fixture.config_map("b").await;
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let future = (registry.current_revision() + 100).to_string();
    let future = ListOptions {
        resource_version: Some(future),
        ..Default::default()
    };
    let error = registry
        .list(ctx, CONFIG_MAPS, "ns", &future)
        .await
        .unwrap_err();
    assert_eq!(error.code(), 504);
    let exact = ListOptions {
        resource_version: Some(version(&first).to_string()),
        version_match: Some(VersionMatch::Exact),
        ..Default::default()
    };
    let list = registry.list(ctx, CONFIG_MAPS, "ns", &exact).await.unwrap();
    assert_eq!(list.items.len(), 1);
    assert_eq!(list.resource_version, version(&first));
}

async fn next(watch: &mut ObjectWatch) -> (&'static str, String) {
    let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
    let event = event
        .expect("an event in time")
        .expect("the watch is open")
        .unwrap();
    (
        event.kind().as_str(),
        meta::name(&event.object().unwrap()).to_owned(),
    )
}

fn pair(kind: &'static str, name: &str) -> (&'static str, String) {
    (kind, name.to_owned())
}

#[tokio::test]
async fn an_object_that_starts_or_stops_matching_is_added_or_deleted() {
    let fixture = Fixture::new().await;
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let options = WatchOptions {
        label_selector: "app=x".into(),
        ..Default::default()
    };
    let mut watch = registry
        .watch(ctx, CONFIG_MAPS, "ns", &options)
        .await
        .unwrap();
    fixture.config_map("c").await;
    for app in ["x", "x2", "x", "x"] {
        let relabel = |object: &mut Value| {
            meta::set_label(object, "app", app);
            let count = meta::annotation(object, "n").map_or(0, str::len);
            meta::set_annotation(object, "n", &"i".repeat(count + 1));
            Ok(())
        };
        let part = Subresource::Main;
        registry
            .modify(ctx, CONFIG_MAPS, "ns", "c", part, relabel)
            .await
            .unwrap();
    }
    fixture.delete(CONFIG_MAPS, "c").await;
    for kind in ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(next(&mut watch).await, pair(kind, "c"));
    }
}

#[tokio::test]
async fn a_watch_list_ends_its_initial_events_with_a_bookmark() {
    let fixture = Fixture::new().await;
    fixture.config_map("a").await;
    let options = WatchOptions {
        send_initial_events: true,
        bookmarks: true,
        ..Default::default()
    };
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let mut watch = registry
        .watch(ctx, CONFIG_MAPS, "", &options)
        .await
        .unwrap();
    assert_eq!(next(&mut watch).await, pair("ADDED", "a"));
    let event = watch.next().await.unwrap().unwrap();
    assert!(event.ends_initial_events());
    assert_eq!(event.resource_version(), registry.current_revision());
    fixture.config_map("b").await;
    assert_eq!(next(&mut watch).await, pair("ADDED", "b"));
}

#[tokio::test]
async fn watchers_share_one_decoded_object_and_one_line() {
    let fixture = Fixture::new().await;
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let options = WatchOptions::default();
    let mut first = registry
        .watch(ctx, CONFIG_MAPS, "", &options)
        .await
        .unwrap();
    let mut second = registry
        .watch(ctx, CONFIG_MAPS, "ns", &options)
        .await
        .unwrap();
    fixture.config_map("a").await;
    let first = first.next().await.unwrap().unwrap();
    let second = second.next().await.unwrap().unwrap();
    assert!(Arc::ptr_eq(
        &first.object().unwrap(),
        &second.object().unwrap()
    ));
    assert_eq!(
        first.line().unwrap().as_ptr(),
        second.line().unwrap().as_ptr()
    );
    let line: Value = serde_json::from_slice(&first.line().unwrap()).unwrap();
    assert_eq!(
        (&line["type"], &line["object"]),
        (&"ADDED".into(), &*first.object().unwrap())
    );
}

#[tokio::test]
async fn a_watch_of_what_is_forgotten_is_expired() {
    let fixture = Fixture::new().await;
    fixture.config_map("a").await;
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    registry
        .store()
        .compact(registry.current_revision())
        .await
        .unwrap();
    let options = WatchOptions {
        resource_version: Some("1".into()),
        ..Default::default()
    };
    let error = registry
        .watch(ctx, CONFIG_MAPS, "ns", &options)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::Expired);
}
