//! Every verb against every kind of answer, through the real binary and a real socket.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use tholepin_api::proto;
use tholepin_api::proto::cni_server::{Cni, CniServer};
use tonic::{Request, Response, Status};

/// An agent that answers every request the same way and remembers what it was asked.
#[derive(Clone)]
struct FakeAgent {
    refusal: Option<Status>,
    impaired: bool,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeAgent {
    fn answer<T>(&self, asked: String, answer: T) -> Result<Response<T>, Status> {
        self.asked.lock().unwrap().push(asked);
        self.refusal.clone().map_or(Ok(Response::new(answer)), Err)
    }
}

fn attachment() -> proto::Attachment {
    proto::Attachment {
        key: Some(proto::AttachmentKey::new("c1", "eth0")),
        addresses: vec!["10.244.1.2".to_owned(), "fd00:10:244:1::2".to_owned()],
        host_interface: "thp0123456789a".to_owned(),
        mac: vec![0x0a, 1, 2, 3, 4, 5],
        mtu: 1450,
        gateways: vec!["169.254.1.1".to_owned(), "fe80::1".to_owned()],
    }
}

#[tonic::async_trait]
impl Cni for FakeAgent {
    async fn add(
        &self,
        request: Request<proto::AddRequest>,
    ) -> Result<Response<proto::Attachment>, Status> {
        let r = request.into_inner();
        self.answer(
            format!("add {} {}/{}", r.netns, r.pod_namespace, r.pod_name),
            attachment(),
        )
    }
    async fn del(
        &self,
        request: Request<proto::AttachmentKey>,
    ) -> Result<Response<proto::DelResponse>, Status> {
        self.answer(
            format!("del {}", request.into_inner().container_id),
            proto::DelResponse {},
        )
    }
    async fn check(
        &self,
        _: Request<proto::AttachmentKey>,
    ) -> Result<Response<proto::Attachment>, Status> {
        self.answer("check".to_owned(), attachment())
    }
    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let reason = "no pod ranges".to_owned();
        let ready = !self.impaired;
        self.answer(
            "status".to_owned(),
            proto::StatusResponse {
                ready,
                reason,
                impaired: self.impaired,
            },
        )
    }
    async fn gc(
        &self,
        request: Request<proto::GcRequest>,
    ) -> Result<Response<proto::GcResponse>, Status> {
        let valid = request.into_inner().valid.len();
        self.answer(
            format!("gc {valid}"),
            proto::GcResponse {
                removed: Vec::new(),
            },
        )
    }
}

/// A run directory, with an agent in it or not.
struct Setup {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

fn setup(agent: Option<(Option<Status>, bool)>) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    if let Some((refusal, impaired)) = agent {
        let fake = FakeAgent {
            refusal,
            impaired,
            asked: Arc::clone(&asked),
        };
        let guard = runtime.enter();
        let listener = tokio::net::UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        drop(guard);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(CniServer::new(fake))
                .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)),
        );
    }
    Setup {
        directory,
        asked,
        _runtime: runtime,
    }
}

fn config(run_dir: &Path, version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "type": "tholepin-cni", "runDir": run_dir})
}

/// Runs the plugin; whether it succeeded and what it printed.
fn plugin(verb: &str, config: &Value, change: &[(&str, &str)]) -> (bool, Value) {
    run_plugin(verb, &config.to_string(), change)
}

fn run_plugin(verb: &str, input: &str, change: &[(&str, &str)]) -> (bool, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tholepin-cni"));
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_IFNAME", "eth0");
    command
        .env("CNI_NETNS", "/run/netns/x")
        .env("CNI_PATH", "/opt/cni/bin");
    command.env(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
    );
    command.envs(change.iter().copied());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap()
    };
    (output.status.success(), value)
}

fn expect_error(outcome: &(bool, Value), code: u64) {
    assert!(!outcome.0, "{}", outcome.1);
    assert_eq!(outcome.1["code"], code, "{}", outcome.1);
    assert!(!outcome.1["msg"].as_str().unwrap().is_empty());
    assert!(outcome.1["cniVersion"].is_string());
}

#[test]
fn version_lists_what_is_supported_also_for_a_caller_that_sends_nothing() {
    for input in ["", "{\"cniVersion\":\"0.4.0\"}"] {
        let (ok, value) = run_plugin("VERSION", input, &[]);
        assert!(ok);
        assert_eq!(
            value["supportedVersions"],
            json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
}

#[test]
fn add_answers_in_the_shape_of_each_version() {
    let setup = setup(Some((None, false)));
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (ok, value) = plugin("ADD", &config(setup.directory.path(), version), &[]);
        assert!(ok, "{value}");
        assert_eq!(value["cniVersion"], version);
        assert_eq!(value["ips"][0]["address"], "10.244.1.2/32");
        assert_eq!(value["ips"][1]["address"], "fd00:10:244:1::2/128");
        assert_eq!(value["ips"][0]["interface"], 1);
        assert_eq!(value["interfaces"][1]["name"], "eth0");
        assert_eq!(value["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(value["interfaces"][1]["mac"], "0a:01:02:03:04:05");
        assert_eq!(value["routes"][1]["gw"], "fe80::1");
        let old = version.starts_with("0.");
        assert_eq!(
            value["ips"][0]["version"],
            if old { json!("4") } else { Value::Null }
        );
        let mtu = if version == "1.1.0" {
            json!(1450)
        } else {
            Value::Null
        };
        assert_eq!(value["interfaces"][1]["mtu"], mtu);
    }
    assert_eq!(
        setup.asked.lock().unwrap()[0],
        "add /run/netns/x default/web-0"
    );
}

#[test]
fn add_without_an_agent_waits_two_seconds_and_says_try_again() {
    let setup = setup(None);
    let start = Instant::now();
    expect_error(
        &plugin("ADD", &config(setup.directory.path(), "1.0.0"), &[]),
        11,
    );
    assert!(
        (2..10).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_refusal_of_the_agent_becomes_the_specified_code() {
    for (status, code) in [
        (Status::unavailable("starting"), 11),
        (Status::resource_exhausted("no free address"), 11),
        (Status::internal("netlink failed"), 100),
    ] {
        let message = status.message().to_owned();
        let setup = setup(Some((Some(status), false)));
        let outcome = plugin("ADD", &config(setup.directory.path(), "1.0.0"), &[]);
        expect_error(&outcome, code);
        assert!(outcome.1["msg"].as_str().unwrap().contains(&message));
    }
}

#[test]
fn bad_input_is_refused_with_its_own_code_before_the_agent_is_asked() {
    let setup = setup(Some((None, false)));
    let run_dir = setup.directory.path();
    let good = config(run_dir, "1.0.0");
    expect_error(&plugin("ADD", &config(run_dir, "2.0.0"), &[]), 1);
    expect_error(&plugin("ADD", &good, &[("CNI_NETNS", "")]), 4);
    expect_error(&plugin("ADD", &good, &[("CNI_CONTAINERID", "")]), 4);
    expect_error(&plugin("ADD", &good, &[("CNI_CONTAINERID", "../x")]), 4);
    expect_error(&plugin("ADD", &good, &[("CNI_IFNAME", "a/b")]), 4);
    expect_error(
        &plugin("ADD", &good, &[("CNI_IFNAME", "sixteen-letters-")]),
        4,
    );
    expect_error(&plugin("ADD", &good, &[("CNI_ARGS", "nonsense")]), 4);
    expect_error(&plugin("", &good, &[]), 4);
    expect_error(&plugin("FLY", &good, &[]), 4);
    expect_error(&run_plugin("ADD", "{", &[]), 6);
    expect_error(
        &plugin(
            "ADD",
            &json!({"cniVersion": "1.0.0", "runDir": run_dir}),
            &[],
        ),
        7,
    );
    assert!(setup.asked.lock().unwrap().is_empty());
}

#[test]
fn del_succeeds_through_the_agent_also_without_a_namespace() {
    let setup = setup(Some((None, false)));
    let outcome = plugin(
        "DEL",
        &config(setup.directory.path(), "1.0.0"),
        &[("CNI_NETNS", "")],
    );
    assert_eq!(outcome, (true, Value::Null));
    assert_eq!(*setup.asked.lock().unwrap(), ["del c1"]);
    assert!(!setup.directory.path().join("cni-del").exists());
}

#[test]
fn del_is_queued_and_succeeds_when_the_agent_is_down_or_not_ready() {
    for agent in [None, Some((Some(Status::unavailable("starting")), false))] {
        let setup = setup(agent);
        for _ in 0..2 {
            let outcome = plugin("DEL", &config(setup.directory.path(), "1.0.0"), &[]);
            assert_eq!(outcome, (true, Value::Null));
        }
        let queue = setup.directory.path().join("cni-del");
        let files: Vec<_> = std::fs::read_dir(queue)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let queued: Value = serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap();
        assert_eq!(queued, json!({"container_id": "c1", "interface": "eth0"}));
    }
}

#[test]
fn del_fails_when_it_can_neither_be_done_nor_queued() {
    let setup = setup(None);
    std::fs::write(setup.directory.path().join("cni-del"), "a file").unwrap();
    expect_error(
        &plugin("DEL", &config(setup.directory.path(), "1.0.0"), &[]),
        5,
    );
}

#[test]
fn check_compares_with_prev_result() {
    let agent = setup(Some((None, false)));
    let mut with_result = config(agent.directory.path(), "1.0.0");
    expect_error(&plugin("CHECK", &with_result, &[]), 7);
    with_result["prevResult"] =
        json!({"ips": [{"address": "10.244.1.2/32"}, {"address": "fd00:10:244:1::2/128"}]});
    assert_eq!(plugin("CHECK", &with_result, &[]), (true, Value::Null));
    with_result["prevResult"] = json!({"ips": [{"address": "10.244.1.9/32"}]});
    expect_error(&plugin("CHECK", &with_result, &[]), 101);

    let unknown = setup(Some((Some(Status::not_found("unknown")), false)));
    with_result["runDir"] = json!(unknown.directory.path());
    expect_error(&plugin("CHECK", &with_result, &[]), 3);
    let down = setup(None);
    with_result["runDir"] = json!(down.directory.path());
    expect_error(&plugin("CHECK", &with_result, &[]), 11);
    with_result["cniVersion"] = json!("0.3.1");
    expect_error(&plugin("CHECK", &with_result, &[]), 1);
}

#[test]
fn status_tells_ready_unavailable_and_impaired_apart() {
    let ready = setup(Some((None, false)));
    let outcome = plugin("STATUS", &config(ready.directory.path(), "1.1.0"), &[]);
    assert_eq!(outcome, (true, Value::Null));
    expect_error(
        &plugin("STATUS", &config(ready.directory.path(), "1.0.0"), &[]),
        1,
    );
    let down = setup(None);
    expect_error(
        &plugin("STATUS", &config(down.directory.path(), "1.1.0"), &[]),
        50,
    );
    let impaired = setup(Some((None, true)));
    expect_error(
        &plugin("STATUS", &config(impaired.directory.path(), "1.1.0"), &[]),
        51,
    );
}

#[test]
fn gc_needs_the_list_and_never_takes_its_absence_for_an_empty_one() {
    let agent = setup(Some((None, false)));
    let mut gc = config(agent.directory.path(), "1.1.0");
    expect_error(&plugin("GC", &gc, &[]), 7);
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(plugin("GC", &gc, &[]), (true, Value::Null));
    assert_eq!(*agent.asked.lock().unwrap(), ["gc 1"]);
    let down = setup(None);
    gc["runDir"] = json!(down.directory.path());
    assert_eq!(plugin("GC", &gc, &[]), (true, Value::Null));
}
