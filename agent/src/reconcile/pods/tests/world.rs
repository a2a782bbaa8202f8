//! A node without a kernel: dispatcher and workers over fakes of the runtime, the network and the API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::{Value, json};
use tholepin_model::plan::admission::Room;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::runtime::FakeNode;
use crate::config::{Config, RawConfig};
use crate::events::{Event, Recorder};
use crate::observe::metrics::Metrics;
use crate::reconcile::pods::runtime_view::RuntimeView;
use crate::reconcile::pods::{self, Context};
use crate::runtime::PodIdentity;
use crate::status::{PodApi, WriteError, Written};
use crate::time::Clock;
use crate::volumes::pod_files::DnsSettings;
use crate::watch::objects::{ObjectData, ObjectKey, ObjectState, Objects};
use crate::watch::pods::{PodObject, PodsView, parse};
use crate::watch::service_links::ServiceLinks;

/// The API server as this node sees it. Status writes come back in the view, as they do in life.
pub(super) struct FakeApi {
    pub(super) view: watch::Sender<PodsView>,
    /// Every status that arrived, by pod name.
    pub(super) written: Mutex<Vec<(String, Value)>>,
    pub(super) away: watch::Sender<bool>,
    objects: Mutex<BTreeMap<ObjectKey, watch::Sender<ObjectState>>>,
}

impl FakeApi {
    fn refuse(&self, pod: &PodIdentity) -> Result<(), WriteError> {
        if *self.away.borrow() {
            return Err(WriteError {
                operation: "reach the API",
                pod: pod.name.clone(),
                source: "away".into(),
            });
        }
        Ok(())
    }

    pub(super) fn set_object(&self, key: ObjectKey, entries: &[(&str, &str)]) {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect();
        let state = ObjectState::Present(Arc::new(ObjectData { entries }));
        self.object(&key).send_replace(state);
    }

    fn object(&self, key: &ObjectKey) -> watch::Sender<ObjectState> {
        let mut objects = self.objects.lock().unwrap();
        let missing = || watch::channel(ObjectState::Missing).0;
        objects.entry(key.clone()).or_insert_with(missing).clone()
    }
}

#[async_trait]
impl PodApi for FakeApi {
    async fn patch_status(&self, pod: &PodIdentity, status: &Value) -> Result<Written, WriteError> {
        self.refuse(pod)?;
        let Some(found) = self.view.borrow().pods.get(&pod.uid).cloned() else {
            return Ok(Written::Gone);
        };
        let mut object = serde_json::to_value(found.object.as_ref()).unwrap();
        object["status"] = status.clone();
        let written = (pod.name.clone(), status.clone());
        self.written.lock().unwrap().push(written);
        put(&self.view, object);
        Ok(Written::Done)
    }

    async fn delete_now(&self, pod: &PodIdentity) -> Result<Written, WriteError> {
        self.refuse(pod)?;
        self.view.send_modify(|view| {
            view.pods.remove(&pod.uid);
            view.deleted.push_back((pod.uid.clone(), Some(0)));
        });
        Ok(Written::Done)
    }
}

impl Objects for FakeApi {
    fn subscribe(&self, key: &ObjectKey) -> watch::Receiver<ObjectState> {
        if *self.away.borrow() {
            return watch::channel(ObjectState::Unknown { error: None }).1;
        }
        self.object(key).subscribe()
    }
}

fn put(view: &watch::Sender<PodsView>, object: Value) {
    let object: k8s_openapi::api::core::v1::Pod = serde_json::from_value(object).unwrap();
    let pod = parse::pod(&object).unwrap();
    let uid = pod.uid.clone();
    let parsed = Arc::new(PodObject {
        pod,
        object: Arc::new(object),
    });
    view.send_modify(|view| {
        view.pods.insert(uid, parsed);
    });
}

struct Agent {
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

pub(super) struct World {
    pub(super) node: Arc<FakeNode>,
    pub(super) api: Arc<FakeApi>,
    pub(super) config: Arc<Config>,
    pub(super) capacity: Room,
    pub(super) events: Arc<Mutex<Vec<Event>>>,
    clock: Clock,
    agent: Option<Agent>,
    _directory: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(directory.path().join(name));
        std::fs::write(directory.path().join("kubeconfig"), "").unwrap();
        let config = Config::try_from(RawConfig {
            kubeconfig: path("kubeconfig"),
            node_name: Some("n1".to_owned()),
            state_dir: path("state"),
            run_dir: path("run"),
            log_dir: path("logs"),
            container_log_dir: path("links"),
            resolv_conf: path("resolv.conf"),
            ..RawConfig::default()
        })
        .unwrap();
        let clock = Clock::paused(SystemTime::now());
        let synced = PodsView {
            synced: true,
            ..PodsView::default()
        };
        let api = FakeApi {
            view: watch::channel(synced).0,
            written: Mutex::default(),
            away: watch::channel(false).0,
            objects: Mutex::default(),
        };
        Self {
            node: Arc::new(FakeNode::new(clock)),
            api: Arc::new(api),
            config: Arc::new(config),
            capacity: Room {
                pods: 110,
                cpu_milli: 2000,
                memory_bytes: 1 << 30,
            },
            events: Arc::default(),
            clock,
            agent: None,
            _directory: directory,
        }
    }

    /// A new agent process.
    pub(super) fn start_agent(&mut self) {
        let cancel = CancellationToken::new();
        let metrics = Metrics::default();
        let (recorder, mut queue) = Recorder::new(metrics.clone());
        let events = Arc::clone(&self.events);
        tokio::spawn(async move {
            while let Some((event, _)) = queue.recv().await {
                events.lock().unwrap().push(event);
            }
        });
        let mut links = ServiceLinks::default();
        links.synced = true;
        let node: Arc<FakeNode> = Arc::clone(&self.node);
        let address: IpAddr = "172.30.0.11".parse().unwrap();
        let context = Context {
            config: Arc::clone(&self.config),
            runtime: node.clone(),
            network: node.clone(),
            objects: self.api.clone(),
            pod_api: self.api.clone(),
            recorder,
            metrics,
            clock: self.clock,
            view: RuntimeView::spawn(node, cancel.clone()),
            links: watch::channel(links).1,
            permits: Arc::new(Semaphore::new(2)),
            host_addresses: vec![address],
            dns: DnsSettings {
                cluster_dns: Vec::new(),
                cluster_domain: "cluster.local".to_owned(),
                node_resolv_conf: self.config.resolv_conf.clone(),
            },
            node_memory_bytes: 1 << 30,
            node_cpu_milli: 2000,
            capacity: self.capacity,
        };
        let (heartbeat, _) = watch::channel(Instant::now());
        let view = self.api.view.subscribe();
        let run = pods::run(Arc::new(context), view, heartbeat, cancel.clone());
        let task = tokio::spawn(run);
        self.agent = Some(Agent { task, cancel });
    }

    /// As kill -9: nothing of it runs on, nothing is tidied up.
    pub(super) async fn kill_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.cancel.cancel();
        agent.task.abort();
        agent.task.await.ok();
    }

    /// Creates or replaces a pod of one container `c`.
    pub(super) fn apply(&self, name: &str, spec: Value) {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "default", "uid": uid(name)},
            "spec": {
                "nodeName": "n1",
                "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "web:1"}],
            },
        });
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        put(&self.api.view, object);
    }

    /// A graceful deletion, as `kubectl delete` asks for.
    pub(super) fn delete(&self, name: &str, grace: i64) {
        let found = self.api.view.borrow().pods[&uid(name)].clone();
        let mut object = serde_json::to_value(found.object.as_ref()).unwrap();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        put(&self.api.view, object);
    }

    /// The API's last word on the pod's status.
    pub(super) fn status(&self, name: &str) -> Value {
        let view = self.api.view.borrow();
        view.pods
            .get(&uid(name))
            .and_then(|object| serde_json::to_value(object.object.status.as_ref()?).ok())
            .unwrap_or(Value::Null)
    }

    pub(super) fn container(&self, name: &str) -> Value {
        self.status(name)["containerStatuses"][0].clone()
    }

    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.container(name)["ready"] == json!(true)
    }

    /// Neither the node nor the API has anything of the pod.
    pub(super) fn is_gone(&self, name: &str) -> bool {
        let uid = uid(name);
        let state = self.node.state();
        !state.sandboxes.contains_key(&uid)
            && !state.attached.contains_key(&uid)
            && !self.api.view.borrow().pods.contains_key(&uid)
            && !self.config.pod_dir(&uid).exists()
    }

    pub(super) fn reasons(&self) -> Vec<&'static str> {
        let events = self.events.lock().unwrap();
        events.iter().map(|event| event.reason).collect()
    }

    /// Waits, at most an hour of the paused clock.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(3600);
        while !is_so(self) {
            assert!(
                Instant::now() < end,
                "never: {what}; calls {:?}; written {:#?}",
                self.node.state().calls,
                self.api.written.lock().unwrap().last()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(agent) = &self.agent {
            agent.cancel.cancel();
            agent.task.abort();
        }
    }
}

pub(super) fn uid(name: &str) -> String {
    format!("uid-{name}")
}
