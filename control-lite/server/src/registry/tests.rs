//! The registry over a real embedded store: names, versions, lifecycle.

mod reading;

use serde_json::json;
use tholepin_store::{EmbeddedOptions, EmbeddedStore};

use super::*;
use crate::registry::resources::{CONFIG_MAPS, NAMESPACES, NODES, PODS, REPLICA_SETS, SERVICES};
use tholepin_apimachinery::error::Reason;
use tholepin_apimachinery::meta;

pub(super) struct Fixture {
    pub(super) registry: Registry,
    pub(super) ctx: RequestContext,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// A registry with the namespace `ns`.
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(&folder, RegistryConfig::default()).await;
        let fixture = Self {
            registry,
            ctx: RequestContext::component("test"),
            folder,
        };
        fixture
            .create(NAMESPACES, "", json!({"metadata": {"name": "ns"}}))
            .await
            .unwrap();
        fixture
    }

    pub(super) async fn create(
        &self,
        resource: GroupResource,
        namespace: &str,
        object: Value,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        let mut typed = json!({"kind": kind.kind, "apiVersion": kind.api_version()});
        let fields = object.as_object().unwrap().clone();
        typed.as_object_mut().unwrap().extend(fields);
        self.registry
            .create(&self.ctx, resource, namespace, typed)
            .await
    }

    pub(super) async fn config_map(&self, name: &str) -> Value {
        let object = json!({"metadata": {"name": name, "labels": {"app": name}}});
        self.create(CONFIG_MAPS, "ns", object).await.unwrap()
    }

    pub(super) async fn pod(&self, name: &str) -> Value {
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        self.create(PODS, "ns", pod).await.unwrap()
    }

    pub(super) async fn delete(&self, resource: GroupResource, name: &str) -> DeleteOutcome {
        let options = DeleteOptions::default();
        self.registry
            .delete(&self.ctx, resource, "ns", name, &options)
            .await
            .unwrap()
    }

    pub(super) async fn update(&self, resource: GroupResource, object: Value) -> ApiResult<Value> {
        let name = meta::name(&object).to_owned();
        let part = Subresource::Main;
        self.registry
            .update(&self.ctx, resource, "ns", &name, part, object)
            .await
    }

    pub(super) async fn restart(self) -> Self {
        self.registry.store().close().await.unwrap();
        let registry = open(&self.folder, RegistryConfig::default()).await;
        Self { registry, ..self }
    }
}

async fn open(folder: &tempfile::TempDir, config: RegistryConfig) -> Registry {
    let store = EmbeddedStore::open(&EmbeddedOptions::new(folder.path().join("s.redb"))).unwrap();
    Registry::open(Arc::new(store), config).await.unwrap()
}

fn version(object: &Value) -> u64 {
    meta::resource_version(object).parse().unwrap()
}

#[tokio::test]
async fn a_new_object_gets_what_only_the_server_gives() {
    let fixture = Fixture::new().await;
    let created = fixture.config_map("c").await;
    assert_eq!(meta::uid(&created).len(), 36);
    assert!(!meta::creation_timestamp(&created).is_empty());
    assert_eq!(meta::namespace(&created), "ns");
    assert_eq!(version(&created), fixture.registry.current_revision());
    let read = fixture
        .registry
        .get(&fixture.ctx, CONFIG_MAPS, "ns", "c")
        .await
        .unwrap();
    assert_eq!(read, created);
}

#[tokio::test]
async fn a_taken_name_is_already_exists_and_a_generated_one_is_unique() {
    let fixture = Fixture::new().await;
    fixture.config_map("c").await;
    let again = json!({"metadata": {"name": "c"}});
    let error = fixture.create(CONFIG_MAPS, "ns", again).await.unwrap_err();
    assert_eq!(error.reason, Reason::AlreadyExists);
    assert_eq!(error.message, "configmaps \"c\" already exists");
    let generated = json!({"metadata": {"generateName": "web-"}});
    let first = fixture
        .create(CONFIG_MAPS, "ns", generated.clone())
        .await
        .unwrap();
    let second = fixture.create(CONFIG_MAPS, "ns", generated).await.unwrap();
    assert!(meta::name(&first).starts_with("web-") && meta::name(&first).len() == 9);
    assert_ne!(meta::name(&first), meta::name(&second));
}

#[tokio::test]
async fn a_stale_update_conflicts_and_an_unversioned_one_wins() {
    let fixture = Fixture::new().await;
    let first = fixture.config_map("c").await;
    let mut changed = first.clone();
    changed["data"] = json!({"a": "1"});
    let second = fixture.update(CONFIG_MAPS, changed.clone()).await.unwrap();
    assert!(version(&second) > version(&first));
    let error = fixture.update(CONFIG_MAPS, changed).await.unwrap_err();
    assert_eq!(error.reason, Reason::Conflict);
    assert!(
        error
            .message
            .contains("please apply your changes to the latest version")
    );
    let mut unversioned = json!({"metadata": {"name": "c"}, "data": {"a": "2"}});
    unversioned["kind"] = "ConfigMap".into();
    unversioned["apiVersion"] = "v1".into();
    let third = fixture.update(CONFIG_MAPS, unversioned).await.unwrap();
    assert_eq!(third["data"]["a"], "2");
    assert_eq!(meta::uid(&third), meta::uid(&first));
}

#[tokio::test]
async fn an_update_that_changes_nothing_writes_nothing() {
    let fixture = Fixture::new().await;
    let created = fixture.pod("p").await;
    let before = fixture.registry.current_revision();
    let updated = fixture.update(PODS, created.clone()).await.unwrap();
    assert_eq!(updated, created);
    assert_eq!(fixture.registry.current_revision(), before);
}

#[tokio::test]
async fn a_dry_run_shows_the_result_and_keeps_nothing() {
    let fixture = Fixture::new().await;
    let before = fixture.registry.current_revision();
    let ctx = RequestContext {
        dry_run: true,
        ..RequestContext::default()
    };
    let service = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.10"},
    });
    for _ in 0..2 {
        let shown = fixture
            .registry
            .create(&ctx, SERVICES, "ns", service.clone())
            .await
            .unwrap();
        assert_eq!(shown["spec"]["clusterIPs"], json!(["10.96.0.10"]));
    }
    assert_eq!(fixture.registry.current_revision(), before);
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_is_missing_or_going() {
    let fixture = Fixture::new().await;
    let object = json!({"metadata": {"name": "c"}});
    let error = fixture
        .create(CONFIG_MAPS, "none", object.clone())
        .await
        .unwrap_err();
    assert_eq!(error.message, "namespaces \"none\" not found");
    let options = DeleteOptions::default();
    let deleted = fixture
        .registry
        .delete(&fixture.ctx, NAMESPACES, "", "ns", &options)
        .await
        .unwrap();
    let DeleteOutcome::Terminating(namespace) = deleted else {
        panic!("deleted at once")
    };
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let error = fixture.create(CONFIG_MAPS, "ns", object).await.unwrap_err();
    assert_eq!(error.reason, Reason::Forbidden);
    assert_eq!(
        error.message,
        "configmaps \"c\" is forbidden: unable to create new content in namespace ns because it \
         is being terminated"
    );
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_finalized() {
    let fixture = Fixture::new().await;
    let options = DeleteOptions::default();
    fixture
        .registry
        .delete(&fixture.ctx, NAMESPACES, "", "ns", &options)
        .await
        .unwrap();
    let finalize = |namespace: &mut Value| {
        namespace["spec"]["finalizers"] = json!([]);
        Ok(())
    };
    fixture
        .registry
        .modify(
            &fixture.ctx,
            NAMESPACES,
            "",
            "ns",
            Subresource::Finalize,
            finalize,
        )
        .await
        .unwrap();
    let error = fixture
        .registry
        .get(&fixture.ctx, NAMESPACES, "", "ns")
        .await
        .unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_one_goes() {
    let fixture = Fixture::new().await;
    let object = json!({"metadata": {"name": "c", "finalizers": ["x.example/a"]}});
    fixture.create(CONFIG_MAPS, "ns", object).await.unwrap();
    let outcome = fixture.delete(CONFIG_MAPS, "c").await;
    let DeleteOutcome::Terminating(mut held) = outcome else {
        panic!("deleted at once")
    };
    assert!(meta::is_deleting(&held));
    let again = fixture.delete(CONFIG_MAPS, "c").await;
    assert_eq!(
        version(again.object()),
        version(&held),
        "a second deletion changes nothing"
    );
    meta::remove_finalizer(&mut held, "x.example/a");
    fixture.update(CONFIG_MAPS, held).await.unwrap();
    let gone = fixture
        .registry
        .get(&fixture.ctx, CONFIG_MAPS, "ns", "c")
        .await;
    assert!(gone.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_unscheduled_pod_goes_at_once_and_a_scheduled_one_takes_its_time() {
    let fixture = Fixture::new().await;
    fixture.pod("a").await;
    assert!(matches!(
        fixture.delete(PODS, "a").await,
        DeleteOutcome::Deleted(_)
    ));
    fixture.pod("b").await;
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    fixture
        .registry
        .bind(&fixture.ctx, "ns", "b", binding.clone())
        .await
        .unwrap();
    let error = fixture
        .registry
        .bind(&fixture.ctx, "ns", "b", binding)
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .ends_with("pod b is already assigned to node \"n1\"")
    );
    let DeleteOutcome::Terminating(pod) = fixture.delete(PODS, "b").await else {
        panic!("deleted at once")
    };
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(pod["spec"]["nodeName"], "n1");
    let now = DeleteOptions {
        grace_period_seconds: Some(0),
        ..DeleteOptions::default()
    };
    let outcome = fixture
        .registry
        .delete(&fixture.ctx, PODS, "ns", "b", &now)
        .await
        .unwrap();
    assert!(matches!(outcome, DeleteOutcome::Deleted(_)));
}

#[tokio::test]
async fn a_pod_gets_its_defaults() {
    let fixture = Fixture::new().await;
    let pod = fixture.pod("p").await;
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
}

#[tokio::test]
async fn preconditions_protect_from_deleting_another_object() {
    let fixture = Fixture::new().await;
    let created = fixture.config_map("c").await;
    let other = DeleteOptions {
        uid: Some("other".to_owned()),
        ..DeleteOptions::default()
    };
    let outcome = fixture
        .registry
        .delete(&fixture.ctx, CONFIG_MAPS, "ns", "c", &other)
        .await;
    assert_eq!(outcome.unwrap_err().reason, Reason::Conflict);
    let uid = Some(meta::uid(&created).to_owned());
    let this = DeleteOptions {
        uid,
        ..DeleteOptions::default()
    };
    fixture
        .registry
        .delete(&fixture.ctx, CONFIG_MAPS, "ns", "c", &this)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_status_is_written_by_its_subresource_only() {
    let fixture = Fixture::new().await;
    let spec = json!({
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}},
    });
    let set = json!({"metadata": {"name": "r"}, "spec": spec, "status": {"replicas": 9}});
    let created = fixture.create(REPLICA_SETS, "ns", set).await.unwrap();
    assert_ne!(created["status"]["replicas"], 9);
    assert_eq!(meta::generation(&created), 1);
    let scale = |object: &mut Value| {
        object["spec"]["replicas"] = 5.into();
        object["status"] = json!({"replicas": 3, "observedGeneration": 1});
        Ok(())
    };
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let part = Subresource::Status;
    let status = registry
        .modify(ctx, REPLICA_SETS, "ns", "r", part, scale)
        .await
        .unwrap();
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&1.into(), &3.into())
    );
    assert_eq!(meta::generation(&status), 1);
    let part = Subresource::Main;
    let main = registry
        .modify(ctx, REPLICA_SETS, "ns", "r", part, scale)
        .await
        .unwrap();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"]["replicas"]),
        (&5.into(), &3.into())
    );
    assert_eq!(meta::generation(&main), 2);
}

#[tokio::test]
async fn a_scale_shows_and_sets_the_replicas() {
    let fixture = Fixture::new().await;
    let spec = json!({
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}},
    });
    let set = json!({"metadata": {"name": "r"}, "spec": spec});
    fixture.create(REPLICA_SETS, "ns", set).await.unwrap();
    let (ctx, registry) = (&fixture.ctx, &fixture.registry);
    let mut scale = registry
        .get_scale(ctx, REPLICA_SETS, "ns", "r")
        .await
        .unwrap();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&1.into(), &"a=b".into())
    );
    scale["spec"]["replicas"] = 4.into();
    let stale = scale.clone();
    let scaled = registry
        .update_scale(ctx, REPLICA_SETS, "ns", "r", scale)
        .await
        .unwrap();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let error = registry
        .update_scale(ctx, REPLICA_SETS, "ns", "r", stale)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::Conflict);
    let patch = Patch::merge(&json!({"spec": {"replicas": 2}})).unwrap();
    let scaled = registry
        .patch_scale(ctx, REPLICA_SETS, "ns", "r", &patch)
        .await
        .unwrap();
    assert_eq!(scaled["spec"]["replicas"], 2);
    assert!(
        registry
            .get_scale(ctx, CONFIG_MAPS, "ns", "c")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn cluster_scoped_objects_need_no_namespace() {
    let fixture = Fixture::new().await;
    let node = json!({"metadata": {"name": "n1"}});
    fixture.create(NODES, "", node).await.unwrap();
    let list = fixture
        .registry
        .list(&fixture.ctx, NODES, "", &ListOptions::default())
        .await
        .unwrap();
    assert_eq!(list.items.len(), 1);
}

#[tokio::test]
async fn every_concurrent_modification_of_one_object_counts() {
    let fixture = Fixture::new().await;
    fixture.config_map("c").await;
    let writers = (0..8).map(|_| {
        let (registry, ctx) = (fixture.registry.clone(), fixture.ctx.clone());
        tokio::spawn(async move {
            let add = |object: &mut Value| {
                let present = object["data"]["n"].as_str().map_or(0, str::len);
                object["data"] = json!({"n": "i".repeat(present + 1)});
                Ok(())
            };
            registry
                .modify(&ctx, CONFIG_MAPS, "ns", "c", Subresource::Main, add)
                .await
                .unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let read = fixture
        .registry
        .get(&fixture.ctx, CONFIG_MAPS, "ns", "c")
        .await
        .unwrap();
    assert_eq!(read["data"]["n"], "iiiiiiii");
}

#[tokio::test(start_paused = true)]
async fn an_event_expires_after_its_last_change() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(&folder, RegistryConfig::default()).await;
    let fixture = Fixture {
        registry,
        ctx: RequestContext::component("test"),
        folder,
    };
    fixture
        .create(NAMESPACES, "", json!({"metadata": {"name": "ns"}}))
        .await
        .unwrap();
    let event = json!({
        "metadata": {"name": "e"}, "reason": "R", "message": "m", "type": "Normal",
        "involvedObject": {"kind": "Pod", "namespace": "ns", "name": "p"},
    });
    let events = resources::EVENTS;
    fixture.create(events, "ns", event).await.unwrap();
    let minutes = |count: u64| tokio::time::sleep(Duration::from_secs(60 * count));
    minutes(40).await;
    let count = |object: &mut Value| {
        object["count"] = 2.into();
        Ok(())
    };
    let part = Subresource::Main;
    fixture
        .registry
        .modify(&fixture.ctx, events, "ns", "e", part, count)
        .await
        .unwrap();
    minutes(40).await;
    assert!(
        fixture
            .registry
            .get(&fixture.ctx, events, "ns", "e")
            .await
            .is_ok()
    );
    minutes(25).await;
    let mut gone = false;
    for _ in 0..200 {
        gone = fixture
            .registry
            .get(&fixture.ctx, events, "ns", "e")
            .await
            .is_err();
        if gone {
            break;
        }
        // The deletion passes through the store's own thread, which knows no paused clock.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(gone, "the event is still there");
}
