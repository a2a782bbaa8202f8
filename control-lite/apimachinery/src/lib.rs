//! Kinds table, codecs, patches, selectors, Table and Status of the Kubernetes API.
