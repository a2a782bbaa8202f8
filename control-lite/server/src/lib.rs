//! The Kubernetes API over HTTP: registry, discovery, authentication, watch.
