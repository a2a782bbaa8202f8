//! Paths: which resource, object and subresource a request is about.

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// Something that is no resource: `/version`, `/api`, `/healthz`, …
    Other,
    /// A resource, an object, or a subresource of one.
    Resource(ResourcePath<'a>),
}

/// A path below `/api/v1/` or `/apis/<group>/<version>/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    /// Empty: cluster-scoped, or all namespaces.
    pub(crate) namespace: &'a str,
    pub(crate) resource: &'a str,
    /// Empty: the collection.
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
}

/// Parses a path. Object names are DNS-like, so nothing in them is percent-encoded; a path that
/// does not fit names no object and ends as 404.
pub(crate) fn parse(path: &str) -> Route<'_> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Route::Other,
    };
    let (namespace, rest) = match rest {
        // A namespace's own subresources, not resources in it.
        ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, subresource] => (*resource, *name, *subresource),
        _ => return Route::Other,
    };
    Route::Resource(ResourcePath {
        group,
        version,
        namespace,
        resource,
        name,
        subresource,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> (String, String, String, String, String, String) {
        let Route::Resource(found) = parse(path) else {
            panic!("{path} is no resource")
        };
        let ResourcePath {
            group,
            version,
            namespace,
            resource,
            name,
            subresource,
        } = found;
        let text = str::to_owned;
        (
            text(group),
            text(version),
            text(namespace),
            text(resource),
            text(name),
            text(subresource),
        )
    }

    fn expect(path: &str, words: [&str; 6]) {
        let [group, version, namespace, kind, name, subresource] = words.map(str::to_owned);
        assert_eq!(
            resource(path),
            (group, version, namespace, kind, name, subresource),
            "{path}"
        );
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        expect("/api/v1/pods", ["", "v1", "", "pods", "", ""]);
        expect("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]);
        expect(
            "/api/v1/namespaces/a/pods/p/log",
            ["", "v1", "a", "pods", "p", "log"],
        );
        expect(
            "/api/v1/nodes/n/status",
            ["", "v1", "", "nodes", "n", "status"],
        );
        let scale = ["apps", "v1", "a", "deployments", "d", "scale"];
        expect("/apis/apps/v1/namespaces/a/deployments/d/scale", scale);
    }

    #[test]
    fn a_namespace_is_an_object_of_its_own() {
        expect("/api/v1/namespaces", ["", "v1", "", "namespaces", "", ""]);
        expect(
            "/api/v1/namespaces/a",
            ["", "v1", "", "namespaces", "a", ""],
        );
        expect(
            "/api/v1/namespaces/a/status",
            ["", "v1", "", "namespaces", "a", "status"],
        );
        expect(
            "/api/v1/namespaces/a/finalize",
            ["", "v1", "", "namespaces", "a", "finalize"],
        );
    }

    #[test]
    fn everything_else_is_no_resource() {
        for path in [
            "/",
            "/api",
            "/apis",
            "/api/v1",
            "/apis/apps/v1",
            "/healthz",
            "/version",
        ] {
            assert_eq!(parse(path), Route::Other, "{path}");
        }
    }
}
