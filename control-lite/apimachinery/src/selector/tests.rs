//! Selector tables: what upstream parses, matches and refuses.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn labels(pairs: &[(&str, &str)]) -> Value {
    Value::Object(
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), json!(v)))
            .collect(),
    )
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    LabelSelector::parse(selector)
        .expect(selector)
        .matches(labels(pairs).as_object())
}

#[test]
fn equality_and_sets_select_as_documented() {
    let web = [("app", "web"), ("tier", "front"), ("n", "5")];
    for selector in [
        "",
        "app=web",
        "app==web",
        "app = web , tier",
        "app!=db",
        "missing!=x",
        "app in (web,db)",
        "missing notin (a)",
        "!missing",
        "n>4",
        "n<6",
        "tier notin (back)",
        "in",
        "app in (web),n",
    ] {
        let selected = matches(selector, &web);
        assert_eq!(selected, selector != "in", "{selector}");
    }
    for selector in [
        "app=db",
        "app!=web",
        "missing",
        "!app",
        "app notin (web)",
        "n>5",
        "app>1",
        "app=",
        "app in ()",
    ] {
        assert!(!matches(selector, &web), "{selector}");
    }
    assert!(matches("x=", &[("x", "")]));
    assert!(matches("x in (,a)", &[("x", "")]));
}

#[test]
fn parse_errors_have_upstreams_words() {
    let table = [
        ("x=a||y=b", "found '||y', expected: ',' or 'end of string'"),
        ("x==a==b", "found '==', expected: ',' or 'end of string'"),
        ("!x=a", "found '=', expected: ',' or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        (
            "=a",
            "found '=', expected: !, identifier, or 'end of string'",
        ),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "a in b",
            "unable to parse requirement: found 'b' expected: '('",
        ),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "!",
            "unable to parse requirement: found '', expected: identifier",
        ),
        (
            "x<a",
            "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ];
    for (text, message) in table {
        let error = LabelSelector::parse(text).expect_err(text).to_string();
        if text == "x=a||y=b" {
            // `|` is a letter to the scanner, so the value itself is refused.
            assert!(
                error.contains("values[0][x]: Invalid value: \"a||y\""),
                "{error}"
            );
        } else {
            assert_eq!(error, message, "{text}");
        }
    }
    let error = LabelSelector::parse("-a=b").expect_err("key").to_string();
    assert!(error.starts_with(
        "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist"
    ));
}

#[test]
fn an_absent_spec_selects_nothing_and_an_empty_one_everything() {
    let pod = json!({"metadata": {"labels": {"a": "1"}}});
    assert!(!LabelSelector::from_spec(None).matches_object(&pod));
    assert!(LabelSelector::from_spec(Some(&json!({}))).matches_object(&json!({})));
    let spec = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
        {"key": "a", "operator": "In", "values": ["1", "2"]}, {"key": "b", "operator": "DoesNotExist"}]});
    assert!(LabelSelector::from_spec(Some(&spec)).matches_object(&pod));
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    assert!(!LabelSelector::from_spec(Some(&odd)).matches_object(&pod));
    assert!(!LabelSelector::from_map(json!({}).as_object()).matches_object(&pod));
}

#[test]
fn a_bad_label_selector_spec_names_each_field() {
    let spec = json!({"matchLabels": {"a": "-"}, "matchExpressions": [
        {"key": "b", "operator": "In"}, {"key": "c", "operator": "Exists", "values": ["x"]}, {"key": "d", "operator": "Near"}]});
    let fields: Vec<String> = validate_spec(&spec, &crate::field::Path::new("s"))
        .into_iter()
        .map(|e| e.field)
        .collect();
    assert_eq!(
        fields,
        [
            "s.matchLabels",
            "s.matchExpressions[0].values",
            "s.matchExpressions[1].values",
            "s.matchExpressions[2].operator"
        ]
    );
}

#[test]
fn field_selectors_split_escape_and_refuse() {
    let selector = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed,a==x\\,y\\=z\\\\")
        .expect("valid");
    assert_eq!(selector.requires("spec.nodeName"), Some("n1"));
    assert_eq!(selector.requires("status.phase"), None);
    assert_eq!(selector.terms()[2].value, "x,y=z\\");
    assert_eq!(
        FieldSelector::parse(&selector.to_string()).as_ref(),
        Ok(&selector)
    );
    assert!(selector.matches(|f| if f == "spec.nodeName" {
        "n1".into()
    } else if f == "a" {
        "x,y=z\\".into()
    } else {
        String::new()
    }));
    assert_eq!(
        FieldSelector::parse("abc")
            .expect_err("no operator")
            .to_string(),
        "invalid selector: 'abc'; can't understand 'abc'"
    );
    assert!(FieldSelector::parse("a=b=c").is_err());
    assert!(FieldSelector::parse("a=\\x").is_err());
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_parses_prints_to_an_equal_selector(text in "[ a-c!=()<>,1]{0,16}|\\PC{0,12}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            let again = LabelSelector::parse(&printed).expect("printed selectors parse");
            for pairs in [vec![], vec![("a", "b")], vec![("a", "1"), ("b", "")], vec![("c", "a")]] {
                prop_assert_eq!(selector.matches(labels(&pairs).as_object()), again.matches(labels(&pairs).as_object()));
            }
        }
        drop(FieldSelector::parse(&text));
    }
}
