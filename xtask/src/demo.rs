//! The demo of `up --demo`: a Deployment and a Service, called from a pod and from a node, one fresh
//! connection per call, and a report of who answered. Fails if a call fails or a backend gets none.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tholepin_harness::state::ClusterState;
use tholepin_harness::{
    ClusterId, Kubectl, Layout, binaries, command, image, netns, tools, workspace_root,
};

use crate::shell::{human, step};

const CALLS: u64 = 300;
const MANIFEST: &str = "examples/web.yaml";
const CLIENT: &str = "demo-client";

/// Runs the demo on a running cluster.
pub(crate) fn run(id: &ClusterId) -> Result<()> {
    let state = ClusterState::read(id)?.with_context(|| format!("cluster {id} is not running"))?;
    let kubectl = Kubectl::new(
        &tools::kubectl(None)?.path,
        &state.state_dir.join("kubeconfig"),
    );
    println!();
    let applied = Instant::now();
    let file = workspace_root().join(MANIFEST).display().to_string();
    let (output, _) = step(&format!("kubectl apply -f {MANIFEST}"), || {
        let output = kubectl.run(&["apply", "-f", &file])?;
        kubectl
            .run(&["rollout", "status", "deployment/web", "--timeout=60s"])
            .with_context(|| {
                let pods = kubectl
                    .run(&["describe", "pods", "-l", "app=web"])
                    .unwrap_or_default();
                format!("the Deployment does not become ready\n{pods}")
            })?;
        Ok(output)
    })?;
    print!("{output}");
    println!(
        "    from apply to three Ready pods: {}",
        human(applied.elapsed())
    );

    let backends = pods(&kubectl)?;
    let service = kubectl.json(&["get", "service", "web"])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("Service web has no clusterIP")?;
    let url = format!("http://{}/", bracketed(address));
    wait_for_endpoints(&kubectl, backends.len())?;

    let count = CALLS.to_string();
    let call = ["call", "--url", &url, "--count", &count];
    let (from_pod, _) = step(&format!("{CALLS} calls from a pod to {url}"), || {
        start_client(&kubectl)?;
        let exec = ["exec", CLIENT, "--", "/toolbox"];
        let output = kubectl.outcome(&[&exec[..], &call[..]].concat())?;
        Report::parse(&output.stdout).with_context(|| output.stderr)
    })?;
    let (from_node, _) = step(&format!("{CALLS} calls from node n1 to {url}"), || {
        let mut program = Command::new(binaries::toolbox()?);
        program.args(call);
        netns::run_inside(&mut program, &Layout::new(id).node(1).namespace)?;
        let output = command::output(&mut program)?;
        Report::parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    })?;
    kubectl.run(&["delete", "pod", CLIENT, "--now", "--wait=false"])?;

    print!(
        "\n{}",
        kubectl.run(&["get", "pods", "-o", "wide", "-l", "app=web"])?
    );
    println!("{}", kubectl.run(&["get", "services", "web"])?);
    print_shares(&backends, &from_pod, &from_node);
    for (name, report) in [("pod", &from_pod), ("node", &from_node)] {
        report.check(name, &backends)?;
    }
    println!(
        "{} calls, all answered, by all {} pods",
        2 * CALLS,
        backends.len()
    );
    Ok(())
}

/// What the toolbox's load client printed.
#[derive(Debug)]
struct Report {
    hosts: BTreeMap<String, u64>,
    failures: u64,
    answered: u64,
    p50: f64,
    p99: f64,
    errors: String,
}

impl Report {
    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text.trim())
            .with_context(|| format!("the client printed no report: `{}`", text.trim()))?;
        let hosts = value["hosts"]
            .as_object()
            .context("no hosts in the report")?;
        Ok(Self {
            hosts: hosts
                .iter()
                .map(|(host, count)| (host.clone(), count.as_u64().unwrap_or(0)))
                .collect(),
            failures: value["failures"]
                .as_u64()
                .context("no failures in the report")?,
            answered: value["answered"]
                .as_u64()
                .context("no answers in the report")?,
            p50: value["p50_ms"].as_f64().unwrap_or(0.0),
            p99: value["p99_ms"].as_f64().unwrap_or(0.0),
            errors: value["errors"].to_string(),
        })
    }

    /// Every call answered, every backend used, nobody else answered.
    fn check(&self, from: &str, backends: &[String]) -> Result<()> {
        ensure!(
            self.failures == 0 && self.answered == CALLS,
            "{} of {CALLS} calls from the {from} failed: {}",
            self.failures,
            self.errors
        );
        for backend in backends {
            ensure!(
                self.hosts.contains_key(backend),
                "no call from the {from} reached {backend}"
            );
        }
        if let Some(stranger) = self.hosts.keys().find(|host| !backends.contains(host)) {
            bail!("a call from the {from} was answered by {stranger}, which is no backend");
        }
        Ok(())
    }
}

/// Names of the Deployment's pods.
fn pods(kubectl: &Kubectl) -> Result<Vec<String>> {
    let list = kubectl.json(&["get", "pods", "-l", "app=web"])?;
    let items = list["items"].as_array().context("no list of pods")?;
    let live = items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(live
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The EndpointSlice follows the pods' readiness by a moment.
fn wait_for_endpoints(kubectl: &Kubectl, count: usize) -> Result<()> {
    let path = format!("jsonpath={{.subsets[0].addresses[{}].ip}}", count - 1);
    kubectl
        .run(&["wait", "endpoints/web", "--for", &path, "--timeout=30s"])
        .context("Service web does not get its endpoints")?;
    Ok(())
}

fn start_client(kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["delete", "pod", CLIENT, "--now", "--ignore-not-found"])?;
    let image = format!("--image={}", image::WEB);
    let run = [
        "run",
        CLIENT,
        &image,
        "--restart=Never",
        "--image-pull-policy=Never",
        "--",
        "sleep",
    ];
    kubectl.run(&run)?;
    let pod = format!("pod/{CLIENT}");
    kubectl.run(&["wait", &pod, "--for=condition=Ready", "--timeout=60s"])?;
    Ok(())
}

fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

fn print_shares(backends: &[String], from_pod: &Report, from_node: &Report) {
    println!(
        "{:<28} {:>14} {:>14}",
        "answered by", "from a pod", "from a node"
    );
    let share = |report: &Report, backend: &String| {
        let count = report.hosts.get(backend).copied().unwrap_or(0);
        format!("{count} ({:.0} %)", 100.0 * count as f64 / CALLS as f64)
    };
    for backend in backends {
        println!(
            "{backend:<28} {:>14} {:>14}",
            share(from_pod, backend),
            share(from_node, backend)
        );
    }
    let times = |report: &Report| format!("{:.2} / {:.2} ms", report.p50, report.p99);
    println!(
        "{:<28} {:>14} {:>14}",
        "p50 / p99",
        times(from_pod),
        times(from_node)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(hosts: &str, failures: u64) -> Report {
        let answered = CALLS - failures;
        Report::parse(&format!(
            r#"{{"answered":{answered},"failures":{failures},"hosts":{hosts},"errors":{{}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_failed_call_an_unused_backend_and_a_stranger_fail_the_demo() {
        let backends = ["a".to_owned(), "b".to_owned()];
        assert!(
            report(r#"{"a":150,"b":150}"#, 0)
                .check("pod", &backends)
                .is_ok()
        );
        let unused = report(r#"{"a":300}"#, 0)
            .check("pod", &backends)
            .unwrap_err();
        assert!(unused.to_string().contains("reached b"));
        assert!(
            report(r#"{"a":150,"b":149}"#, 1)
                .check("pod", &backends)
                .is_err()
        );
        assert!(
            report(r#"{"a":100,"b":100,"c":100}"#, 0)
                .check("pod", &backends)
                .is_err()
        );
    }

    #[test]
    fn no_report_is_an_error_that_shows_what_was_printed() {
        assert!(format!("{:#}", Report::parse("oops").unwrap_err()).contains("oops"));
    }
}
