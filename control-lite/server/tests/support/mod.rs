//! A real server on a loopback port, and kubectl against it.

#![expect(clippy::unwrap_used, reason = "a test panics")]
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub(crate) mod client;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tholepin_apiserver::{
    ApiServer, Pki, PkiOptions, Registry, RegistryConfig, RequestContext, ServerConfig, resources,
};
use tholepin_harness::skip;
use tholepin_store::{EmbeddedOptions, EmbeddedStore};
use tokio_util::sync::CancellationToken;

/// Every kubectl there is: the one on PATH, and the newest one that setup fetched. A missing one is said
/// aloud, and is an error in CI, where setup has run.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let fetched = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/tools/kubectl-1.36/usr/bin/kubectl");
    let mut found = Vec::new();
    for program in [PathBuf::from("kubectl"), fetched] {
        let version = std::process::Command::new(&program)
            .args(["version", "--client"])
            .output();
        let runs = version.is_ok_and(|output| output.status.success());
        let needed = runs
            .then_some(program)
            .ok_or_else(|| anyhow::anyhow!("a kubectl is missing"));
        found.extend(skip::unless(needed));
    }
    found
}

pub(crate) struct TestServer {
    program: PathBuf,
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    pub(crate) pki: Arc<Pki>,
    cancel: CancellationToken,
    serving: tokio_util::task::TaskTracker,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl TestServer {
    /// A server with the namespaces `default` and `kube-system`.
    pub(crate) async fn start() -> Self {
        Self::start_for(PathBuf::from("kubectl")).await
    }

    /// The same, with another kubectl to run against it.
    pub(crate) async fn start_for(program: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store =
            EmbeddedStore::open(&EmbeddedOptions::new(folder.path().join("store.redb"))).unwrap();
        let registry = Registry::open(Arc::new(store), RegistryConfig::default())
            .await
            .unwrap();
        let ctx = RequestContext::component("test");
        for name in ["default", "kube-system", "kube-node-lease"] {
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            registry
                .create(&ctx, resources::NAMESPACES, "", namespace)
                .await
                .unwrap();
        }
        let pki = Pki::open(&PkiOptions {
            folder: folder.path().join("pki"),
            addresses: vec!["10.96.0.1".parse().unwrap()],
            names: Vec::new(),
        })
        .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        pki.write_kubeconfig(
            &folder.path().join("kubeconfig"),
            &format!("https://{address}"),
        )
        .unwrap();
        let server = ApiServer::new(
            ServerConfig {
                pki: Arc::clone(&pki),
            },
            registry.clone(),
        )
        .unwrap();
        let cancel = CancellationToken::new();
        let serving = tokio_util::task::TaskTracker::new();
        serving.spawn(server.serve(vec![listener], cancel.clone()));
        serving.close();
        Self {
            program,
            folder,
            address,
            registry,
            pki,
            cancel,
            serving,
        }
    }

    /// Stops serving and waits until it has.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        self.serving.wait().await;
    }

    /// A connection with the certificate `name`, or with none.
    pub(crate) async fn client(&self, name: Option<&str>) -> client::Client {
        let config = client::config(&self.folder.path().join("pki"), name);
        client::Client::connect(self.address, config).await
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub(crate) fn command(&self, words: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.folder.path().join("cache"))
            .args(words)
            .env_remove("KUBECONFIG")
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl, with a text on its stdin.
    pub(crate) async fn kubectl_with(&self, words: &[&str], stdin: &str) -> Output {
        use tokio::io::AsyncWriteExt as _;
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(stdin.as_bytes())
            .await
            .unwrap();
        child.wait_with_output().await.unwrap()
    }

    /// Runs kubectl, which has to succeed; returns what it printed.
    pub(crate) async fn kubectl(&self, words: &[&str]) -> String {
        self.kubectl_apply(words, "").await
    }

    /// The same with a text on its stdin.
    pub(crate) async fn kubectl_apply(&self, words: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(words, stdin).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap() + &stderr
    }

    /// Runs kubectl, which has to fail; returns what it complained.
    pub(crate) async fn kubectl_fails(&self, words: &[&str], stdin: &str) -> String {
        let output = self.kubectl_with(words, stdin).await;
        assert!(!output.status.success(), "kubectl {words:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}
