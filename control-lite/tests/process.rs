//! The control plane as the process it is: kill -9 while it is written to, what lies on its disk, what
//! is in its log.

#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tempfile::TempDir;

/// A running `tholepin-control serve` with a data folder and a port of its own. Dropped, it is killed.
struct Control {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Control {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free now; nobody else on this machine asks for it by number.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let child = spawn(folder.path(), port);
        let control = Self {
            folder,
            port,
            child,
        };
        control.ready().await;
        control
    }

    fn kill(&mut self) {
        // Gone already is fine.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.child = spawn(self.folder.path(), self.port);
        self.ready().await;
    }

    async fn ready(&self) {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            if self.kubeconfig().exists() {
                let namespaces: Api<Namespace> = Api::all(self.client().await);
                if namespaces.get("default").await.is_ok() {
                    return;
                }
            }
            assert!(Instant::now() < limit, "not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Client::try_from(config.unwrap()).unwrap()
    }
}

fn spawn(folder: &Path, port: u16) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_tholepin-control"))
        .args(["-vv", "serve", "--bind-address", "127.0.0.1"])
        .arg("--data-dir")
        .arg(folder.join("data"))
        .arg("--secure-port")
        .arg(port.to_string())
        .arg("--write-kubeconfig")
        .arg(folder.join("kubeconfig"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": "b"}})).unwrap()
}

/// Creates ConfigMaps until the server is gone; returns the names of those it acknowledged.
async fn write_until_killed(client: Client, prefix: String) -> Vec<String> {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let name = format!("{prefix}-{number}");
        let object = config_map(&name);
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => acknowledged.push(name),
            Err(_) => break,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_a_storm_of_writes_loses_nothing_acknowledged_and_watches_start_anew() {
    let mut control = Control::start().await;
    let mut acknowledged = BTreeSet::new();
    let mut last_seen = 0;
    for round in 0..3 {
        let client = control.client().await;
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..8 {
            let prefix = format!("r{round}-w{number}");
            writers.spawn(write_until_killed(client.clone(), prefix));
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
        control.kill();
        let before = acknowledged.len();
        while let Some(names) = writers.join_next().await {
            acknowledged.extend(names.unwrap());
        }
        assert!(acknowledged.len() > before + 8, "hardly anything written");

        control.restart().await;
        let api: Api<ConfigMap> = Api::default_namespaced(control.client().await);
        let list = api.list(&ListParams::default()).await.unwrap();
        let present: BTreeSet<String> = list
            .items
            .iter()
            .map(|item| item.metadata.name.clone().unwrap())
            .collect();
        let lost: Vec<_> = acknowledged.difference(&present).collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        let revision: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
        assert!(revision > last_seen, "a revision was used twice");
        last_seen = revision;
        for item in &list.items {
            let own: u64 = item
                .metadata
                .resource_version
                .as_ref()
                .unwrap()
                .parse()
                .unwrap();
            assert!(own <= revision, "{own} is after the list's {revision}");
        }
        assert_expired_or_resumed(&api, list.items.first().unwrap()).await;
    }
}

/// A watch from before the kill either goes on or says 410; it never hangs or skips in silence.
async fn assert_expired_or_resumed(api: &Api<ConfigMap>, old: &ConfigMap) {
    let version = old.metadata.resource_version.as_deref().unwrap();
    let watch = api.watch(&WatchParams::default().timeout(5), version).await;
    let first = match watch {
        Err(error) => Err(error),
        Ok(events) => {
            let mut events = events.boxed();
            events.try_next().await
        }
    };
    match first {
        Ok(Some(WatchEvent::Error(status))) => assert_eq!(status.code, 410, "{status:?}"),
        Ok(Some(WatchEvent::Added(_))) => (),
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 410, "{status:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_connected_works_on_after_a_restart() {
    let mut control = Control::start().await;
    let client = control.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    api.create(&PostParams::default(), &config_map("before"))
        .await
        .unwrap();
    let authority = std::fs::read(control.folder.path().join("data/pki/ca.crt")).unwrap();
    control.kill();
    control.restart().await;
    api.create(&PostParams::default(), &config_map("after"))
        .await
        .unwrap();
    api.delete("before", &DeleteParams::default())
        .await
        .unwrap();
    let same = std::fs::read(control.folder.path().join("data/pki/ca.crt")).unwrap();
    assert_eq!(authority, same, "the kubeconfigs of others stay good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_the_store_are_for_the_owner_only() {
    let control = Control::start().await;
    let data = control.folder.path().join("data");
    let mut private = vec![control.kubeconfig(), data.join("store.redb")];
    for entry in std::fs::read_dir(data.join("pki")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "key") {
            private.push(path);
        }
    }
    assert!(private.len() > 4, "{private:?}");
    for path in private {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_has_no_secret_even_when_it_says_everything() {
    let control = Control::start().await;
    let client = control.client().await;
    let api: Api<Secret> = Api::default_namespaced(client);
    let plain = "correct-horse-battery";
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "s"}, "stringData": {"password": plain},
    }))
    .unwrap();
    api.create(&PostParams::default(), &secret).await.unwrap();
    // Refused ones are logged nowhere either.
    let refused: Secret = serde_json::from_value(json!({
        "metadata": {"name": "S!"}, "stringData": {"password": plain},
    }))
    .unwrap();
    assert!(api.create(&PostParams::default(), &refused).await.is_err());
    let log = control.log();
    let encoded = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5";
    let key = std::fs::read_to_string(control.folder.path().join("data/pki/admin.key")).unwrap();
    let key_line = key.lines().nth(1).unwrap();
    assert!(log.contains("listening"), "the log is the process's");
    for text in [plain, encoded, key_line, "PRIVATE KEY"] {
        assert!(!log.contains(text), "{text} is in the log");
    }
}
