//! Label and field selectors: parsing with upstream's errors, and matching.

mod fields;
mod labels;
mod parse;

pub use fields::{FieldSelector, FieldTerm, InvalidFieldSelector};
pub use labels::{LabelSelector, Operator, Requirement, validate_spec};
pub use parse::InvalidLabelSelector;

#[cfg(test)]
mod tests;
