//! What conditions become over time, and which events they give.

use super::*;

fn ready(status: bool) -> Vec<NodeCondition> {
    vec![NodeCondition {
        kind: "Ready",
        status,
        reason: String::new(),
        message: String::new(),
        transition: SystemTime::UNIX_EPOCH,
    }]
}

#[test]
fn a_ready_node_stays_ready_until_a_problem_has_lasted() {
    let start = Instant::now();
    let (mut early, mut late, mut well) = (ready(false), ready(false), ready(true));
    let since = stay_ready(&ready(true), &mut early, None, start);
    assert!(early[0].status);
    let since = stay_ready(&ready(true), &mut late, since, start + NOT_READY_DELAY);
    assert!(!late[0].status);
    assert_eq!(stay_ready(&ready(false), &mut well, since, start), None);
}

#[test]
fn a_node_that_never_was_ready_does_not_become_it_by_waiting() {
    let mut fresh = ready(false);
    assert!(stay_ready(&[], &mut fresh, None, Instant::now()).is_some());
    assert!(!fresh[0].status);
}

fn conditions(memory: bool, ready: bool) -> Vec<NodeCondition> {
    let condition = |kind, status| NodeCondition {
        kind,
        status,
        reason: String::new(),
        message: String::new(),
        transition: SystemTime::UNIX_EPOCH,
    };
    vec![
        condition("MemoryPressure", memory),
        condition("Ready", ready),
    ]
}

#[test]
fn events_tell_of_conditions_that_turned_and_of_nothing_else() {
    let first = conditions(false, false);
    assert_eq!(turned(&[], &first), ["NodeHasSufficientMemory"]);
    assert_eq!(turned(&first, &conditions(false, true)), ["NodeReady"]);
    assert!(turned(&first, &first).is_empty());
    assert_eq!(
        turned(&conditions(false, true), &conditions(true, false)),
        ["NodeHasInsufficientMemory", "NodeNotReady"]
    );
}

#[test]
fn a_new_boot_id_is_a_reboot_and_a_first_registration_is_none() {
    let facts = MachineFacts::read(std::path::Path::new("/"), eviction::Thresholds::default());
    let node = |boot: &str| -> Node {
        let info = json!({
            "bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
            "osImage": "", "systemUUID": "",
        });
        serde_json::from_value(json!({"metadata": {}, "status": {"nodeInfo": info}})).unwrap()
    };
    assert_eq!(reboot_of(&node(&facts.boot_id), &facts, "n1"), None);
    assert_eq!(reboot_of(&node(""), &facts, "n1"), None);
    assert!(reboot_of(&node("other"), &facts, "n1").is_some());
}
