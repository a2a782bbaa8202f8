//! What the cluster tests share: one look at a Service's answers, waiting for a rollout, and clusters
//! for a given pair of containerd and kubectl. The tests are in `tests/`.

use std::collections::BTreeMap;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tholepin_harness::{Cluster, Options, skip, tools, workspace_root};

/// A cluster, of two nodes by default, or `None` after a reported skip.
///
/// # Panics
/// When the cluster does not start.
pub async fn cluster(options: Options) -> Option<Cluster> {
    skip::unless(skip::root())?;
    skip::unless(tools::containerd(options.containerd.as_deref()))?;
    skip::unless(tools::kubectl(options.kubectl.as_deref()))?;
    Some(Cluster::start(options).await.expect("the cluster starts"))
}

/// Applies an example of the repository and waits for its Deployment.
pub fn apply_web(cluster: &Cluster) -> Result<()> {
    let file = workspace_root()
        .join("examples/web.yaml")
        .display()
        .to_string();
    cluster.kubectl.run(&["apply", "-f", &file])?;
    cluster
        .kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let path = "--for=jsonpath={.subsets[0].addresses[2].ip}";
    cluster
        .kubectl
        .run(&["wait", "endpoints/web", path, "--timeout=30s"])?;
    Ok(())
}

/// Names of the live pods with label `app`.
pub fn pods(cluster: &Cluster, app: &str) -> Result<Vec<String>> {
    let list = cluster
        .kubectl
        .json(&["get", "pods", "-l", &format!("app={app}")])?;
    let items = list["items"].as_array().context("no items")?;
    let live = items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(live
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The cluster IP of a Service, as a URL has it.
pub fn service_url(cluster: &Cluster, name: &str) -> Result<String> {
    let service = cluster.kubectl.json(&["get", "service", name])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?;
    Ok(if address.contains(':') {
        format!("http://[{address}]/")
    } else {
        format!("http://{address}/")
    })
}

/// What the toolbox's load client counted: answers by host. An error if a call failed.
pub fn answers(output: &Output) -> Result<BTreeMap<String, u64>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.trim()).with_context(|| {
        format!(
            "no report: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    ensure!(report["failures"] == 0, "calls failed: {report}");
    let hosts = report["hosts"].as_object().context("no hosts")?;
    Ok(hosts
        .iter()
        .map(|(host, count)| (host.clone(), count.as_u64().unwrap_or(0)))
        .collect())
}
