//! Parser of label selector strings; its errors are upstream's, because kubectl shows them.

use super::labels::{Operator, Requirement, sorted};
use crate::field::{FieldError, Path};
use crate::names;

/// Why a label selector could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabelSelector {
    /// Inside a requirement.
    #[error("unable to parse requirement: {0}")]
    Requirement(RequirementError),
    /// Between requirements.
    #[error("found '{found}', expected: {expected}")]
    Unexpected {
        /// The token.
        found: String,
        /// What could have stood there.
        expected: &'static str,
    },
}

/// What is wrong inside a requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementError {
    /// Syntax.
    #[error("found '{found}', expected: {expected}")]
    Unexpected {
        /// The token.
        found: String,
        /// What could have stood there.
        expected: &'static str,
    },
    /// The value list of `in` does not open.
    #[error("found '{0}' expected: '('")]
    NoList(String),
    /// A key or value that no label can have.
    #[error("{0}")]
    Field(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    BadSymbol(String),
    End,
}

impl Token {
    fn text(&self) -> String {
        match self {
            Self::Word(w) | Self::BadSymbol(w) => w.clone(),
            Self::Symbol(s) => (*s).to_owned(),
            Self::End => String::new(),
        }
    }
}

const SYMBOLS: [&str; 9] = ["!", "=", "==", "!=", ">", "<", "(", ")", ","];

fn tokens(text: &str) -> Vec<Token> {
    let is_special = |c: char| "=!(),><".contains(c);
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_special(first) {
            // The longest known operator; parentheses and commas stand alone.
            let run: usize = rest.chars().take_while(|c| is_special(*c)).count();
            (1..=run)
                .rev()
                .find(|n| SYMBOLS.contains(&&rest[..*n]))
                .unwrap_or(1)
        } else {
            rest.find(|c: char| is_special(c) || c.is_whitespace())
                .unwrap_or(rest.len())
        };
        let (token, tail) = rest.split_at(length);
        out.push(match SYMBOLS.iter().find(|s| **s == token) {
            Some(symbol) => Token::Symbol(symbol),
            None if is_special(first) => Token::BadSymbol(token.to_owned()),
            None => Token::Word(token.to_owned()),
        });
        rest = tail.trim_start();
    }
    out
}

pub(super) struct Parser {
    tokens: std::vec::IntoIter<Token>,
}

impl Parser {
    pub(super) fn new(text: &str) -> Self {
        Self {
            tokens: tokens(text).into_iter(),
        }
    }

    fn peek(&self) -> Token {
        self.tokens
            .as_slice()
            .first()
            .cloned()
            .unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token::End)
    }

    pub(super) fn requirements(mut self) -> Result<Vec<Requirement>, InvalidLabelSelector> {
        let mut requirements = Vec::new();
        let unexpected = |token: Token, expected| {
            Err(InvalidLabelSelector::Unexpected {
                found: token.text(),
                expected,
            })
        };
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    requirements.push(
                        self.requirement()
                            .map_err(InvalidLabelSelector::Requirement)?,
                    );
                    match self.next() {
                        Token::End => break,
                        Token::Symbol(",") => {
                            let after = self.peek();
                            if !matches!(after, Token::Word(_) | Token::Symbol("!")) {
                                return unexpected(after, "identifier after ','");
                            }
                        }
                        other => return unexpected(other, "',' or 'end of string'"),
                    }
                }
                Token::End => break,
                other => return unexpected(other, "!, identifier, or 'end of string'"),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(requirements)
    }

    fn requirement(&mut self) -> Result<Requirement, RequirementError> {
        let mut first = self.next();
        let is_negated = first == Token::Symbol("!");
        if is_negated {
            first = self.next();
        }
        let Token::Word(key) = first else {
            return Err(RequirementError::Unexpected {
                found: first.text(),
                expected: "identifier",
            });
        };
        let messages = names::qualified_name(&key);
        if !messages.is_empty() {
            // Upstream has no path here and prints Go's nil.
            let error = FieldError::invalid(&Path::new("<nil>"), key.as_str(), messages.join("; "));
            return Err(RequirementError::Field(error.to_string()));
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            let operator = if is_negated {
                Operator::DoesNotExist
            } else {
                Operator::Exists
            };
            return Ok(Requirement {
                key,
                operator,
                values: Vec::new(),
            });
        }
        if is_negated {
            return Ok(Requirement {
                key,
                operator: Operator::DoesNotExist,
                values: Vec::new(),
            });
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        check_values(&key, operator, &values)?;
        Ok(Requirement {
            key,
            operator,
            values: sorted(values),
        })
    }

    fn operator(&mut self) -> Result<Operator, RequirementError> {
        Ok(match self.next() {
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            other => {
                let expected = "in, notin, =, ==, !=, gt, lt";
                return Err(RequirementError::Unexpected {
                    found: other.text(),
                    expected,
                });
            }
        })
    }

    fn exact_value(&mut self) -> Result<String, RequirementError> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(w) => Ok(w),
            other => Err(RequirementError::Unexpected {
                found: other.text(),
                expected: "identifier",
            }),
        }
    }

    /// `(a, b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, RequirementError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(RequirementError::NoList(open.text()));
        }
        let mut values = Vec::new();
        let mut is_place_empty = true;
        loop {
            match self.next() {
                Token::Word(word) if is_place_empty => {
                    values.push(word);
                    is_place_empty = false;
                }
                Token::Symbol(",") => {
                    if is_place_empty {
                        values.push(String::new());
                    }
                    is_place_empty = true;
                }
                Token::Symbol(")") => {
                    if is_place_empty {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                other => {
                    let expected = match (values.is_empty(), is_place_empty) {
                        (true, _) => "',', ')' or identifier",
                        (false, true) => "',', or identifier",
                        (false, false) => "',' or ')'",
                    };
                    return Err(RequirementError::Unexpected {
                        found: other.text(),
                        expected,
                    });
                }
            }
        }
    }
}

fn check_values(key: &str, operator: Operator, values: &[String]) -> Result<(), RequirementError> {
    for (i, value) in values.iter().enumerate() {
        let path = Path::new("values").index(i);
        let is_comparison = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        if is_comparison && value.parse::<i64>().is_err() {
            let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
            return Err(RequirementError::Field(
                FieldError::invalid(&path, value.as_str(), detail).to_string(),
            ));
        }
        let messages = names::label_value(value);
        if !messages.is_empty() {
            // Upstream puts the label's key into the path here.
            let path = path.key(key);
            let error = FieldError::invalid(&path, value.as_str(), messages.join("; "));
            return Err(RequirementError::Field(error.to_string()));
        }
    }
    Ok(())
}
