//! The Kubernetes client of tests, and waiting: on watches, with what was last seen in the error.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client, Config, Resource};

use crate::cluster::{Cluster, Options};

/// Makes ring the process's TLS implementation; more than once does no harm.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

impl Cluster {
    /// Starts a cluster for a test.
    pub async fn start(options: Options) -> Result<Self> {
        tokio::task::spawn_blocking(move || Self::start_blocking(options))
            .await
            .context("starting the cluster panicked")?
    }

    /// A client with the administrator's credentials.
    pub async fn client(&self) -> Result<Client> {
        install_crypto_provider();
        let kubeconfig = Kubeconfig::read_from(self.layout.kubeconfig())?;
        let choice = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &choice).await?;
        Ok(Client::try_from(config)?)
    }

    /// Runs a blocking harness call (kubectl, a kill, a restart) without holding up the test's runtime.
    pub async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(work)
            .await
            .context("the call panicked")
    }
}

/// Waits on a watch until the object (`None`: it does not exist) is as wanted, and returns it.
pub async fn wait_for<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + Send + serde::de::DeserializeOwned + 'static,
{
    // Typed objects are large; on the heap they do not make every test's future large.
    Box::pin(watch(api, name, what, limit, wanted)).await
}

async fn watch<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let mut last: Option<K> = None;
    let mut error = None;
    let mut stream = Box::pin(watcher::watch_object(api, name));
    let found = tokio::time::timeout(limit, async {
        while let Some(event) = stream.next().await {
            match event {
                Ok(object) => {
                    last = object;
                    if wanted(last.as_ref()) {
                        return true;
                    }
                }
                // The watcher tries again by itself; the server may be on its way back.
                Err(problem) => error = Some(problem),
            }
        }
        false
    });
    match found.await {
        Ok(true) => Ok(last),
        _ => bail!(
            "{name}: not {what} after {limit:?}; last seen: {last:#?}; last watch error: {error:?}"
        ),
    }
}
