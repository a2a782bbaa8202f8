//! Order of merged lists: the patch's order for what it names, the server's for the rest, neither disturbing the other.

use serde_json::Value;

/// Whether two list elements are the same one: by merge key, or as a whole.
pub(super) fn is_same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|v| is_same(v, item, key))
}

/// Puts `merged` in order: what `wanted` names in its order, the rest as in `before`.
pub(super) fn arrange(
    merged: Vec<Value>,
    wanted: &[Value],
    before: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|v| position(wanted, v, key).is_some());
    named.sort_by_key(|v| position(wanted, v, key));
    others.sort_by_key(|v| position(before, v, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(one), Some(other)) = (named.peek(), others.peek()) {
        // An element only the server has goes first only where both were known and it stood before.
        let is_before = match (position(before, other, key), position(before, one, key)) {
            (Some(theirs), Some(ours)) => theirs < ours,
            _ => false,
        };
        out.extend(if is_before {
            others.next()
        } else {
            named.next()
        });
    }
    out.extend(named);
    out.extend(others);
    out
}
