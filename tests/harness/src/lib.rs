//! Nodes in network namespaces, images, registry and clients for tests and for cargo xtask up.
