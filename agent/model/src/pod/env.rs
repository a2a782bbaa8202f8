//! Environment of a container: `$(VAR)` expansion and merging of sources, with upstream's order.

use std::collections::BTreeMap;

use super::DownwardValue;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    /// May hold `$(VAR)`.
    Literal(String),
    Downward(DownwardValue),
    Key(KeyRef),
}

/// A key of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRef {
    pub kind: ObjectKind,
    pub name: String,
    pub key: String,
    pub optional: bool,
}

/// All keys of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFrom {
    pub kind: ObjectKind,
    pub name: String,
    pub prefix: String,
    pub optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    /// As messages name it: `ConfigMap`, `Secret`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// As API errors name it: `configmap "x" not found`.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// Replaces `$(NAME)` by its value; unknown names stay as written and `$$` is one `$`.
#[must_use]
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            expanded.push('$');
            rest = tail;
        } else if let Some(body) = after.strip_prefix('(') {
            match body.find(')') {
                Some(end) => {
                    let name = &body[..end];
                    match lookup(name) {
                        Some(value) => expanded.push_str(&value),
                        None => {
                            expanded.push_str("$(");
                            expanded.push_str(name);
                            expanded.push(')');
                        }
                    }
                    rest = &body[end + 1..];
                }
                None => {
                    // Not closed: an ordinary text.
                    expanded.push_str("$(");
                    rest = body;
                }
            }
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// An environment under construction: later names win, first positions stay.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    pub fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    /// Expands with the variables defined so far; `services` are looked up too, as upstream does.
    #[must_use]
    pub fn expand(&self, text: &str, services: &BTreeMap<String, String>) -> String {
        expand(text, &|name| {
            self.get(name).or_else(|| services.get(name).cloned())
        })
    }

    /// Adds variables that nothing has defined (service variables come last).
    pub fn add_missing(&mut self, others: &BTreeMap<String, String>) {
        for (name, value) in others {
            if !self.values.contains_key(name) {
                self.set(name, value.clone());
            }
        }
    }

    #[must_use]
    pub fn into_pairs(mut self) -> Vec<(String, String)> {
        self.order
            .into_iter()
            .filter_map(|name| self.values.remove(&name).map(|value| (name, value)))
            .collect()
    }
}

/// One port of a Service for [`service_variables`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// The `<NAME>_SERVICE_HOST` family and the Docker-link family of one Service.
#[must_use]
pub fn service_variables(
    name: &str,
    cluster_ip: &str,
    ports: &[ServicePort],
) -> BTreeMap<String, String> {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let mut variables = BTreeMap::new();
    let Some(first) = ports.first() else {
        return variables;
    };
    variables.insert(format!("{prefix}_SERVICE_HOST"), cluster_ip.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    let host = if cluster_ip.contains(':') {
        format!("[{cluster_ip}]")
    } else {
        cluster_ip.to_owned()
    };
    for (index, port) in ports.iter().enumerate() {
        if !port.name.is_empty() {
            variables.insert(
                format!("{prefix}_SERVICE_PORT_{}", upper(&port.name)),
                port.port.to_string(),
            );
        }
        let protocol = port.protocol.to_lowercase();
        let url = format!("{protocol}://{host}:{}", port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let base = format!(
            "{prefix}_PORT_{}_{}",
            port.port,
            port.protocol.to_uppercase()
        );
        variables.insert(format!("{base}_PROTO"), protocol);
        variables.insert(format!("{base}_PORT"), port.port.to_string());
        variables.insert(format!("{base}_ADDR"), cluster_ip.to_owned());
        variables.insert(base, url);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_follows_upstreams_table() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A".to_owned()),
            "VAR_EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, output) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_A)___", "___A___"),
            ("$(VAR_DNE)", "$(VAR_DNE)"),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("$VAR_A", "$VAR_A"),
            ("foo$(VAR_EMPTY)bar", "foobar"),
            ("$(VAR_A", "$(VAR_A"),
            ("$(VAR_A)$(VAR_A)", "AA"),
            ("trailing $", "trailing $"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(input, &lookup), output, "{input}");
        }
    }

    #[test]
    fn service_variables_have_upstreams_seven_names() {
        let ports = [ServicePort {
            name: "http".to_owned(),
            port: 80,
            protocol: "TCP".to_owned(),
        }];
        let variables = service_variables("my-web", "10.96.0.9", &ports);
        for (name, value) in [
            ("MY_WEB_SERVICE_HOST", "10.96.0.9"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
            ("MY_WEB_PORT", "tcp://10.96.0.9:80"),
            ("MY_WEB_PORT_80_TCP", "tcp://10.96.0.9:80"),
            ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
            ("MY_WEB_PORT_80_TCP_PORT", "80"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.96.0.9"),
        ] {
            assert_eq!(
                variables.get(name).map(String::as_str),
                Some(value),
                "{name}"
            );
        }
    }

    #[test]
    fn explicit_variables_win_over_service_variables() {
        let mut environment = Environment::default();
        environment.set("A", "1".to_owned());
        environment.set("B", "2".to_owned());
        environment.set("A", "3".to_owned());
        environment.add_missing(&BTreeMap::from([
            ("A".to_owned(), "service".to_owned()),
            ("C".to_owned(), "service".to_owned()),
        ]));
        let pairs: Vec<_> = environment.into_pairs();
        let plain: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(plain, [("A", "3"), ("B", "2"), ("C", "service")]);
    }
}
