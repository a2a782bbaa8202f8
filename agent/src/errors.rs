//! The whole chain of an error as one line. `Display` of our errors never repeats its source.

use std::error::Error;

/// `outer: middle: inner`, leaving out links that only repeat the one before.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let link = cause.to_string();
        if !link.is_empty() && !text.ends_with(&link) {
            text.push_str(": ");
            text.push_str(&link);
        }
        source = cause.source();
    }
    text
}
