//! What the cluster tests share: a cluster with the web Deployment and Service, and load on it.

#![allow(dead_code, reason = "each test program uses its part of this module")]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tholepin_harness::{Cluster, Options, skip};

/// Long enough for a loaded two-core machine; nothing waits this long when all is well.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// A Deployment `web` with three replicas of the toolbox server and its ClusterIP Service on port 80.
pub(crate) const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: tholepin.test/web:1
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"#;

/// A cluster, or `None` when the machine cannot have one (reported; an error in CI).
pub(crate) async fn cluster(options: Options) -> Option<Cluster> {
    skip::unless(skip::root())?;
    Some(Cluster::start(options).await.expect("the cluster starts"))
}

/// Applies [`WEB`], waits for the rollout and returns the Service's address.
pub(crate) fn deploy_web(cluster: &Cluster) -> Result<String> {
    cluster.kubectl.run_with_input(&["apply", "-f", "-"], WEB)?;
    cluster
        .kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let service = cluster.kubectl.json(&["get", "service", "web"])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?
        .to_owned();
    wait_until("the Service answers", || {
        let url = format!("http://{address}/");
        let output = cluster.toolbox_on_node(
            0,
            &["call", "--url", &url, "--count", "30", "--timeout", "1"],
        )?;
        let report = report(&output.stdout)?;
        Ok(report["failures"] == 0
            && report["hosts"]
                .as_object()
                .is_some_and(|hosts| hosts.len() == 3))
    })?;
    Ok(address)
}

/// Scales the Deployment of [`deploy_web`] and waits for the rollout.
pub(crate) fn scale_web(cluster: &Cluster, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster
        .kubectl
        .run(&["scale", "deployment/web", &replicas])?;
    cluster
        .kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    Ok(())
}

/// Tries again until it holds; for conditions inside a node that the API does not show.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let mut last = Ok(false);
    while Instant::now() < end {
        last = holds();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        pause(Duration::from_millis(100));
    }
    last.map(|_| ())
        .with_context(|| format!("{what}: not after {LIMIT:?}"))?;
    anyhow::bail!("{what}: not after {LIMIT:?}")
}

/// Waits in a test's own thread.
pub(crate) fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test thread, not a tokio worker"
    )]
    std::thread::sleep(time);
}

/// The load client's report.
pub(crate) fn report(stdout: &[u8]) -> Result<Value> {
    let text = String::from_utf8_lossy(stdout);
    let line = text
        .lines()
        .last()
        .context("the load client printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("not a report: {line}"))
}

/// Fresh connections to the Service from a node, at a rate, for a time; runs beside the test.
#[derive(Debug)]
pub(crate) struct Load {
    client: Child,
}

impl Load {
    pub(crate) fn start(
        cluster: &Cluster,
        node: usize,
        address: &str,
        rate: u32,
        seconds: u32,
    ) -> Result<Self> {
        let (url, rate, seconds) = (
            format!("http://{address}/"),
            rate.to_string(),
            seconds.to_string(),
        );
        let arguments = [
            "call",
            "--url",
            &url,
            "--rate",
            &rate,
            "--duration",
            &seconds,
            "--concurrency",
            "8",
            "--timeout",
            "5",
        ];
        let mut command = cluster.toolbox_command(node, &arguments)?;
        let client = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { client })
    }

    /// Waits for its end; the report, which must hold at least `least` answers and no failure.
    pub(crate) fn finish(self, least: u64) -> Result<Value> {
        let output = self.client.wait_with_output()?;
        let report = report(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        eprintln!("load: {report}");
        ensure!(report["failures"] == 0, "requests failed: {report}");
        let answered = report["answered"].as_u64().unwrap_or(0);
        ensure!(
            answered >= least,
            "only {answered} requests were made: {report}"
        );
        Ok(report)
    }
}

/// One line per container: pod, containerd id, restart count. Equal before and after: none restarted.
pub(crate) fn containers(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.kubectl.json(&["get", "pods", "-A"])?;
    let mut lines: Vec<String> = pods["items"]
        .as_array()
        .context("no items")?
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            format!(
                "{} {} {}",
                pod["metadata"]["name"], status["containerID"], status["restartCount"]
            )
        })
        .collect();
    lines.sort();
    Ok(lines)
}
