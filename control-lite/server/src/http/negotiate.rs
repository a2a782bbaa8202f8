//! Content negotiation: in which form the client wants its answer.

use http::HeaderMap;
use http::header::ACCEPT;
use tholepin_apimachinery::ApiError;

/// The media types of answers, for 406.
const PRODUCED: [&str; 1] = ["application/json"];

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// The object itself.
    #[default]
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata.
    Metadata,
    /// `meta.k8s.io/v1` PartialObjectMetadataList.
    MetadataList,
}

/// One clause of an Accept header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clause<'a> {
    pub(crate) media_type: &'a str,
    pub(crate) target_kind: &'a str,
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    quality: u16,
}

/// The clauses in the client's order of preference.
pub(crate) fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut clauses: Vec<_> = values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .map(clause)
        .filter(|clause| clause.quality > 0)
        .collect();
    // Stable: equal preferences keep their order.
    clauses.sort_by_key(|clause| std::cmp::Reverse(clause.quality));
    clauses
}

fn clause(text: &str) -> Clause<'_> {
    let mut parts = text.split(';').map(str::trim);
    let mut clause = Clause {
        media_type: parts.next().unwrap_or_default(),
        quality: 1000,
        ..Clause::default()
    };
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "as" => clause.target_kind = value,
            "g" => clause.group = value,
            "v" => clause.version = value,
            "q" => clause.quality = quality(value),
            _ => (),
        }
    }
    clause
}

/// A quality in thousandths; nonsense counts as full.
fn quality(text: &str) -> u16 {
    let Ok(quality) = text.parse::<f32>() else {
        return 1000;
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=1000 before the cast"
    )]
    let thousandths = (quality.clamp(0.0, 1.0) * 1000.0) as u16;
    thousandths
}

pub(crate) fn is_json(media_type: &str) -> bool {
    matches!(media_type, "application/json" | "application/*" | "*/*")
}

/// The form of an object or list.
pub(crate) fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(Form::Object);
    }
    for clause in clauses.iter().filter(|clause| is_json(clause.media_type)) {
        let form = match (clause.target_kind, clause.group, clause.version) {
            ("", ..) => Form::Object,
            ("Table", "meta.k8s.io", "v1") => Form::Table,
            ("PartialObjectMetadata", "meta.k8s.io", "v1") => Form::Metadata,
            ("PartialObjectMetadataList", "meta.k8s.io", "v1") => Form::MetadataList,
            _ => continue,
        };
        return Ok(form);
    }
    Err(ApiError::not_acceptable(&PRODUCED))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accept(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))])
    }

    #[test]
    fn kubectl_get_gets_a_table() {
        let headers = accept(
            "application/json;as=Table;v=v1;g=meta.k8s.io,\
             application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        );
        assert_eq!(form(&headers), Ok(Form::Table));
    }

    #[test]
    fn a_client_that_prefers_protobuf_but_takes_json_gets_json() {
        let headers = accept("application/vnd.kubernetes.protobuf,application/json");
        assert_eq!(form(&headers), Ok(Form::Object));
        assert_eq!(form(&accept("application/json, */*")), Ok(Form::Object));
        assert_eq!(form(&HeaderMap::new()), Ok(Form::Object));
    }

    #[test]
    fn a_client_that_takes_nothing_we_have_gets_406() {
        let error = form(&accept("application/vnd.kubernetes.protobuf")).unwrap_err();
        assert_eq!(error.code(), 406);
        assert_eq!(
            error.message,
            "only the following media types are accepted: application/json"
        );
    }

    #[test]
    fn preference_is_by_quality_then_by_order() {
        let headers = accept(
            "application/json;q=0.5, application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        );
        assert_eq!(form(&headers), Ok(Form::Metadata));
    }
}
