//! An encoder by the same schema: what it writes must come back, for every kind of value.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn number_field(number: u32, value: i64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3, out);
    varint(value as u64, out);
}

fn encode_message(value: &Value, message: &'static Message) -> Vec<u8> {
    let mut out = Vec::new();
    for field in &message.fields {
        if let (true, Base::Message(id)) = (field.is_inline, field.base) {
            bytes_field(
                field.number,
                &encode_message(value, schema().message(id)),
                &mut out,
            );
            continue;
        }
        let Some(value) = value.get(field.name) else {
            continue;
        };
        match field.shape {
            Shape::List => value
                .as_array()
                .expect("list")
                .iter()
                .for_each(|v| encode(v, field.number, field, &mut out)),
            Shape::Map => {
                for (key, value) in value.as_object().expect("map") {
                    let mut entry = Vec::new();
                    bytes_field(1, key.as_bytes(), &mut entry);
                    encode(value, 2, field, &mut entry);
                    bytes_field(field.number, &entry, &mut out);
                }
            }
            _ => encode(value, field.number, field, &mut out),
        }
    }
    out
}

fn encode(value: &Value, number: u32, field: &Field, out: &mut Vec<u8>) {
    let text = || value.as_str().expect("text").as_bytes();
    let wrapped = |inner: &[u8]| {
        let mut wrapper = Vec::new();
        bytes_field(1, inner, &mut wrapper);
        wrapper
    };
    match field.base {
        Base::Bool => number_field(number, i64::from(value.as_bool().expect("bool")), out),
        Base::Int32 | Base::Int64 => number_field(number, value.as_i64().expect("integer"), out),
        Base::String(_) => bytes_field(number, text(), out),
        Base::Bytes => bytes_field(number, &STANDARD.decode(text()).expect("base64"), out),
        Base::Quantity => bytes_field(number, &wrapped(text()), out),
        Base::RawExtension | Base::FieldsV1 => {
            bytes_field(number, &wrapped(value.to_string().as_bytes()), out)
        }
        Base::Message(id) => bytes_field(number, &encode_message(value, schema().message(id)), out),
        Base::Time | Base::MicroTime => {
            let at = crate::time::parse(value.as_str().expect("text")).expect("time");
            let mut inner = Vec::new();
            number_field(1, at.as_second(), &mut inner);
            number_field(2, i64::from(at.subsec_nanosecond()), &mut inner);
            bytes_field(number, &inner, out);
        }
        Base::IntOrString => {
            let mut inner = Vec::new();
            number_field(1, i64::from(value.is_string()), &mut inner);
            number_field(2, value.as_i64().unwrap_or_default(), &mut inner);
            bytes_field(3, value.as_str().unwrap_or_default().as_bytes(), &mut inner);
            bytes_field(number, &inner, out);
        }
    }
}

fn round_trip(message: &str, value: &Value) -> Value {
    let message = schema().find(message).expect("known");
    Value::Object(
        decode_message(&encode_message(value, message), message).expect("own encoding decodes"),
    )
}

#[test]
fn every_kind_of_value_comes_back() {
    let pod = json!({
        "metadata": {"name": "p", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"a": "b", "c": ""},
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": false}],
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                "livenessProbe": {"tcpSocket": {"port": 8080}}, "securityContext": {"runAsUser": 0, "privileged": false}}],
            "terminationGracePeriodSeconds": 0, "securityContext": {"supplementalGroups": [1, -2]}},
        "status": {"startTime": "2026-01-02T03:04:05Z"}});
    assert_eq!(round_trip("core.Pod", &pod), pod);
    let secret =
        json!({"metadata": {"name": "s"}, "data": {"k": "AAEC", "empty": ""}, "immutable": true});
    assert_eq!(round_trip("core.Secret", &secret), secret);
    let lease = json!({"metadata": {"name": "l"}, "spec": {"renewTime": "2026-01-02T03:04:05.678901Z", "leaseDurationSeconds": 40}});
    assert_eq!(round_trip("coordination.Lease", &lease), lease);
}

#[test]
fn packed_lists_are_read_too() {
    let message = schema().find("core.PodSecurityContext").expect("known");
    let number = message
        .fields
        .iter()
        .find(|f| f.name == "supplementalGroups")
        .expect("known")
        .number;
    let mut body = Vec::new();
    bytes_field(number, &[1, 2, 0xac, 0x02], &mut body);
    let decoded = decode_message(&body, message).expect("valid");
    assert_eq!(decoded["supplementalGroups"], json!([1, 2, 300]));
}

#[test]
fn what_is_broken_is_named() {
    let message = schema().find("core.Pod").expect("known");
    assert_eq!(decode_envelope(b"{}", message), Err(InvalidProtobuf::Magic));
    assert_eq!(
        decode_message(&[0x0a, 5, 1], message),
        Err(InvalidProtobuf::Truncated)
    );
    assert_eq!(
        decode_message(&[0x08, 1], message),
        Err(InvalidProtobuf::WireType {
            wire_type: 0,
            field: "metadata".to_owned()
        })
    );
    assert_eq!(
        decode_message(&[0xff; 11], message),
        Err(InvalidProtobuf::Overflow)
    );
    assert_eq!(
        decode_message(&[0x0a, 4, 0x0a, 2, 0xff, 0xfe], message),
        Err(InvalidProtobuf::Utf8("name"))
    );
}

proptest! {
    #[test]
    fn scalars_of_every_size_come_back(secs in any::<i64>(), mode in any::<i32>(), name in "\\PC{1,20}", port in 1..i32::MAX) {
        let value = json!({"spec": {"activeDeadlineSeconds": secs, "volumes": [{"name": name, "secret": {"defaultMode": mode}}],
            "containers": [{"name": name, "livenessProbe": {"tcpSocket": {"port": port}}}]}});
        let decoded = round_trip("core.Pod", &value);
        prop_assert_eq!(&decoded["spec"], &value["spec"]);
    }
}
