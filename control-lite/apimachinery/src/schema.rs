//! The message schema of the API: one compact text, parsed once, that drives decoding, checking, patching and OpenAPI.

use std::collections::HashMap;
use std::sync::LazyLock;

pub(crate) static TEXT: &str = include_str!("../schema/kubernetes.schema");
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(TEXT));

/// Index of a message in the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(u16);

/// The type of a value, below its pointer, list or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Text, perhaps of a named type.
    String(Option<StringTypeId>),
    /// True or false.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Base64 in JSON.
    Bytes,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `resource.Quantity`.
    Quantity,
    /// Number or text.
    IntOrString,
    /// Any JSON.
    RawExtension,
    /// Managed fields.
    FieldsV1,
    /// A message.
    Message(MessageId),
}

/// How often a value occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Exactly once; absent means the zero value.
    One,
    /// Zero or once.
    Optional,
    /// A list.
    List,
    /// A map with text keys.
    Map,
}

/// Index of a named string type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StringTypeId(u16);

/// A string type with constants.
#[derive(Debug, Clone)]
pub struct StringType {
    /// For example `core.Protocol`.
    pub name: &'static str,
    /// Its constants.
    pub values: Vec<&'static str>,
    /// Whether there are no others.
    pub is_closed: bool,
}

/// One field of a message.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Protobuf field number.
    pub number: u32,
    /// Element type.
    pub base: Base,
    /// Multiplicity.
    pub shape: Shape,
    /// JSON fields of the value appear in the parent (`volumes[].emptyDir`).
    pub is_inline: bool,
    /// Left out of JSON when it is zero.
    pub omits_empty: bool,
    /// Must be given.
    pub is_required: bool,
    /// Replaced as a whole by patches of apply.
    pub is_atomic: bool,
    /// Merge key of a strategic merge patch.
    pub merge_key: Option<&'static str>,
    /// `merge`, `replace`, `retainKeys`.
    pub patch_strategy: Vec<&'static str>,
    /// `map`, `set`, `atomic`.
    pub list_type: Option<&'static str>,
    /// Keys of a `map` list.
    pub list_keys: Vec<&'static str>,
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// For example `core.PodSpec`.
    pub name: &'static str,
    /// In declaration order.
    pub fields: Vec<Field>,
}

impl Message {
    /// The Go type's name, for error texts: `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(_, name)| name)
    }

    /// The field with a protobuf number.
    pub fn by_number(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|f| f.number == number)
    }
}

/// All messages.
#[derive(Debug)]
pub struct Schema {
    messages: Vec<Message>,
    string_types: Vec<StringType>,
    by_name: HashMap<&'static str, MessageId>,
}

/// The schema of everything that is served.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    /// The message called `name`, for example `core.Pod`.
    pub fn find(&self, name: &str) -> Option<&Message> {
        self.by_name.get(name).map(|id| self.message(*id))
    }

    /// A message by index.
    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[usize::from(id.0)]
    }

    /// A string type by index.
    pub fn string_type(&self, id: StringTypeId) -> &StringType {
        &self.string_types[usize::from(id.0)]
    }

    /// Every message, sorted by name.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The field that JSON calls `name` in `message`, looking through inlined messages.
    pub fn json_field<'a>(&'a self, message: &'a Message, name: &str) -> Option<&'a Field> {
        message
            .fields
            .iter()
            .find(|f| !f.is_inline && f.name == name)
            .or_else(|| {
                message
                    .fields
                    .iter()
                    .filter(|f| f.is_inline)
                    .find_map(|f| match f.base {
                        Base::Message(id) => self.json_field(self.message(id), name),
                        _ => None,
                    })
            })
    }

    /// Every field that JSON shows in `message`, inlined ones in place.
    pub fn json_fields<'a>(&'a self, message: &'a Message) -> Vec<&'a Field> {
        let mut out = Vec::with_capacity(message.fields.len());
        for field in &message.fields {
            match field.base {
                Base::Message(id) if field.is_inline => {
                    out.extend(self.json_fields(self.message(id)))
                }
                _ => out.push(field),
            }
        }
        out
    }

    fn parse(text: &'static str) -> Self {
        let lines = || {
            text.lines()
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
        };
        let mut schema = Self {
            messages: Vec::new(),
            string_types: Vec::new(),
            by_name: HashMap::new(),
        };
        let mut string_ids = HashMap::new();
        // Names first, because fields refer forward.
        for line in lines().filter(|l| !l.starts_with(' ')) {
            if let Some(rest) = line.strip_prefix('=') {
                let (name, values) = rest.split_once(' ').unwrap_or((rest, ""));
                let open = values.strip_prefix('!');
                let list = open
                    .unwrap_or(values)
                    .split(',')
                    .filter(|v| !v.is_empty())
                    .collect();
                string_ids.insert(name, StringTypeId(index(schema.string_types.len())));
                schema.string_types.push(StringType {
                    name,
                    values: list,
                    is_closed: open.is_some(),
                });
            } else {
                schema
                    .by_name
                    .insert(line, MessageId(index(schema.messages.len())));
                schema.messages.push(Message {
                    name: line,
                    fields: Vec::new(),
                });
            }
        }
        let mut current = None;
        for line in lines().filter(|l| !l.starts_with('=')) {
            match line.strip_prefix(' ') {
                None => current = schema.by_name.get(line).copied(),
                Some(field) => {
                    let id = current.expect("a field follows its message");
                    let field = parse_field(field, &schema.by_name, &string_ids);
                    schema.messages[usize::from(id.0)].fields.push(field);
                }
            }
        }
        schema
    }
}

fn index(length: usize) -> u16 {
    u16::try_from(length).expect("the embedded schema has fewer than 65,536 entries")
}

fn parse_field(
    line: &'static str,
    messages: &HashMap<&'static str, MessageId>,
    strings: &HashMap<&'static str, StringTypeId>,
) -> Field {
    let mut words = line.split(' ');
    let mut next = || {
        words
            .next()
            .expect("the embedded schema has name, number and type per field")
    };
    let (name, number, text) = (next(), next(), next());
    let (shape, text) = if let Some(rest) = text.strip_prefix('*') {
        (Shape::Optional, rest)
    } else if let Some(rest) = text.strip_prefix("[]") {
        (Shape::List, rest)
    } else if let Some(rest) = text.strip_prefix("{}") {
        (Shape::Map, rest)
    } else {
        (Shape::One, text)
    };
    let base = match text {
        "string" => Base::String(None),
        "bool" => Base::Bool,
        "int32" => Base::Int32,
        "int64" => Base::Int64,
        "bytes" => Base::Bytes,
        "Time" => Base::Time,
        "MicroTime" => Base::MicroTime,
        "Quantity" => Base::Quantity,
        "IntOrString" => Base::IntOrString,
        "RawExtension" => Base::RawExtension,
        "FieldsV1" => Base::FieldsV1,
        other => match other.strip_prefix("string:") {
            Some(named) => Base::String(strings.get(named).copied()),
            None => Base::Message(
                *messages
                    .get(other)
                    .expect("the embedded schema names only its own messages"),
            ),
        },
    };
    let mut field = Field {
        name,
        number: number
            .parse()
            .expect("the embedded schema has decimal field numbers"),
        base,
        shape,
        is_inline: false,
        omits_empty: false,
        is_required: false,
        is_atomic: false,
        merge_key: None,
        patch_strategy: Vec::new(),
        list_type: None,
        list_keys: Vec::new(),
    };
    for flag in words {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("inline", _) => field.is_inline = true,
            ("omitempty", _) => field.omits_empty = true,
            ("required", _) => field.is_required = true,
            ("atomic", _) => field.is_atomic = true,
            ("key", key) => field.merge_key = Some(key),
            ("strategy", list) => field.patch_strategy = list.split('+').collect(),
            ("list", kind) => field.list_type = Some(kind),
            ("keys", list) => field.list_keys = list.split('+').collect(),
            (other, _) => unreachable!("the embedded schema has no flag {other}"),
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_schema_parses_and_names_every_kind() {
        for kind in crate::kinds::all() {
            assert!(schema().find(kind.message).is_some(), "{}", kind.message);
        }
        assert!(schema().messages().len() > 200);
    }

    #[test]
    fn field_numbers_are_unique_in_a_message() {
        for message in schema().messages() {
            let mut numbers: Vec<u32> = message.fields.iter().map(|f| f.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), message.fields.len(), "{}", message.name);
        }
    }

    #[test]
    fn inlined_messages_show_their_fields_in_the_parent() {
        let volume = schema().find("core.Volume").expect("known");
        let field = schema().json_field(volume, "emptyDir").expect("inlined");
        assert_eq!(field.shape, Shape::Optional);
        assert!(schema().json_field(volume, "VolumeSource").is_none());
    }

    #[test]
    fn merge_keys_are_upstreams() {
        let container = schema().find("core.Container").expect("known");
        let ports = schema().json_field(container, "ports").expect("known");
        assert_eq!(
            (ports.merge_key, ports.patch_strategy.as_slice()),
            (Some("containerPort"), &["merge"][..])
        );
        assert_eq!(ports.list_keys, ["containerPort", "protocol"]);
    }
}
