//! The Kubernetes API: registry, HTTP, discovery, authentication, watch, certificates.
//!
//! `registry` is the API in process; `http` puts it on the wire; `server` listens; `pki` makes the
//! certificates all of it uses. Nothing here knows a controller.

mod http;
mod pki;
mod registry;
mod server;

pub use pki::{Credentials, NodeCredentials, Pki, PkiError, PkiOptions, kubeconfig};
pub use registry::{
    ApiResult, DeleteOptions, DeleteOutcome, FieldValidation, GroupResource, ListOptions,
    ObjectList, ObjectWatch, Patch, PatchKind, Propagation, Registry, RegistryConfig,
    RequestContext, Resource, Subresource, UserInfo, VersionMatch, Warnings, WatchEvent,
    WatchEventKind, WatchOptions, resources,
};
pub use server::{ApiServer, ServerConfig};
