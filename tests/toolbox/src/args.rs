//! Command lines of the form `--flag value`. Small on purpose: the binary has no dependencies.

use std::collections::BTreeMap;
use std::str::FromStr;

/// What is wrong with the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(pub(crate) String);

/// A parsed command line: values by flag name, switches, and what had no flag.
#[derive(Debug, Default)]
pub(crate) struct Args {
    values: BTreeMap<String, String>,
    switches: Vec<String>,
    pub(crate) positional: Vec<String>,
}

impl Args {
    /// Accepts `--flag value` and `--flag=value` for `options`, and `--switch` for `switches`.
    pub(crate) fn parse(
        arguments: impl Iterator<Item = String>,
        options: &[&str],
        switches: &[&str],
    ) -> Result<Self, UsageError> {
        let mut parsed = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--") else {
                parsed.positional.push(argument);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if switches.contains(&name) && inline.is_none() {
                parsed.switches.push(name.to_owned());
            } else if options.contains(&name) {
                let value = inline
                    .or_else(|| arguments.next())
                    .ok_or_else(|| UsageError(format!("`--{name}` needs a value")))?;
                parsed.values.insert(name.to_owned(), value);
            } else {
                return Err(UsageError(format!("unknown flag `--{name}`")));
            }
        }
        Ok(parsed)
    }

    /// Whether the switch was given.
    pub(crate) fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|given| given == switch)
    }

    /// The option's value, if given.
    pub(crate) fn optional<T: FromStr>(&self, option: &str) -> Result<Option<T>, UsageError> {
        self.values
            .get(option)
            .map(|text| {
                text.parse()
                    .map_err(|_| UsageError(format!("`--{option}` cannot be `{text}`")))
            })
            .transpose()
    }

    /// The option's value, or a default.
    pub(crate) fn or<T: FromStr>(&self, option: &str, default: T) -> Result<T, UsageError> {
        Ok(self.optional(option)?.unwrap_or(default))
    }

    /// The value of an option that must be given.
    pub(crate) fn required<T: FromStr>(&self, option: &str) -> Result<T, UsageError> {
        self.optional(option)?
            .ok_or_else(|| UsageError(format!("`--{option}` is required")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, UsageError> {
        Args::parse(
            line.split(' ').map(str::to_owned),
            &["count", "url"],
            &["quiet"],
        )
    }

    #[test]
    fn values_are_taken_after_a_space_or_an_equals_sign() {
        let args = parse("--count 3 --url=http://a/?x=1 --quiet rest").unwrap();
        assert_eq!(args.or("count", 0), Ok(3));
        assert_eq!(args.required("url"), Ok("http://a/?x=1".to_owned()));
        assert!(args.has("quiet"));
        assert_eq!(args.positional, ["rest"]);
    }

    #[test]
    fn an_unknown_flag_a_missing_value_and_a_wrong_number_are_refused() {
        assert!(
            parse("--nope 1")
                .unwrap_err()
                .0
                .contains("unknown flag `--nope`")
        );
        assert!(parse("--count").unwrap_err().0.contains("needs a value"));
        assert!(
            parse("--count x")
                .unwrap()
                .or("count", 1)
                .unwrap_err()
                .0
                .contains("`x`")
        );
    }
}
