//! EndpointSlices of Services with a selector: at most 100 endpoints each, changed as little as possible.

mod controller;
mod desired;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use controller::spawn;
