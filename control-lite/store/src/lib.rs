//! The revisioned store: trait, embedded back-end and contract tests.
