//! An image registry inside the fabric namespace: Debian's docker-registry, plain HTTP, no login. For
//! tests of the pull path.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::layout::{FABRIC_IPV4, Layout, REGISTRY_PORT};
use crate::netns;
use crate::process::Process;
use crate::tools;

/// `172.30.0.1:5000`, as image names and agents' options have it.
#[must_use]
pub fn authority() -> String {
    format!("{FABRIC_IPV4}:{REGISTRY_PORT}")
}

/// Starts the registry and waits until it answers.
pub fn start(layout: &Layout) -> Result<Process> {
    let program = tools::find_installed("docker-registry")
        .context("docker-registry is not installed: run `cargo xtask setup --ci`")?;
    let dir = layout.state_dir.join("registry");
    fs::create_dir_all(&dir)?;
    let configuration = format!(
        "version: 0.1\n\
         log: {{level: info, accesslog: {{disabled: false}}}}\n\
         storage: {{filesystem: {{rootdirectory: \"{}\"}}}}\n\
         http: {{addr: \"{}\"}}\n",
        dir.join("data").display(),
        authority()
    );
    let file = dir.join("config.yml");
    fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("serve").arg(&file);
    let fabric = layout.id.fabric();
    let log = layout.log_dir().join("registry.log");
    let mut process = Process::start("registry", command, Some(&fabric), &log)?;
    process.wait_until("its port", Duration::from_secs(60), || {
        netns::inside(&fabric, || {
            TcpStream::connect((FABRIC_IPV4, REGISTRY_PORT)).is_ok()
        })
        .unwrap_or(false)
    })?;
    Ok(process)
}

#[cfg(feature = "client")]
/// Pushes an image to the registry as `path:tag`; its name for a pod's spec.
pub fn push(layout: &Layout, image: &crate::image::Image, path_and_tag: &str) -> Result<String> {
    use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
    use oci_client::{Client, Reference, manifest, secrets::RegistryAuth};

    crate::client::install_crypto_provider();
    let name = format!("{}/{path_and_tag}", authority());
    let reference: Reference = name.parse().with_context(|| format!("image name {name}"))?;
    let parsed = serde_json::from_slice(&image.manifest.bytes)?;
    let layer = ImageLayer::oci_v1_gzip(image.layer.bytes.clone(), None);
    let config = Config::oci_v1(image.config.bytes.clone(), None);
    let pushed = netns::inside(&layout.id.fabric(), move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..Default::default()
        });
        let parsed: manifest::OciImageManifest = parsed;
        let layers = [layer];
        runtime.block_on(client.push(
            &reference,
            &layers,
            config,
            &RegistryAuth::Anonymous,
            Some(parsed),
        ))?;
        Ok(())
    })?;
    pushed.with_context(|| format!("cannot push {name}"))?;
    Ok(name)
}
