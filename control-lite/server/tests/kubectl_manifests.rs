//! Manifests and patches through every kubectl there is: what is taken, and how what is not is refused.
//! Both versions of kubectl have to be told the same.

mod support;

use serde_json::Value;
use support::{TestServer, kubectls};

const LIST: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: tholepin.test/web:1
        env: [{name: A, value: a}, {name: B, value: b}]
";

/// Each of these manifests is refused by `create` with these words.
const REFUSED: &[(&str, &str)] = &[
    (
        "apiVersion: v2\nkind: ConfigMap\nmetadata: {name: x}\n",
        "no matches for kind \"ConfigMap\" in version \"v2\"",
    ),
    (
        "apiVersion: v1\nkind: Widget\nmetadata: {name: x}\n",
        "no matches for kind \"Widget\" in version \"v1\"",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n",
        "metadata.name: Required value: name or generateName is required",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: 1}\n",
        "json: cannot unmarshal number into Go struct field ConfigMap.data.a of type string",
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {a: '!'}\n",
        "illegal base64 data at input byte 0",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n",
        "The Pod \"x\" is invalid: spec.containers: Required value",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}], clusterIP: 1.2.3.4}\n",
        "The range of valid IPs is 10.96.0.0/16",
    ),
    (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: Bad_Name}\n",
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_manifest_is_created_applied_and_deleted() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        let created = server.kubectl_apply(&["create", "-f", "-"], LIST).await;
        assert_eq!(created, "configmap/a created\nconfigmap/b created\n");
        server.kubectl_apply(&["apply", "-f", "-"], LIST).await;
        let again = server.kubectl_apply(&["apply", "-f", "-"], LIST).await;
        assert_eq!(again, "configmap/a unchanged\nconfigmap/b unchanged\n");
        server.kubectl_apply(&["delete", "-f", "-"], LIST).await;
        let typo = LIST.replace("name: b}}", "name: b}, dataz: {}}");
        let error = server.kubectl_fails(&["create", "-f", "-"], &typo).await;
        assert!(
            error.contains("strict decoding error: unknown field \"dataz\""),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_manifests_are_refused_in_upstreams_words() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        for (manifest, words) in REFUSED {
            let error = server.kubectl_fails(&["create", "-f", "-"], manifest).await;
            assert!(error.contains(words), "{manifest}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_without_a_template_is_told_only_what_is_missing() {
    let server = TestServer::start().await;
    let manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n";
    let error = server.kubectl_fails(&["create", "-f", "-"], manifest).await;
    let fields: Vec<&str> = error
        .lines()
        .filter_map(|line| line.strip_prefix("* "))
        .filter_map(|line| line.split(':').next())
        .collect();
    let expected = [
        "spec.selector",
        "spec.template.metadata.labels",
        "spec.template.spec.containers",
    ];
    assert_eq!(fields, expected, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_data_names_the_limit() {
    let server = TestServer::start().await;
    let data = "x".repeat((1 << 20) + 1);
    let large = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {{\"name\": \"c\"}}, \"data\": {{\"a\": \"{data}\"}}}}"
    );
    let error = server.kubectl_fails(&["create", "-f", "-"], &large).await;
    let expected = "[]: Too long: may not be more than 1048576 bytes";
    assert!(error.contains(expected), "{error}");
    let annotation = "x".repeat(300_000);
    let large = large.replace(&data, &annotation);
    let error = server.kubectl_fails(&["apply", "-f", "-"], &large).await;
    let expected = "metadata.annotations: Too long: may not be more than 262144 bytes";
    assert!(error.contains(expected), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_patches_are_refused_in_upstreams_words() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        server
            .kubectl_apply(&["create", "-f", "-"], DEPLOYMENT)
            .await;
        for (kind, patch, words) in [
            (
                "json",
                r#"[{"op": "replace", "path": "/spec/nope", "value": 1}]"#,
                "The request is invalid: patch: ",
            ),
            (
                "json",
                r#"[{"op": "test", "path": "/spec/replicas", "value": 9}]"#,
                "The request is invalid: patch: ",
            ),
            ("json", "{}", "error decoding patch"),
            ("merge", "[]", "error decoding patch"),
            (
                "merge",
                r#"{"metadata": {"name": "y"}}"#,
                "the name of the object (y) does not match the name on the URL (web)",
            ),
            (
                "merge",
                r#"{"metadata": {"namespace": "y"}}"#,
                "the namespace of the object (y) does not match the namespace on the request (default)",
            ),
            (
                "merge",
                r#"{"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 3}}"#,
                "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified",
            ),
            (
                "strategic",
                r#"{"spec": {"replicas": "x"}}"#,
                "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "merge",
                r#"{"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}}}"#,
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable",
            ),
        ] {
            let kind = format!("--type={kind}");
            let words_given = ["patch", "deployment", "web", &kind, "-p", patch];
            let error = server.kubectl_fails(&words_given, "").await;
            assert!(error.contains(words), "{patch}: {error}");
        }
        let selector = ["get", "pods", "-l", "a b"];
        let error = server.kubectl_fails(&selector, "").await;
        let expected =
            ": unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt";
        assert!(error.trim_end().ends_with(expected), "{error}");
        assert_eq!(error.matches("unable to parse").count(), 1, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_removes_what_the_manifest_no_longer_has() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        server
            .kubectl_apply(&["apply", "-f", "-"], DEPLOYMENT)
            .await;
        let set = ["set", "env", "deployment/web", "C=c"];
        server.kubectl(&set).await;
        let fewer = DEPLOYMENT
            .replace("{name: A, value: a}, ", "")
            .replace(", labels: {app: web}}\nspec:\n  replicas: 2", "}\nspec:");
        let difference = server.kubectl_with(&["diff", "-f", "-"], &fewer).await;
        assert_eq!(difference.status.code(), Some(1), "{difference:?}");
        server.kubectl_apply(&["apply", "-f", "-"], &fewer).await;
        let object = server
            .kubectl(&["get", "deployment", "web", "-o", "json"])
            .await;
        let object: Value = serde_json::from_str(&object).unwrap();
        let env = &object["spec"]["template"]["spec"]["containers"][0]["env"];
        let mut names: Vec<_> = env
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| variable["name"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["B", "C"],
            "what was applied goes, what was set by hand stays"
        );
        assert_eq!(object["spec"]["replicas"], 1, "back to the default");
        assert_eq!(object["metadata"]["labels"], Value::Null);
        let none = server.kubectl_with(&["diff", "-f", "-"], &fewer).await;
        assert_eq!(none.status.code(), Some(0), "{none:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply_is_refused_clearly() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        let apply = ["apply", "--server-side", "-f", "-"];
        let error = server.kubectl_fails(&apply, DEPLOYMENT).await;
        let expected = "Server-side apply not available on the server";
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edit_writes_what_the_editor_leaves() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        server
            .kubectl_apply(&["create", "-f", "-"], DEPLOYMENT)
            .await;
        let edit = |editor: &'static str| {
            let mut command = server.command(&["edit", "deployment", "web"]);
            command.env("KUBE_EDITOR", editor);
            command
        };
        let edited = edit("sed -i s/replicas:.2/replicas:\\ 4/").output().await;
        let edited = String::from_utf8(edited.unwrap().stdout).unwrap();
        assert_eq!(edited, "deployment.apps/web edited\n");
        let same = edit("true").output().await.unwrap();
        let same =
            String::from_utf8(same.stdout).unwrap() + &String::from_utf8(same.stderr).unwrap();
        assert_eq!(same, "Edit cancelled, no changes made.\n");
        let replicas = [
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.replicas}",
        ];
        assert_eq!(server.kubectl(&replicas).await, "4");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subresources_of_a_deployment_are_shown_and_patched() {
    for program in kubectls() {
        let server = TestServer::start_for(program).await;
        server
            .kubectl_apply(&["create", "-f", "-"], DEPLOYMENT)
            .await;
        let scale = ["get", "deployment", "web", "--subresource=scale"];
        let shown = server.kubectl(&scale).await;
        let mut rows = shown
            .lines()
            .map(|row| row.split_whitespace().collect::<Vec<_>>());
        assert_eq!(
            rows.next().unwrap(),
            ["NAME", "DESIRED", "AVAILABLE", "AGE"]
        );
        assert_eq!(rows.next().unwrap()[..3], ["web", "2", "0"]);
        let patch = |subresource: &'static str, patch: &'static str| {
            [
                "patch",
                "deployment",
                "web",
                subresource,
                "--type=merge",
                "-p",
                patch,
            ]
        };
        let scaled = patch("--subresource=scale", r#"{"spec": {"replicas": 5}}"#);
        assert_eq!(
            server.kubectl(&scaled).await,
            "scale.autoscaling/web patched\n"
        );
        let status = patch(
            "--subresource=status",
            r#"{"spec": {"replicas": 7}, "status": {"replicas": 3}}"#,
        );
        server.kubectl(&status).await;
        let both = "jsonpath={.spec.replicas} {.status.replicas} {.metadata.generation}";
        let both = server
            .kubectl(&["get", "deployment", "web", "-o", both])
            .await;
        assert_eq!(both, "5 3 2", "the status subresource changes nothing else");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_type_that_is_not_served_yet_is_said() {
    let server = TestServer::start().await;
    let create = ["create", "service", "nodeport", "n", "--tcp=80"];
    let said = server.kubectl(&create).await;
    assert!(
        said.contains("Warning: spec.type: NodePort is not served by this version"),
        "{said}"
    );
    let label = ["label", "service", "n", "a=b"];
    assert_eq!(server.kubectl(&label).await, "service/n labeled\n");
}
