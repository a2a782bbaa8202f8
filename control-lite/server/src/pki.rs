//! The cluster's certificates: one authority, and what it signs, as files that renew themselves.
//!
//! `ca`, `server` (serving), `admin` (the kubeconfig) and `kubelet-client` (towards nodes) lie in
//! one folder, each as `.crt` and `.key`, readable by the owner only.

mod authority;
mod files;
mod kubeconfig;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use authority::Credentials;
pub use files::PkiError;
pub use kubeconfig::kubeconfig;

use authority::{Authority, Request};
use tls::Swappable;

/// What the serving certificate is for.
#[derive(Clone, Debug)]
pub struct PkiOptions {
    /// Where the files are.
    pub folder: PathBuf,
    /// Addresses clients reach the server at, and the first addresses of the Service ranges.
    pub addresses: Vec<IpAddr>,
    /// Further names and addresses.
    pub names: Vec<String>,
}

/// The names every serving certificate has.
const SERVER_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The certificates of a control plane.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    authority: Authority,
    serving: Arc<Swappable>,
    kubelet_client: Arc<Swappable>,
    server_request: Request,
    admin: Mutex<Credentials>,
    /// Kubeconfigs that follow the admin certificate: path and server.
    kubeconfigs: Mutex<Vec<(PathBuf, String)>>,
}

impl Pki {
    /// Reads the certificates; makes those that are missing, about to end, or for other names.
    pub fn open(options: &PkiOptions) -> Result<Arc<Self>, PkiError> {
        files::make_folder(&options.folder)?;
        let authority = Authority::load_or_create(&options.folder)?;
        let mut names: Vec<String> = SERVER_NAMES.map(str::to_owned).to_vec();
        names.extend(["127.0.0.1", "::1"].map(str::to_owned));
        names.extend(options.addresses.iter().map(IpAddr::to_string));
        names.extend(options.names.iter().cloned());
        let server_request = Request::server("kube-apiserver", names);
        let serving = authority.ensure(&options.folder, "server", &server_request)?;
        let client = authority.ensure(&options.folder, "kubelet-client", &kubelet_client())?;
        let admin = authority.ensure(&options.folder, "admin", &admin())?;
        Ok(Arc::new(Self {
            folder: options.folder.clone(),
            serving: Arc::new(Swappable::new(&serving)?),
            kubelet_client: Arc::new(Swappable::new(&client)?),
            authority,
            server_request,
            admin: Mutex::new(admin),
            kubeconfigs: Mutex::default(),
        }))
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// TLS towards clients: certificates of the cluster's authority are verified, none is needed.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        tls::server_config(self.authority.pem(), Arc::clone(&self.serving))
    }

    /// TLS towards nodes: their certificates are verified, ours is shown.
    pub fn kubelet_config(&self) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        tls::client_config(self.authority.pem(), Arc::clone(&self.kubelet_client))
    }

    /// Writes the administrator's kubeconfig, and again whenever its certificate is renewed.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        {
            let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
            let text = kubeconfig(server, self.authority.pem(), "kubernetes-admin", &admin);
            files::write_private(path, text.as_bytes())?;
        }
        let mut kubeconfigs = self
            .kubeconfigs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kubeconfigs.push((path.to_path_buf(), server.to_owned()));
        Ok(())
    }

    /// Renews what is about to end, once it is. Runs until cancelled.
    pub async fn keep_renewed(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let wait = match self.renew() {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "renewing certificates failed; trying again in ten minutes"
                    );
                    Duration::from_secs(600)
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => (),
            }
        }
    }

    /// Renews what has to be and tells how long nothing else will have to be.
    fn renew(&self) -> Result<Duration, PkiError> {
        let serving = self
            .authority
            .ensure(&self.folder, "server", &self.server_request)?;
        let client = self
            .authority
            .ensure(&self.folder, "kubelet-client", &kubelet_client())?;
        let admin = self.authority.ensure(&self.folder, "admin", &admin())?;
        self.serving.swap(&serving)?;
        self.kubelet_client.swap(&client)?;
        let next = [&serving, &client, &admin]
            .map(Credentials::renew_at)
            .into_iter()
            .min();
        let changed = {
            let mut present = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *present != admin;
            *present = admin;
            changed
        };
        if changed {
            self.rewrite_kubeconfigs()?;
        }
        let wait = next.unwrap_or_default().duration_since(Timestamp::now());
        // Clocks jump: a look per day costs three small reads.
        let longest = Duration::from_secs(24 * 3600);
        Ok(Duration::try_from(wait)
            .unwrap_or_default()
            .clamp(Duration::from_secs(1), longest))
    }

    fn rewrite_kubeconfigs(&self) -> Result<(), PkiError> {
        let kubeconfigs = self
            .kubeconfigs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let admin = self
            .admin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (path, server) in kubeconfigs {
            let text = kubeconfig(&server, self.authority.pem(), "kubernetes-admin", &admin);
            files::write_private(&path, text.as_bytes())?;
        }
        Ok(())
    }
}

fn admin() -> Request {
    Request::client("kubernetes-admin", &["system:masters"])
}

fn kubelet_client() -> Request {
    Request::client("kube-apiserver-kubelet-client", &["system:masters"])
}

/// What a node needs to join: its kubeconfig and its serving certificate, in `out`.
#[derive(Clone, Debug)]
pub struct NodeCredentials {
    /// The control plane's certificate folder.
    pub pki_folder: PathBuf,
    /// The node's name.
    pub node: String,
    /// The node's addresses, for its serving certificate.
    pub addresses: Vec<IpAddr>,
    /// The API server's URL.
    pub server: String,
    /// Where `kubeconfig`, `ca.crt`, `kubelet.crt` and `kubelet.key` are written.
    pub out: PathBuf,
}

impl NodeCredentials {
    /// Signs and writes them.
    pub fn write(&self) -> Result<(), PkiError> {
        let authority = Authority::load(&self.pki_folder)?;
        files::make_folder(&self.out)?;
        let user = format!("system:node:{}", self.node);
        let client = authority.issue(&Request::client(&user, &["system:nodes"]))?;
        let mut names = vec![self.node.clone()];
        names.extend(self.addresses.iter().map(IpAddr::to_string));
        let serving = authority.issue(&Request {
            groups: vec!["system:nodes".to_owned()],
            ..Request::server(&user, names)
        })?;
        let text = kubeconfig(&self.server, authority.pem(), &user, &client);
        files::write_private(&self.out.join("kubeconfig"), text.as_bytes())?;
        files::write_private(&self.out.join("ca.crt"), authority.pem().as_bytes())?;
        files::write_private(
            &self.out.join("kubelet.crt"),
            serving.certificate_pem.as_bytes(),
        )?;
        files::write_private(&self.out.join("kubelet.key"), serving.key_pem.as_bytes())
    }
}

#[cfg(test)]
mod tests;
