//! Rules of names, labels, ports and keys, with upstream's texts, and generated names.

use crate::field::{ErrorList, FieldError, Path};
use rand::Rng;

/// Whether a text is valid: one message per broken rule.
pub type Messages = Vec<String>;
/// A rule for object names.
pub type NameRule = fn(&str) -> Messages;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
     and must start and end with an alphanumeric character";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
     '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
     start with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, \
     '-', '_' or '.', and must start and end with an alphanumeric character";

/// Without vowels and look-alikes, so that no words form.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const GENERATED_LENGTH_LIMIT: usize = 63;

/// `base` plus five random characters; `base` is cut so that the result is a DNS label in length.
pub fn generate(base: &str) -> String {
    let limit = GENERATED_LENGTH_LIMIT - SUFFIX_LENGTH;
    let cut = base
        .char_indices()
        .map(|(i, _)| i)
        .chain([base.len()])
        .take_while(|i| *i <= limit)
        .last();
    format!(
        "{}{}",
        &base[..cut.unwrap_or_default()],
        suffix(SUFFIX_LENGTH)
    )
}

/// `length` random characters of the suffix alphabet.
pub fn suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())]))
        .collect()
}

/// Encodes a hash in the suffix alphabet, as pod-template-hash is.
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(SUFFIX_ALPHABET[usize::from(b) % SUFFIX_ALPHABET.len()]))
        .collect()
}

fn length_message(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

fn regex_message(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn is_lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn matches_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(f), Some(l)) if is_lower_alnum(*f) && is_lower_alnum(*l))
        && bytes.iter().all(|b| is_lower_alnum(*b) || *b == b'-')
}

fn matches_subdomain(text: &str) -> bool {
    text.split('.').all(matches_label)
}

/// RFC 1123 label, at most 63 characters.
pub fn dns_label(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 63 {
        messages.push(length_message(63));
    }
    if !matches_label(text) {
        if matches_subdomain(text) {
            messages.push("must not contain dots".to_owned());
        } else {
            messages.push(regex_message(
                LABEL_MESSAGE,
                LABEL_FMT,
                &["my-name", "123-abc"],
            ));
        }
    }
    messages
}

/// RFC 1123 subdomain, at most 253 characters.
pub fn dns_subdomain(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 253 {
        messages.push(length_message(253));
    }
    if !matches_subdomain(text) {
        let pattern = format!("{LABEL_FMT}(\\.{LABEL_FMT})*");
        messages.push(regex_message(SUBDOMAIN_MESSAGE, &pattern, &["example.com"]));
    }
    messages
}

/// RFC 1035 label: starts with a letter. Service names.
pub fn dns1035_label(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 63 {
        messages.push(length_message(63));
    }
    if !matches_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        messages.push(regex_message(
            DNS1035_MESSAGE,
            DNS1035_FMT,
            &["my-name", "abc-123"],
        ));
    }
    messages
}

/// A name that only has to be one path segment.
pub fn path_segment(text: &str) -> Messages {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => ['/', '%']
            .iter()
            .filter(|c| text.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}

fn matches_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(f), Some(l)) if f.is_ascii_alphanumeric() && l.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A label key or other `prefix/name`.
pub fn qualified_name(text: &str) -> Messages {
    let mut messages = Vec::new();
    let examples = ["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else {
                messages.extend(
                    dns_subdomain(prefix)
                        .into_iter()
                        .map(|m| format!("prefix part {m}")),
                );
            }
            *name
        }
        _ => {
            let message = regex_message(QUALIFIED_MESSAGE, QUALIFIED_FMT, &examples);
            return vec![format!(
                "a valid label key {message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        messages.push(format!("name part {}", length_message(63)));
    }
    if !matches_qualified(name) {
        messages.push(format!(
            "name part {}",
            regex_message(QUALIFIED_MESSAGE, QUALIFIED_FMT, &examples)
        ));
    }
    messages
}

/// A label value: empty, or like a name, at most 63 characters.
pub fn label_value(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 63 {
        messages.push(length_message(63));
    }
    if !text.is_empty() && !matches_qualified(text) {
        let pattern = format!("({QUALIFIED_FMT})?");
        messages.push(regex_message(
            LABEL_VALUE_MESSAGE,
            &pattern,
            &["MyValue", "my_value", "12345"],
        ));
    }
    messages
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 253 {
        messages.push(length_message(253));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        messages.push(regex_message(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => messages.push("must not be '.'".to_owned()),
        ".." => messages.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => messages.push("must not start with '..'".to_owned()),
        _ => {}
    }
    messages
}

/// The name of an environment variable.
pub fn env_var_name(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.is_empty() {
        messages.push("environment variable name must be non-empty".to_owned());
    }
    if !text
        .chars()
        .all(|c| (c.is_ascii_graphic() || c == ' ') && c != '=')
    {
        messages.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    messages
}

/// The name of a port (an IANA service name).
pub fn port_name(text: &str) -> Messages {
    let mut messages = Vec::new();
    if text.len() > 15 {
        messages.push(length_message(15));
    }
    if text.is_empty() || !text.bytes().all(|b| is_lower_alnum(b) || b == b'-') {
        messages.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// A port number.
pub fn port_number(port: i64) -> Messages {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// Turns messages about `value` into field errors.
pub fn errors(path: &Path, value: &str, messages: Messages) -> ErrorList {
    messages
        .into_iter()
        .map(|m| FieldError::invalid(path, value, m))
        .collect()
}

/// A name prefix may end in a dash, because characters follow.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!(
            "{}a",
            &rest[..rest.len() - rest.chars().last().map_or(0, char::len_utf8)]
        ),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_upper_case_name_gets_upstreams_sentence() {
        assert_eq!(
            dns_subdomain("Web"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
              start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1035_label("1a"),
            [
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
              character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
              validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn label_keys_and_values_follow_their_rules() {
        assert!(qualified_name("app.kubernetes.io/name").is_empty());
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert!(qualified_name("a/b/c")[0].starts_with("a valid label key must consist"));
        assert!(label_value("").is_empty());
        assert_eq!(label_value("-a").len(), 1);
        assert_eq!(
            label_value(&"a".repeat(64)),
            ["must be no more than 63 characters"]
        );
    }

    #[test]
    fn port_names_break_several_rules_at_once() {
        assert_eq!(port_name("8-0--").len(), 3);
        assert!(port_name("http-alt").is_empty());
    }

    #[test]
    fn a_generated_name_is_cut_to_a_labels_length() {
        let name = generate(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(generate("web-").starts_with("web-"));
        assert_eq!(generate("web-").len(), 9);
    }

    proptest! {
        #[test]
        fn generated_names_of_valid_bases_are_valid(base in "[a-z]([-a-z0-9]{0,70}[a-z0-9])?-?") {
            prop_assert!(dns_label(&generate(&base)).is_empty());
        }

        #[test]
        fn masking_never_panics(text in "\\PC{0,8}") {
            drop(mask_trailing_dash(&text));
        }
    }
}
