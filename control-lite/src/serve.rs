//! Starts everything in order, says so, and ends it in reverse when a signal comes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tholepin_apiserver::{ApiServer, Pki, PkiOptions, Registry, RegistryConfig, ServerConfig};
use tholepin_controllers::Context;
use tholepin_informer::{Caches, Recorder};
use tholepin_store::{EmbeddedOptions, EmbeddedStore};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{Config, first_address};
use crate::listeners;
use crate::registry_client::RegistryClient;

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(config: Config, passed: Vec<std::net::TcpListener>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut sockets = Vec::new();
    for socket in passed {
        sockets.push(listeners::register(socket).context("failed to use a passed socket")?);
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;

    std::fs::create_dir_all(&config.data_dir).with_context(|| {
        format!(
            "failed to make the data folder {}",
            config.data_dir.display()
        )
    })?;
    let path = config.data_dir.join("store.redb");
    let store = EmbeddedStore::open(&EmbeddedOptions::new(&path))
        .with_context(|| format!("failed to open the store {}", path.display()))?;
    let registry_config = RegistryConfig {
        service_ranges: config.service_ranges.clone(),
        ..Default::default()
    };
    let registry = Registry::open(Arc::new(store), registry_config)
        .await
        .context("failed to read the store")?;
    tracing::info!(revision = registry.current_revision(), path = %path.display(), "store open");

    let pki = Pki::open(&PkiOptions {
        folder: config.data_dir.join("pki"),
        addresses: certificate_addresses(&config),
        names: config.tls_san.clone(),
    })
    .context("failed to prepare the certificates")?;
    tracing::info!(folder = %config.data_dir.join("pki").display(), "certificates ready");

    sockets.push(listeners::bind(config.listen).await?);
    for socket in &sockets {
        tracing::info!(address = %socket.local_addr()?, "listening");
    }
    let server = ApiServer::new(ServerConfig { pki: pki.clone() }, registry.clone())
        .context("failed to prepare the API server")?;
    let serving = CancellationToken::new();
    let server = tokio::spawn(server.serve(sockets, serving.clone()));

    // Ends before the API does, so that nobody writes into a closing store.
    let controlling = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(pki.clone().keep_renewed(controlling.clone()));
    let caches = start_controllers(&config, registry, &mut tasks, &controlling);
    caches.wait_synced().await;
    tracing::info!("controllers and scheduler running");

    if let Some(path) = &config.write_kubeconfig {
        pki.write_kubeconfig(path, &config.kubeconfig_server)
            .with_context(|| format!("failed to write the kubeconfig {}", path.display()))?;
        tracing::info!(path = %path.display(), "kubeconfig written");
    }
    tracing::info!("ready in {} ms", started.elapsed().as_millis());

    let failed = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        // Every task runs until it is cancelled: one that ends early has panicked.
        Some(outcome) = tasks.join_next() => {
            tracing::error!(?outcome, "a part of the control plane ended on its own");
            true
        }
    };
    tracing::info!("stopping");
    controlling.cancel();
    while tasks.join_next().await.is_some() {}
    serving.cancel();
    server.await.context("the API server panicked")?;
    anyhow::ensure!(!failed, "a part of the control plane ended on its own");
    Ok(())
}

fn certificate_addresses(config: &Config) -> Vec<IpAddr> {
    let mut addresses = vec![config.settings.advertise_address];
    addresses.extend(
        ["127.0.0.1", "::1"]
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok()),
    );
    if !config.listen.ip().is_unspecified() {
        addresses.push(config.listen.ip());
    }
    addresses.extend(config.service_ranges.iter().map(first_address));
    addresses
}

fn start_controllers(
    config: &Config,
    registry: Registry,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) -> Arc<Caches> {
    let client = RegistryClient::new(registry);
    let caches = Caches::new(client.clone());
    let (recorder, recording) = Recorder::new(client, cancel.clone());
    tasks.spawn(recording);
    let context = Context {
        caches: caches.clone(),
        recorder: recorder.clone(),
    };
    tholepin_controllers::spawn(&context, &config.settings, tasks, cancel);
    tholepin_scheduler::spawn(&caches, &recorder, tasks, cancel);
    // Last: every handler has to be there for the first list.
    caches.spawn(tasks, cancel);
    caches
}
