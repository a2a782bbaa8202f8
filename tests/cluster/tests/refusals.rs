//! Bad input and things that go wrong, as kubectl shows them: the texts are upstream's.

#![allow(clippy::unwrap_used, reason = "a test panics")]

mod common;

use common::{cluster, wait_until};
use tholepin_harness::{Cluster, Options};

/// What kubectl says on standard error; it must have refused. `manifest` is given with `-f`.
fn refused(cluster: &Cluster, arguments: &[&str], manifest: Option<&str>) -> String {
    let file = manifest.map(tempfile);
    let path = file.as_ref().map(|file| file.path().to_string_lossy());
    let mut all = arguments.to_vec();
    if let Some(path) = &path {
        all.extend(["-f", path]);
    }
    let outcome = cluster.kubectl.outcome(&all).unwrap();
    assert_eq!(
        outcome.code,
        Some(1),
        "{arguments:?} was accepted: {}",
        outcome.stdout
    );
    outcome.stderr
}

fn tempfile(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    file
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: taken}\ndata: {a: b}\n";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_upstreams_texts_for_bad_input() {
    let Some(cluster) = cluster(Options {
        nodes: 1,
        ..Options::default()
    })
    .await
    else {
        return;
    };

    // Unknown fields.
    let unknown = "apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec: {containers: [{name: a, image: b, imagee: c}]}\n";
    assert_says(
        &refused(&cluster, &["create"], Some(unknown)),
        &["strict decoding error: unknown field \"spec.containers[0].imagee\""],
    );
    // Invalid values and missing ones.
    let selector = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: odd}\nspec:\n  selector: {matchLabels: {app: one}}\n  template:\n    metadata: {labels: {app: two}}\n    spec: {containers: [{name: a, image: b}]}\n";
    assert_says(
        &refused(&cluster, &["create"], Some(selector)),
        &[
            "The Deployment \"odd\" is invalid: spec.template.metadata.labels: Invalid value:",
            "`selector` does not match template `labels`",
        ],
    );
    let nameless = "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec: {containers: [{name: a, image: b}]}\n";
    assert_says(
        &refused(&cluster, &["create"], Some(nameless)),
        &[
            "The Pod \"Bad_Name\" is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of",
        ],
    );
    let empty = "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n";
    assert_says(
        &refused(&cluster, &["create"], Some(empty)),
        &["spec.containers: Required value"],
    );
    // Taken names.
    cluster
        .kubectl
        .run_with_input(&["create", "-f", "-"], MAP)
        .unwrap();
    assert_says(
        &refused(&cluster, &["create"], Some(MAP)),
        &[
            "Error from server (AlreadyExists)",
            "configmaps \"taken\" already exists",
        ],
    );
    // A stale resourceVersion.
    let stale = MAP.replace("name: taken", "name: taken, resourceVersion: \"1\"");
    assert_says(
        &refused(&cluster, &["replace"], Some(&stale)),
        &[
            "Operation cannot be fulfilled on configmaps \"taken\": the object has been modified; please apply your changes to the latest version and try again",
        ],
    );
    // Nothing there, no such kind, no such namespace.
    assert_says(
        &refused(&cluster, &["get", "pod", "nobody"], None),
        &["Error from server (NotFound): pods \"nobody\" not found"],
    );
    assert_says(
        &refused(&cluster, &["get", "unicorns"], None),
        &["the server doesn't have a resource type \"unicorns\""],
    );
    assert_says(
        &refused(
            &cluster,
            &["create", "configmap", "x", "-n", "nowhere"],
            None,
        ),
        &["namespaces \"nowhere\" not found"],
    );
    // What cannot change, cannot be changed.
    cluster
        .kubectl
        .run_with_input(&["apply", "-f", "-"], common::WEB)
        .unwrap();
    assert_says(
        &refused(
            &cluster,
            &[
                "patch",
                "deployment",
                "web",
                "-p",
                r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#,
            ],
            None,
        ),
        &["field is immutable"],
    );
    // An address that is taken.
    let service = cluster.kubectl.json(&["get", "service", "web"]).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    let twin = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: twin}}\nspec: {{clusterIP: {address}, ports: [{{port: 80}}]}}\n"
    );
    assert_says(
        &refused(&cluster, &["create"], Some(&twin)),
        &["provided IP is already allocated"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_cannot_run_say_why() {
    let Some(cluster) = cluster(Options {
        nodes: 1,
        ..Options::default()
    })
    .await
    else {
        return;
    };
    let run = |name: &str, image: &str, more: &[&str]| {
        let image = format!("--image={image}");
        let mut all = vec!["run", name, &image];
        all.extend(more);
        cluster.kubectl.run(&all).unwrap();
    };
    run(
        "missing",
        "tholepin.test/absent:1",
        &["--image-pull-policy=Never"],
    );
    run("unpullable", "127.0.0.1:1/absent:1", &[]);
    // kubectl run checks the name itself.
    let invalid = "apiVersion: v1\nkind: Pod\nmetadata: {name: invalid}\nspec: {containers: [{name: invalid, image: \"tholepin.test/UPPER:1\"}]}\n";
    cluster
        .kubectl
        .run_with_input(&["create", "-f", "-"], invalid)
        .unwrap();
    run(
        "failing",
        "tholepin.test/web:1",
        &["--", "fail", "--code", "3", "--after", "0"],
    );
    run(
        "noexec",
        "tholepin.test/web:1",
        &["--command", "--", "/does/not/exist"],
    );
    run(
        "once",
        "tholepin.test/web:1",
        &["--restart=Never", "--", "lines", "--count", "2"],
    );
    let waiting = |name: &str, reasons: &[&str]| {
        wait_until(&format!("{name} waits because of {reasons:?}"), || {
            let pod = cluster.kubectl.json(&["get", "pod", name])?;
            let reason =
                pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
            Ok(reason.is_some_and(|reason| reasons.contains(&reason)))
        })
        .unwrap();
    };
    waiting("missing", &["ErrImageNeverPull"]);
    waiting("unpullable", &["ImagePullBackOff"]);
    waiting("invalid", &["InvalidImageName"]);
    waiting("failing", &["CrashLoopBackOff"]);
    waiting("noexec", &["RunContainerError", "CrashLoopBackOff"]);
    wait_until("once is Succeeded", || {
        let pod = cluster.kubectl.json(&["get", "pod", "once"])?;
        Ok(pod["status"]["phase"] == "Succeeded")
    })
    .unwrap();

    let failing = cluster.kubectl.json(&["get", "pod", "failing"]).unwrap();
    let status = &failing["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    let message = status["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("back-off 10s restarting failed container=failing pod=failing_default("),
        "{message}"
    );

    let table = cluster.kubectl.run(&["get", "pods"]).unwrap();
    assert_says(
        &table,
        &[
            "Completed",
            "CrashLoopBackOff",
            "ErrImageNeverPull",
            "InvalidImageName",
        ],
    );
    let described = cluster
        .kubectl
        .run(&["describe", "pod", "unpullable"])
        .unwrap();
    assert_says(
        &described,
        &[
            "Failed to pull image \"127.0.0.1:1/absent:1\"",
            "Back-off pulling image",
            "ErrImagePull",
        ],
    );
    let described = cluster
        .kubectl
        .run(&["describe", "pod", "failing"])
        .unwrap();
    assert_says(
        &described,
        &[
            "Back-off restarting failed container",
            "Successfully assigned default/failing to",
            "Exit Code:    3",
        ],
    );
    assert_eq!(
        cluster
            .kubectl
            .run(&["logs", "once"])
            .unwrap()
            .lines()
            .count(),
        2
    );
}
