//! Expected numbers are those of upstream's deployment_util tests and documentation.
