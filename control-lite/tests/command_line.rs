//! The program's command line as a user types it: exit codes, and errors that name what is wrong.

use std::process::{Command, Output};

fn control(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tholepin-control"))
        .args(arguments)
        .output()
        .expect("the program runs")
}

#[test]
fn help_names_both_commands_and_is_a_success() {
    let output = control(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text.contains("serve") && text.contains("node-credentials"),
        "{text}"
    );
}

#[test]
fn wrong_usage_ends_with_64_and_names_the_argument() {
    let output = control(&["serve", "--no-such-option"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("--no-such-option"), "{text}");
}

#[test]
fn credentials_from_a_folder_without_an_authority_fail_by_node_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let output = control(&[
        "node-credentials",
        "--data-dir",
        &path("data"),
        "--node",
        "n1",
        "--address",
        "192.0.2.1",
        "--server",
        "https://192.0.2.1:6443",
        "--out",
        &path("out"),
    ]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("node n1") && text.contains("ca.crt"),
        "{text}"
    );
    assert!(!dir.path().join("out").join("kubelet.key").exists());
}
