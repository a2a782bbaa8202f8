//! Field selectors: `path=value` terms over the few paths a kind supports.

use std::fmt;

/// Why a field selector could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFieldSelector {
    /// No operator in a term.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole selector.
        selector: String,
        /// The term.
        term: String,
    },
    /// A backslash before something else than `\`, `,` or `=`.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// A bare `,` or `=` in a value.
    #[error("invalid field selector: unescaped rune in value: {0}")]
    Unescaped(String),
    /// A path this kind cannot be selected by.
    #[error("{0}")]
    Unsupported(String),
}

/// One term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// Dotted path.
    pub field: String,
    /// Text to compare with.
    pub value: String,
    /// True for `!=`.
    pub is_negated: bool,
}

/// All terms must hold; none selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Selects every object.
    pub const fn everything() -> Self {
        Self { terms: Vec::new() }
    }

    /// One `field=value` term.
    pub fn equal(field: &str, value: &str) -> Self {
        Self {
            terms: vec![FieldTerm {
                field: field.to_owned(),
                value: value.to_owned(),
                is_negated: false,
            }],
        }
    }

    /// Parses, for example, `spec.nodeName=n1,status.phase!=Failed`.
    pub fn parse(text: &str) -> Result<Self, InvalidFieldSelector> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let Some((field, operator, value)) = split_term(term) else {
                return Err(InvalidFieldSelector::Term {
                    selector: text.to_owned(),
                    term: term.to_owned(),
                });
            };
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: unescape(value)?,
                is_negated: operator == "!=",
            });
        }
        Ok(Self { terms })
    }

    /// Whether it selects every object.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The terms.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value that `field` must have, when a term demands exactly one.
    pub fn requires(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.field == field && !t.is_negated)
            .map(|t| t.value.as_str())
    }

    /// Whether an object is selected; `field_of` gives the text of a path.
    pub fn matches(&self, field_of: impl Fn(&str) -> String) -> bool {
        self.terms
            .iter()
            .all(|t| (field_of(&t.field) == t.value) != t.is_negated)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if term.is_negated { "!=" } else { "=" };
            let value = term
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut is_escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    term.char_indices().find_map(|(i, _)| {
        let rest = &term[i..];
        let operator = ["!=", "==", "="]
            .into_iter()
            .find(|o| rest.starts_with(o))?;
        Some((&term[..i], operator, &rest[operator.len()..]))
    })
}

fn unescape(value: &str) -> Result<String, InvalidFieldSelector> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => return Err(InvalidFieldSelector::Escape(format!("\\{next}"))),
                None => return Err(InvalidFieldSelector::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(InvalidFieldSelector::Unescaped(c.to_string())),
            other => out.push(other),
        }
    }
    Ok(out)
}
