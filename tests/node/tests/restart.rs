//! An agent that is killed and started again: traffic and containers must not notice.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tholepin_harness::{Cluster, Options, skip, tools};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
    - {name: web, image: "tholepin.test/web:1", imagePullPolicy: Never}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_agent_fails_no_request_and_restarts_no_container() -> Result<()> {
    let Some(()) = skip::unless(skip::root()) else {
        return Ok(());
    };
    let Some(_) = skip::unless(tools::containerd(None)) else {
        return Ok(());
    };
    let Some(_) = skip::unless(tools::kubectl(None)) else {
        return Ok(());
    };
    let options = Options {
        nodes: 1,
        ..Options::default()
    };
    let cluster = Cluster::start(options).await?;
    Cluster::blocking(move || kill_under_load(cluster)).await?
}

fn kill_under_load(mut cluster: Cluster) -> Result<()> {
    cluster.kubectl.run_with_input(&["apply", "-f", "-"], POD)?;
    cluster
        .kubectl
        .run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"])?;
    let path = "--for=jsonpath={.subsets[0].addresses[0].ip}";
    cluster
        .kubectl
        .run(&["wait", "endpoints/web", path, "--timeout=30s"])?;
    let before = container(&cluster)?;
    let service = cluster.kubectl.json(&["get", "service", "web"])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?;

    let url = format!("http://{address}/");
    let load = [
        "call",
        "--url",
        &url,
        "--rate",
        "300",
        "--duration",
        "6",
        "--concurrency",
        "4",
    ];
    let client = cluster
        .toolbox_command(0, &load)?
        .stdout(Stdio::piped())
        .spawn()?;
    // The load runs for a while with the agent, for a while without, and for a while with a new one.
    tholepin_harness::command::pause(Duration::from_secs(1));
    cluster.kill_agent(0)?;
    tholepin_harness::command::pause(Duration::from_secs(2));
    cluster.start_agent(0)?;
    let output = client.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["failures"] == 0, "requests failed: {report}");
    ensure!(
        report["answered"].as_u64() >= Some(1_000),
        "hardly any load: {report}"
    );

    // The new agent takes the old one's container over: a change that needs it is carried out.
    cluster.wait_for_nodes(Duration::from_secs(60))?;
    ensure!(
        container(&cluster)? == before,
        "the container was restarted"
    );
    cluster
        .kubectl
        .run(&["delete", "pod", "web", "--now", "--timeout=60s"])?;
    cluster.remove()
}

/// Identity and restarts of the pod's container.
fn container(cluster: &Cluster) -> Result<(Value, Value)> {
    let pod = cluster.kubectl.json(&["get", "pod", "web"])?;
    let status = &pod["status"]["containerStatuses"][0];
    Ok((
        status["containerID"].clone(),
        status["restartCount"].clone(),
    ))
}
