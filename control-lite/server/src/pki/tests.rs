//! Certificates on disk: made once, private, renewed when their names or their time ask for it.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;

use super::*;

fn options(folder: &Path, address: &str) -> PkiOptions {
    PkiOptions {
        folder: folder.join("pki"),
        addresses: vec![address.parse().unwrap()],
        names: vec!["control.example".to_owned()],
    }
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join("pki").join(name)).unwrap()
}

#[test]
fn a_second_start_finds_the_certificates_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let names = ["ca.crt", "server.crt", "admin.crt", "kubelet-client.crt"];
    let first = names.map(|name| read(folder.path(), name));
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    assert_eq!(names.map(|name| read(folder.path(), name)), first);
}

#[test]
fn a_new_address_gets_a_new_serving_certificate_of_the_same_authority() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let (ca, server) = (
        read(folder.path(), "ca.crt"),
        read(folder.path(), "server.crt"),
    );
    Pki::open(&options(folder.path(), "10.0.0.2")).unwrap();
    assert_eq!(read(folder.path(), "ca.crt"), ca);
    assert_ne!(read(folder.path(), "server.crt"), server);
}

#[test]
fn every_file_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    pki.write_kubeconfig(&kubeconfig, "https://10.0.0.1:6443")
        .unwrap();
    let files = std::fs::read_dir(folder.path().join("pki")).unwrap();
    let files = files.map(|entry| entry.unwrap().path()).chain([kubeconfig]);
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
}

#[test]
fn a_certificate_without_its_key_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let before = read(folder.path(), "server.crt");
    std::fs::remove_file(folder.path().join("pki/server.key")).unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    assert_ne!(read(folder.path(), "server.crt"), before);
}

#[test]
fn a_lost_authority_key_is_an_error_and_not_a_new_authority() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    std::fs::remove_file(folder.path().join("pki/ca.key")).unwrap();
    let error = Pki::open(&options(folder.path(), "10.0.0.1")).unwrap_err();
    assert!(error.to_string().contains("ca.key"), "{error}");
}

#[test]
fn renewing_while_running_swaps_the_certificate_and_rewrites_the_kubeconfig() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    pki.write_kubeconfig(&kubeconfig, "https://10.0.0.1:6443")
        .unwrap();
    let before = std::fs::read_to_string(&kubeconfig).unwrap();
    let wait = pki.renew().unwrap();
    assert!(wait >= Duration::from_secs(3600), "{wait:?}");
    assert_eq!(std::fs::read_to_string(&kubeconfig).unwrap(), before);
    // What is gone is as good as ended.
    std::fs::remove_file(folder.path().join("pki/admin.crt")).unwrap();
    pki.renew().unwrap();
    let after = std::fs::read_to_string(&kubeconfig).unwrap();
    assert_ne!(after, before);
    let admin = base64::engine::general_purpose::STANDARD.encode(read(folder.path(), "admin.crt"));
    assert!(after.contains(&admin));
}

#[test]
fn a_node_gets_its_kubeconfig_and_its_serving_certificate() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(&options(folder.path(), "10.0.0.1")).unwrap();
    let out = folder.path().join("n1");
    let credentials = NodeCredentials {
        pki_folder: folder.path().join("pki"),
        node: "n1".to_owned(),
        addresses: vec![
            "172.30.0.11".parse().unwrap(),
            "fd00:30::11".parse().unwrap(),
        ],
        server: "https://172.30.0.1:6443".to_owned(),
        out: out.clone(),
    };
    credentials.write().unwrap();
    let text = std::fs::read_to_string(out.join("kubeconfig")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        config["clusters"][0]["cluster"]["server"],
        "https://172.30.0.1:6443"
    );
    assert_eq!(config["users"][0]["name"], "system:node:n1");
    let pem = std::fs::read(out.join("kubelet.crt")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 3);
    assert!(out.join("kubelet.key").exists() && out.join("ca.crt").exists());
}
