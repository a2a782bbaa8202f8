//! The Kubernetes API over HTTP: registry, discovery, authentication, watch.

mod registry;

pub use registry::{
    ApiResult, DeleteOptions, DeleteOutcome, FieldValidation, GroupResource, ListOptions,
    ObjectList, ObjectWatch, Patch, PatchKind, Propagation, Registry, RegistryConfig,
    RequestContext, Resource, Subresource, UserInfo, VersionMatch, Warnings, WatchEvent,
    WatchEventKind, WatchOptions, resources,
};
