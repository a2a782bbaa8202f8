//! Images: imported ones, pulls from a registry on loopback, and what a failed pull says.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{ImageIndexEntry, OciImageIndex, OciManifest, Platform};
use oci_client::secrets::RegistryAuth as PushAuth;
use oci_client::{Client, Reference};
use tholepin_agent::runtime::{ContainerSpec, PullError, RegistryAuth, Runtime};
use tholepin_harness::image::{Image, Recipe};
use tholepin_harness::{Process, skip, tools};

use crate::world::{BUSYBOX, World, exit_of, pod};

/// `user:secret`, for a registry with login.
const HTPASSWD: &str = "user:$2b$04$gaNQ4ZLKzWTrrIcybNSDeOQ42Y1FS1denDJrC.ijTJsrEJlin8OBG\n";

struct Registry {
    process: Process,
    authority: String,
    login: bool,
}

impl Registry {
    fn start(world: &World, login: bool) -> Option<Self> {
        let program = tools::find_installed("docker-registry");
        let program =
            skip::unless(program.ok_or_else(|| anyhow::anyhow!("needs docker-registry")))?;
        // Taken and given back: the registry cannot be told to choose a port and say which.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let authority = format!("127.0.0.1:{port}");
        let name = if login { "login" } else { "open" };
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {:?}}}}}\nhttp: {{addr: \"{authority}\"}}\n",
            world.path(name)
        );
        if login {
            let passwords = world.path("htpasswd");
            fs::write(&passwords, HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {passwords:?}}}}}\n");
        }
        let file = world.path(&format!("{name}.yml"));
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(&file);
        let log = world.path(&format!("{name}.log"));
        let mut process = Process::start("registry", command, None, &log).unwrap();
        let ready = || TcpStream::connect(&authority).is_ok();
        process
            .wait_until("its port", Duration::from_secs(60), ready)
            .unwrap();
        Some(Self {
            process,
            authority,
            login,
        })
    }

    fn client(&self) -> (Client, PushAuth) {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        };
        let auth = match self.login {
            true => PushAuth::Basic("user".into(), "secret".into()),
            false => PushAuth::Anonymous,
        };
        (Client::new(config), auth)
    }

    async fn push(&self, image: &Image, name: &str) -> String {
        let (client, auth) = self.client();
        let name = format!("{}/{name}", self.authority);
        let reference: Reference = name.parse().unwrap();
        let layers = [ImageLayer::oci_v1_gzip(image.layer.bytes.clone(), None)];
        let config = Config::oci_v1(image.config.bytes.clone(), None);
        let manifest = serde_json::from_slice(&image.manifest.bytes).unwrap();
        client
            .push(&reference, &layers, config, &auth, Some(manifest))
            .await
            .unwrap();
        // Once more byte for byte: the client writes its own JSON, with another digest.
        let kind = "application/vnd.oci.image.manifest.v1+json"
            .parse()
            .unwrap();
        let bytes = image.manifest.bytes.clone();
        client
            .push_manifest_raw(&reference, bytes, kind)
            .await
            .unwrap();
        name
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
    }
}

fn busybox(marker: &str) -> Image {
    let recipe = Recipe::new(&["/bin/cat"], &["/marker"])
        .with_busybox()
        .unwrap();
    recipe
        .with_file("marker", 0o644, marker.into())
        .build("x:1")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_images_are_found_by_every_spelling_of_their_name() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    let info = runtime.image(BUSYBOX).await.unwrap().expect("imported");
    assert_eq!(info.reference, BUSYBOX);
    assert!(info.id.starts_with("tholepin.test/busybox@sha256:") && info.size_bytes > 500_000);
    assert_eq!(runtime.images().await.unwrap(), std::slice::from_ref(&info));
    assert_eq!(
        runtime
            .image(&info.id)
            .await
            .unwrap()
            .expect("by digest")
            .reference,
        BUSYBOX
    );
    assert_eq!(runtime.image("busybox").await.unwrap(), None);
    let other = Recipe::new(&[], &["sh"]).with_busybox().unwrap();
    world.import(&other.build("docker.io/library/short:latest").unwrap());
    assert!(runtime.image("short").await.unwrap().is_some());
    let error = runtime.image("NotAName").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "couldn't parse image name \"NotAName\": invalid reference format: repository name \
         (library/NotAName) must be lowercase"
    );
    assert!(
        runtime
            .version()
            .await
            .unwrap()
            .starts_with("containerd://")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_runs_and_a_moved_tag_is_followed() {
    let Some(world) = World::start() else { return };
    let Some(registry) = Registry::start(&world, false) else {
        return;
    };
    let runtime = world.runtime();
    let name = registry.push(&busybox("one"), "team/app:v1").await;
    assert_eq!(runtime.image(&name).await.unwrap(), None);
    let pulls = (0..8).map(|_| runtime.pull(&name, None));
    let pulled = futures::future::try_join_all(pulls).await.unwrap();
    assert!(pulled.iter().all(|info| info == &pulled[0]), "{pulled:?}");
    assert_eq!(
        runtime.image(&name).await.unwrap().as_ref(),
        Some(&pulled[0])
    );

    runtime.ensure_sandbox(&world.sandbox("i")).await.unwrap();
    let run = async |name: &str, image: &str| {
        let log_path = world.path(name);
        let spec = ContainerSpec {
            image: image.into(),
            command: Vec::new(),
            log_path,
            ..world.shell("i", name, "")
        };
        runtime.start_container(&spec).await.unwrap();
        assert_eq!(exit_of(&runtime, name).await.exit_code, 0);
        world.log(&spec)
    };
    assert_eq!(run("one", &pulled[0].reference).await, ["stdout P one"]);

    registry.push(&busybox("two"), "team/app:v1").await;
    let moved = runtime.pull(&name, None).await.unwrap();
    assert_ne!(moved.id, pulled[0].id);
    assert_eq!(run("two", &moved.reference).await, ["stdout P two"]);
    // The old content by its digest, as a pod that pins it would ask for.
    let pinned = runtime.pull(&pulled[0].id, None).await.unwrap();
    assert_eq!(pinned.id, pulled[0].id);
    assert_eq!(run("pinned", &pinned.reference).await, ["stdout P one"]);
    // Nothing that is in use may be garbage once the leases are gone.
    world.ctr(&["content", "prune", "references"]);
    assert_eq!(run("after", &moved.reference).await, ["stdout P two"]);
    assert_eq!(world.ctr(&["leases", "ls", "-q"]), "");
    runtime.remove_sandbox(&pod("i")).await.unwrap();
    world.assert_clean("i").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_image_of_this_platform() {
    let Some(world) = World::start() else { return };
    let Some(registry) = Registry::start(&world, false) else {
        return;
    };
    let runtime = world.runtime();
    let image = busybox("mine");
    registry.push(&image, "multi:native").await;
    let entry = |os: &str, architecture: &str, digest: &str, size: usize| ImageIndexEntry {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: digest.into(),
        size: size as i64,
        platform: Some(Platform {
            os: os.into(),
            architecture: architecture.into(),
            os_version: None,
            os_features: None,
            variant: None,
            features: None,
        }),
        annotations: None,
        artifact_type: None,
    };
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let index = |entries: Vec<ImageIndexEntry>| {
        OciManifest::ImageIndex(OciImageIndex {
            schema_version: 2,
            media_type: Some("application/vnd.oci.image.index.v1+json".into()),
            manifests: entries,
            artifact_type: None,
            annotations: None,
        })
    };
    let own = entry(
        "linux",
        architecture,
        &image.manifest.digest,
        image.manifest.bytes.len(),
    );
    let foreign = entry(
        "linux",
        "s390x",
        &image.manifest.digest,
        image.manifest.bytes.len(),
    );
    let (client, auth) = registry.client();
    let name = format!("{}/multi:both", registry.authority);
    let only = format!("{}/multi:foreign", registry.authority);
    for (name, entries) in [(&name, vec![foreign.clone(), own]), (&only, vec![foreign])] {
        let reference: Reference = name.parse().unwrap();
        client
            .auth(&reference, &auth, oci_client::RegistryOperation::Push)
            .await
            .unwrap();
        client
            .push_manifest(&reference, &index(entries))
            .await
            .unwrap();
    }
    let info = runtime.pull(&name, None).await.unwrap();
    assert!(
        !info.id.ends_with(&image.manifest.digest),
        "the id is the index's"
    );
    runtime.ensure_sandbox(&world.sandbox("x")).await.unwrap();
    let spec = ContainerSpec {
        image: info.reference,
        command: Vec::new(),
        ..world.shell("x", "main", "")
    };
    runtime.start_container(&spec).await.unwrap();
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 0);
    assert_eq!(world.log(&spec), ["stdout P mine"]);
    let error = runtime.pull(&only, None).await.unwrap_err().to_string();
    assert!(
        error.ends_with("no match for platform in manifest: not found"),
        "{error}"
    );
    runtime.remove_sandbox(&pod("x")).await.unwrap();
    world.assert_clean("x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pull_says_what_containerd_would_say() {
    let Some(world) = World::start() else { return };
    let Some(registry) = Registry::start(&world, false) else {
        return;
    };
    let runtime = world.runtime();
    let name = format!("{}/missing/app:v9", registry.authority);
    let error = runtime.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, PullError::Pull { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found"
        )
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = runtime
        .pull(&format!("{closed}/a:1"), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("failed to do request") && error.contains("Connection refused"),
        "{error}"
    );
    let error = runtime.pull("a b", None).await.unwrap_err();
    assert!(matches!(error, PullError::InvalidName { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_login_wants_the_pull_secret() {
    let Some(world) = World::start() else { return };
    let Some(registry) = Registry::start(&world, true) else {
        return;
    };
    let runtime = world.runtime();
    let name = registry.push(&busybox("private"), "private:1").await;
    let auth = |password: &str| {
        Some(RegistryAuth {
            username: "user".into(),
            password: password.into(),
        })
    };
    for refused in [None, auth("wrong")] {
        let error = runtime.pull(&name, refused).await.unwrap_err().to_string();
        assert!(
            error.contains(
                "pull access denied, repository does not exist or may require authorization"
            ),
            "{error}"
        );
        assert!(
            !error.contains("wrong"),
            "a password must not show: {error}"
        );
    }
    assert_eq!(runtime.image(&name).await.unwrap(), None);
    runtime.pull(&name, auth("secret")).await.unwrap();
    assert!(runtime.image(&name).await.unwrap().is_some());
}
