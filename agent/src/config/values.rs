//! From the text of an option to its value.

use ipnet::IpNet;

use super::ConfigError;

pub(super) fn mode<T>(option: &'static str, given: Option<&str>) -> Result<T, ConfigError>
where
    T: std::str::FromStr + Default,
    T::Err: std::fmt::Display,
{
    let Some(given) = given else {
        return Ok(T::default());
    };
    given.parse().map_err(|error: T::Err| ConfigError::Value {
        option,
        value: given.to_owned(),
        message: error.to_string(),
    })
}

pub(super) fn node_name(given: Option<String>) -> Result<String, ConfigError> {
    let name = match given {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .map(|name| name.to_lowercase())
            .ok_or(ConfigError::NoHostName)?,
    };
    let is_valid = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        });
    if is_valid {
        Ok(name)
    } else {
        Err(ConfigError::NodeName { name })
    }
}

pub(super) fn parse_all<T>(option: &'static str, values: &[String]) -> Result<Vec<T>, ConfigError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    values
        .iter()
        .map(|value| {
            value
                .trim()
                .parse()
                .map_err(|error: T::Err| ConfigError::Value {
                    option,
                    value: value.clone(),
                    message: error.to_string(),
                })
        })
        .collect()
}

pub(super) fn ranges(
    option: &'static str,
    values: &[String],
    defaults: &[&str],
) -> Result<Vec<IpNet>, ConfigError> {
    if values.is_empty() {
        let defaults: Vec<String> = defaults.iter().map(|text| (*text).to_owned()).collect();
        return parse_all(option, &defaults);
    }
    parse_all(option, values)
}
