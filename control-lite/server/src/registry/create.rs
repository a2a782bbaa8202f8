//! Create: names, system fields, admission, validation, addresses, store.

use jiff::Timestamp;
use serde_json::Value;
use tholepin_apimachinery::value::set;
use tholepin_apimachinery::{ApiError, Kind, meta, names};
use tholepin_store::Expected;

use super::{ApiResult, Registry, RequestContext, Resource, WriteConflict};

/// How many generated names are tried, as upstream does.
const GENERATED_NAME_ATTEMPTS: usize = 8;

impl Registry {
    /// Creates an object and returns it as stored.
    pub async fn create(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        mut object: Value,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        check_verb(kind, "create")?;
        take_namespace(kind, namespace, &mut object)?;
        if !meta::resource_version(&object).is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let object = kind.to_storage(object);
        let generate = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        let attempts = if generate { GENERATED_NAME_ATTEMPTS } else { 1 };
        for _ in 0..attempts {
            let mut attempt = object.clone();
            if generate {
                let name = names::generate(meta::generate_name(&object));
                meta::set_name(&mut attempt, &name);
            }
            if let Ok(created) = self.try_create(ctx, kind, namespace, attempt).await? {
                return Ok(kind.from_storage(created));
            }
        }
        if generate {
            let prefix = meta::generate_name(&object);
            return Err(ApiError::generate_name_conflict(
                kind.group,
                kind.plural,
                prefix,
            ));
        }
        Err(ApiError::already_exists(
            kind.group,
            kind.plural,
            meta::name(&object),
        ))
    }

    /// One attempt with a given name. The inner error: the name is taken.
    async fn try_create(
        &self,
        ctx: &RequestContext,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
    ) -> ApiResult<Result<Value, WriteConflict>> {
        self.admit_create(kind, namespace, &mut object).await?;
        kind.apply_defaults(&mut object);
        kind.prepare_create(&mut object);
        meta::stamp_created(&mut object, Timestamp::now());
        kind.validate_create(&object)?;
        super::advice::warn(ctx, kind, &object, None);
        let name = meta::name(&object).to_owned();
        if self.find(kind, namespace, &name).await?.is_some() {
            return Ok(Err(WriteConflict));
        }
        let lease = self.shared.cluster_ips.for_new(kind, &mut object)?;
        let ports = self.shared.node_ports.assign(kind, &mut object, None)?;
        if ctx.dry_run {
            return Ok(Ok(object));
        }
        let written = self
            .write(kind, namespace, &name, &mut object, Expected::Absent)
            .await?;
        if written.is_ok() {
            lease.keep();
            ports.keep();
        }
        Ok(written.map(|()| object))
    }
}

/// A verb the kind does not have is refused as upstream refuses it.
pub(super) fn check_verb(kind: &Kind, verb: &str) -> ApiResult<()> {
    if kind.verbs.contains(&verb) {
        return Ok(());
    }
    Err(ApiError::method_not_supported(
        kind.group,
        kind.plural,
        verb,
    ))
}

/// The object's namespace is the request's.
pub(super) fn take_namespace(kind: &Kind, namespace: &str, object: &mut Value) -> ApiResult<()> {
    if !object.is_object() {
        return Err(ApiError::bad_request(
            "the body of the request is no object",
        ));
    }
    if !kind.is_namespaced {
        drop(tholepin_apimachinery::value::remove(
            object,
            "metadata.namespace",
        ));
        return Ok(());
    }
    if namespace.is_empty() {
        return Err(ApiError::bad_request(
            "an empty namespace may not be set during creation",
        ));
    }
    let own = meta::namespace(object);
    if !own.is_empty() && own != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the \
             request: {own} != {namespace}"
        )));
    }
    set(object, "metadata.namespace", namespace);
    Ok(())
}
