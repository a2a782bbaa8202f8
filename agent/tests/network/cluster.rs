//! Two nodes joined by a veth pair, their pods, and the removal of every trace of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tholepin_agent::dataplane::AttachMode;
use tholepin_agent::dataplane::pin::PinDirectory;
use tholepin_api::proto;
use tholepin_api::proto::cni_client::CniClient;
use tholepin_api::proto::debug_client::DebugClient;

use super::node::{CONFIG_VARIABLE, Input, InputNode, NodeProcess};
use super::sockets::ip;

/// Whether the test can run here.
pub(crate) fn privileged() -> bool {
    tholepin_harness::skip::unless(tholepin_harness::skip::root()).is_some()
}

pub(crate) struct Node {
    pub(crate) netns: String,
    pub(crate) process: NodeProcess,
    pub(crate) child: Child,
}

pub(crate) struct Cluster {
    prefix: String,
    pub(crate) nodes: Vec<Node>,
    pods: BTreeMap<String, (usize, Vec<IpAddr>)>,
    input: Input,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn start(mode: AttachMode) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("thpt-{}-{number}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut cluster = Self {
            prefix: prefix.clone(),
            nodes: Vec::new(),
            pods: BTreeMap::new(),
            input: Input::default(),
            runtime,
            _directory: directory,
        };
        let netns = |number: usize| format!("{prefix}-n{number}");
        for number in 0..2 {
            ip(&["netns", "add", &netns(number)]);
            ip(&["-n", &netns(number), "link", "set", "lo", "up"]);
        }
        let pair = [
            "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns",
        ];
        ip(&[&["-n", &netns(0)], &pair[..], &[&netns(1)]].concat());
        for number in 0..2 {
            let netns = netns(number);
            let v4 = format!("172.30.0.1{number}/16");
            let v6 = format!("fd00:30::1{number}/64");
            ip(&["-n", &netns, "address", "add", &v4, "dev", "eth0"]);
            ip(&["-n", &netns, "address", "add", &v6, "dev", "eth0", "nodad"]);
            ip(&["-n", &netns, "link", "set", "eth0", "up"]);
            cluster.input.nodes.push(InputNode {
                name: format!("n{number}"),
                ranges: vec![
                    format!("10.244.{number}.0/24"),
                    format!("fd00:10:244:{number}::/64"),
                ],
                addresses: vec![format!("172.30.0.1{number}"), format!("fd00:30::1{number}")],
            });
            let process = NodeProcess {
                name: format!("n{number}"),
                addresses: cluster.input.nodes[number].addresses.clone(),
                bpffs_root: PathBuf::from(format!("/sys/fs/bpf/{prefix}-n{number}")),
                directory: cluster._directory.path().join(format!("n{number}")),
                clsact: mode == AttachMode::Clsact,
                binary: std::env::current_exe().unwrap(),
                redirect_peer: true,
                xdp: "off".to_owned(),
                socket_lb: "off".to_owned(),
                cgroup: None,
            };
            std::fs::create_dir_all(&process.directory).unwrap();
            let child = spawn(&netns, &process);
            cluster.nodes.push(Node {
                netns,
                process,
                child,
            });
        }
        cluster.send();
        for node in 0..2 {
            cluster.wait_ready(node);
        }
        cluster
    }

    fn send(&mut self) {
        let line = serde_json::to_string(&self.input).unwrap();
        for node in &mut self.nodes {
            writeln!(node.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        }
    }

    /// Tells both nodes that these are the cluster's Services.
    pub(crate) fn announce(&mut self, services: &[(String, &str, &str, Vec<String>)]) {
        let own = |(name, address, protocol, backends): &(String, &str, &str, Vec<String>)| {
            (
                name.clone(),
                (*address).to_owned(),
                (*protocol).to_owned(),
                backends.clone(),
            )
        };
        self.input.services = services.iter().map(own).collect();
        self.send();
    }

    /// Makes these the cluster's Services and waits until both nodes have them.
    pub(crate) fn publish(&mut self, services: &[(String, &str, &str, Vec<String>)]) {
        self.announce(services);
        let mut expected: Vec<(String, String, Vec<String>)> = Vec::new();
        for (_, address, protocol, backends) in services {
            let mut backends = backends.clone();
            backends.sort();
            expected.push(((*address).to_owned(), protocol.to_lowercase(), backends));
        }
        expected.sort();
        for node in 0..2 {
            self.wait("the Services to be programmed", || {
                let programmed = self.call(node, |channel| async {
                    DebugClient::new(channel)
                        .services(proto::ServicesRequest {})
                        .await
                });
                let mut found: Vec<_> = programmed
                    .ok()?
                    .frontends
                    .into_iter()
                    .map(|frontend| {
                        let backends = frontend.backends.into_iter().map(|b| b.address);
                        let mut backends: Vec<String> = backends.collect();
                        backends.sort();
                        (frontend.address, frontend.protocol, backends)
                    })
                    .collect();
                found.sort();
                (found == expected).then_some(())
            });
        }
    }

    pub(crate) fn kill_and_restart(&mut self, node: usize) {
        let node_ref = &mut self.nodes[node];
        node_ref.child.kill().unwrap();
        node_ref.child.wait().unwrap();
        // Traffic runs a while without any agent.
        std::thread::sleep(Duration::from_millis(300));
        node_ref.child = spawn(&node_ref.netns, &node_ref.process);
        self.wait_ready(node);
    }

    pub(crate) fn wait_ready(&self, node: usize) {
        self.wait("the node to be ready", || {
            let status = self.call(node, |channel| async {
                CniClient::new(channel)
                    .status(proto::StatusRequest {})
                    .await
            });
            status.ok().filter(|status| status.ready).map(drop)
        });
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < give_up, "gave up waiting for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn call<T, F, W>(&self, node: usize, request: F) -> Result<T, String>
    where
        F: FnOnce(tonic::transport::Channel) -> W,
        W: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let socket = self.nodes[node].process.directory.join("run/agent.sock");
        self.runtime.block_on(async {
            let channel = tholepin_api::connect(&socket)
                .await
                .map_err(|e| e.to_string())?;
            let answer = request(channel)
                .await
                .map_err(|status| status.message().to_owned())?;
            Ok(answer.into_inner())
        })
    }

    /// Sends ADD for a pod whose namespace may or may not be there.
    pub(crate) fn try_add(&self, pod: &str, node: usize) -> Result<proto::Attachment, String> {
        let request = proto::AddRequest {
            key: Some(proto::AttachmentKey::new(pod, "eth0")),
            netns: format!("/run/netns/{}", self.pod_netns(pod)),
            pod_namespace: "default".to_owned(),
            pod_name: pod.to_owned(),
            pod_uid: String::new(),
        };
        self.call(node, |channel| async {
            CniClient::new(channel).add(request).await
        })
    }

    /// What `tholepin-cni` leaves when no agent answers.
    pub(crate) fn queue_deletion(&self, pod: &str, node: usize) {
        let queue = self.nodes[node].process.directory.join("run/cni-del");
        std::fs::create_dir_all(&queue).unwrap();
        let text = format!("{{\"container_id\":\"{pod}\",\"interface\":\"eth0\"}}");
        std::fs::write(queue.join(format!("{pod}@eth0.json")), text).unwrap();
    }

    pub(crate) fn collect(&self, node: usize, valid: &[&str]) {
        let valid = valid
            .iter()
            .map(|pod| proto::AttachmentKey::new(*pod, "eth0"))
            .collect();
        let gc = proto::GcRequest { valid };
        self.call(node, |channel| async {
            CniClient::new(channel).gc(gc).await
        })
        .unwrap();
    }

    pub(crate) fn wait_for_leases(&self, node: usize, count: usize) {
        self.wait("the leases to be given back", || {
            (self.leases(node) == count).then_some(())
        });
    }

    /// The mode of the node's next process.
    pub(crate) fn use_mode(&mut self, node: usize, mode: AttachMode) {
        self.nodes[node].process.clsact = mode == AttachMode::Clsact;
    }

    /// How the node's next process balances sockets, and in which cgroup.
    pub(crate) fn use_socket_lb(&mut self, node: usize, mode: &str, cgroup: &Path) {
        let process = &mut self.nodes[node].process;
        mode.clone_into(&mut process.socket_lb);
        process.cgroup = Some(cgroup.to_owned());
    }

    /// Where the node's next process has its front door.
    pub(crate) fn use_xdp(&mut self, node: usize, mode: &str) {
        mode.clone_into(&mut self.nodes[node].process.xdp);
    }

    /// Names of Services, as they are published next, whose `internalTrafficPolicy` is Local.
    pub(crate) fn use_local_policy(&mut self, services: &[&str]) {
        self.input.local = services.iter().map(|name| (*name).to_owned()).collect();
    }

    /// Ports of the nodes for Services, as they are published next.
    pub(crate) fn use_node_ports(&mut self, ports: &[(&str, u16)]) {
        let ports = ports.iter().map(|(name, port)| ((*name).to_owned(), *port));
        self.input.node_ports = ports.collect();
    }

    /// Names of Services, as they are published next, whose `externalTrafficPolicy` is Local.
    pub(crate) fn use_external_local_policy(&mut self, services: &[&str]) {
        self.input.external_local = services.iter().map(|name| (*name).to_owned()).collect();
    }

    /// Names of Services, as they are published next, that hide their clients.
    pub(crate) fn use_masquerade(&mut self, services: &[&str]) {
        self.input.masqueraded = services.iter().map(|name| (*name).to_owned()).collect();
    }

    /// A namespace that is removed with the cluster's.
    pub(crate) fn add_netns(&mut self, name: &str) -> String {
        let netns = self.pod_netns(name);
        ip(&["netns", "add", &netns]);
        self.pods.insert(name.to_owned(), (0, Vec::new()));
        netns
    }

    /// Attaches a pod of the first node's agent that does not want socket load balancing.
    pub(crate) fn add_opted_out_pod(&mut self, pod: &str) {
        let netns = self.pod_netns(pod);
        ip(&["netns", "add", &netns]);
        let path = PathBuf::from(format!("/run/netns/{netns}"));
        self.input.opted_out.push((pod.to_owned(), path));
        self.pods.insert(pod.to_owned(), (0, Vec::new()));
        self.send();
        self.wait("the pod to be attached", || {
            self.check_pod(pod).ok().map(drop)
        });
    }

    /// Where the node pins its maps.
    pub(crate) fn pins(&self, node: usize) -> PinDirectory {
        PinDirectory::at(&self.nodes[node].process.bpffs_root)
    }

    /// The process of a node is killed and not started again yet.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].child.kill().unwrap();
        self.nodes[node].child.wait().unwrap();
    }

    /// Programs of ours on a clsact qdisc.
    pub(crate) fn filters(&self, node: usize, device: &str, direction: &str) -> usize {
        let netns = format!("--net=/run/netns/{}", self.nodes[node].netns);
        let show = ["tc", "filter", "show", "dev", device, direction];
        let output = Command::new("nsenter")
            .arg(netns)
            .args(show)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter(|line| line.contains("direct-action"))
            .count()
    }

    pub(crate) fn pinned_links(&self, node: usize) -> usize {
        std::fs::read_dir(self.links(node)).unwrap().count()
    }

    fn links(&self, node: usize) -> PathBuf {
        let version = format!("v{}", tholepin_ebpf_abi::ABI_VERSION);
        self.nodes[node]
            .process
            .bpffs_root
            .join(version)
            .join("links")
    }

    pub(crate) fn add_pod(&mut self, pod: &str, node: usize) {
        let netns = self.pod_netns(pod);
        ip(&["netns", "add", &netns]);
        let first = self.try_add(pod, node).unwrap();
        assert_eq!(
            self.try_add(pod, node).unwrap(),
            first,
            "ADD is idempotent by its key"
        );
        let addresses = first.addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.pods.insert(pod.to_owned(), (node, addresses));
    }

    pub(crate) fn remove_pod(&mut self, pod: &str) {
        let node = self.pods[pod].0;
        let key = proto::AttachmentKey::new(pod, "eth0");
        self.call(node, |channel| async {
            CniClient::new(channel).del(key).await
        })
        .unwrap();
    }

    pub(crate) fn check_pod(&self, pod: &str) -> Result<IpAddr, String> {
        let key = proto::AttachmentKey::new(pod, "eth0");
        let check = |channel| async { CniClient::new(channel).check(key).await };
        let attachment = self.call(self.pods[pod].0, check)?;
        Ok(attachment.addresses[0].parse().unwrap())
    }

    pub(crate) fn drops(&self, node: usize, reason: &str) -> u64 {
        let drops = |channel| async {
            DebugClient::new(channel)
                .drops(proto::DropsRequest {})
                .await
        };
        let drops = self.call(node, drops).unwrap().drops;
        drops
            .iter()
            .find(|drop| drop.reason == reason)
            .unwrap()
            .packets
    }

    pub(crate) fn address(&self, pod: &str, family: usize) -> IpAddr {
        self.pods[pod].1[family]
    }

    pub(crate) fn pod_netns(&self, pod: &str) -> String {
        format!("{}-{pod}", self.prefix)
    }

    pub(crate) fn node_netns(&self, node: usize) -> String {
        self.nodes[node].netns.clone()
    }

    pub(crate) fn pinned_pod_links(&self, node: usize) -> Vec<String> {
        let names = std::fs::read_dir(self.links(node)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with("-pod_egress")).collect()
    }

    pub(crate) fn directory(&self) -> &std::path::Path {
        self._directory.path()
    }

    /// Ids of the programs that the pinned links of a node run now.
    pub(crate) fn programs_of(&self, node: usize) -> Vec<(PathBuf, u32)> {
        use aya::programs::links::{FdLink, PinnedLink};
        let links = std::fs::read_dir(self.links(node)).unwrap();
        let program = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            let link = FdLink::from(PinnedLink::from_pin(&path).unwrap());
            (path, link.info().unwrap().program_id())
        };
        let mut programs: Vec<_> = links.map(program).collect();
        programs.sort();
        programs
    }

    pub(crate) fn leases(&self, node: usize) -> usize {
        let leases = self.nodes[node].process.directory.join("state/leases");
        std::fs::read_dir(leases).unwrap().count()
    }
}

pub(crate) fn spawn(netns: &str, process: &NodeProcess) -> Child {
    Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        .arg(&process.binary)
        .args(["--exact", "node_process", "--nocapture"])
        .env(CONFIG_VARIABLE, serde_json::to_string(process).unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.child.kill().ok();
            node.child.wait().ok();
            std::fs::remove_dir_all(&node.process.bpffs_root).ok();
        }
        let netns = |name: String| {
            Command::new("ip")
                .args(["netns", "del", &name])
                .status()
                .ok()
        };
        for pod in self.pods.keys() {
            netns(self.pod_netns(pod));
        }
        for number in 0..2 {
            netns(format!("{}-n{number}", self.prefix));
        }
    }
}
