//! Update and read-modify-write: concurrency, what may change, and the end of objects whose last
//! finalizer went.

use serde_json::Value;
use tholepin_apimachinery::value::{i64_at, list_at, remove, semantically_equal, set};
use tholepin_apimachinery::{ApiError, Kind, meta};
use tholepin_store::{DeleteRequest, Expected, StoreError};

use super::create::{check_verb, take_namespace};
use super::{
    ApiResult, Current, Registry, RequestContext, Resource, Subresource, WriteConflict, key,
    store_error,
};

/// How often a change that names no version is tried again when others write in between.
const CONFLICT_RETRIES: usize = 100;

impl Registry {
    /// Replaces an object (or the part the subresource is about). A `resourceVersion` in it must
    /// be the present one; without one the last writer wins.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        mut object: Value,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        check_verb(kind, "update")?;
        take_namespace(kind, namespace, &mut object)?;
        check_name(name, &mut object)?;
        self.change(ctx, kind, namespace, name, subresource, |_| {
            Ok(object.clone())
        })
        .await
    }

    /// Reads an object, lets `change` change it and writes it; again if somebody else wrote in
    /// between, so `change` may run several times. A change to nothing writes nothing.
    pub async fn modify(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        mut change: impl FnMut(&mut Value) -> ApiResult<()> + Send,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        self.change(ctx, kind, namespace, name, subresource, |current| {
            let mut object = current.clone();
            // What was read is what this change is about; the store checks that it still is.
            drop(remove(&mut object, "metadata.resourceVersion"));
            change(&mut object)?;
            Ok(object)
        })
        .await
    }

    /// The loop below every update. `make` gets the present object in the kind's version and
    /// returns what it shall be.
    pub(super) async fn change(
        &self,
        ctx: &RequestContext,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        mut make: impl FnMut(&Value) -> ApiResult<Value> + Send,
    ) -> ApiResult<Value> {
        for _ in 0..CONFLICT_RETRIES {
            let current = self.read(kind, namespace, name).await?;
            let mut wanted = make(&kind.from_storage(current.object.clone()))?;
            check_name(name, &mut wanted)?;
            check_namespace(kind, namespace, &wanted)?;
            let is_conditional = check_version(kind, name, &wanted, &current)?;
            let wanted = prepare(kind, subresource, kind.to_storage(wanted), &current.object)?;
            super::advice::warn(ctx, kind, &wanted, Some(&current.object));
            match self
                .replace(ctx, kind, namespace, name, wanted, &current)
                .await?
            {
                Ok(object) => return Ok(kind.from_storage(object)),
                Err(WriteConflict) if is_conditional => {
                    return Err(ApiError::stale(kind.group, kind.plural, name));
                }
                Err(WriteConflict) => (),
            }
        }
        Err(ApiError::stale(kind.group, kind.plural, name))
    }

    /// Writes a prepared and valid successor of `current`.
    async fn replace(
        &self,
        ctx: &RequestContext,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        mut object: Value,
        current: &Current,
    ) -> ApiResult<Result<Value, WriteConflict>> {
        meta::set_resource_version(&mut object, current.revision);
        let lease = self
            .shared
            .cluster_ips
            .for_update(kind, &mut object, &current.object)?;
        let old = Some(&current.object);
        let ports = self.shared.node_ports.assign(kind, &mut object, old)?;
        if semantically_equal(Some(&object), Some(&current.object)) {
            return Ok(Ok(current.object.clone()));
        }
        if ctx.dry_run {
            return Ok(Ok(object));
        }
        if is_finished(kind, &object) {
            return self
                .remove(kind, namespace, name, object, current.revision)
                .await;
        }
        let expected = Expected::Revision(current.revision);
        let written = self
            .write(kind, namespace, name, &mut object, expected)
            .await?;
        if written.is_ok() {
            lease.keep();
            ports.keep();
        }
        Ok(written.map(|()| object))
    }

    /// Takes an object out of the store, and what it held with it.
    pub(super) async fn remove(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        mut object: Value,
        revision: u64,
    ) -> ApiResult<Result<Value, WriteConflict>> {
        let request = DeleteRequest {
            key: key(kind, namespace, name),
            expected: Expected::Revision(revision),
        };
        match self.shared.store.delete(request).await {
            Ok(deleted) => {
                self.shared.cluster_ips.release(kind, &object);
                self.shared.node_ports.release(kind, &object);
                meta::set_resource_version(&mut object, deleted.revision);
                Ok(Ok(object))
            }
            Err(StoreError::Conflict { current: None, .. }) => {
                Err(ApiError::not_found(kind.group, kind.plural, name))
            }
            Err(StoreError::Conflict { .. }) => Ok(Err(WriteConflict)),
            Err(error) => Err(store_error(error)),
        }
    }
}

fn check_name(name: &str, object: &mut Value) -> ApiResult<()> {
    match meta::name(object) {
        "" => set(object, "metadata.name", name),
        own if own == name => (),
        own => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

/// A patch may have moved it; a replacement was checked before.
fn check_namespace(kind: &Kind, namespace: &str, object: &Value) -> ApiResult<()> {
    let own = meta::namespace(object);
    if kind.is_namespaced && !own.is_empty() && own != namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({own}) does not match the namespace on the request \
             ({namespace})"
        )));
    }
    Ok(())
}

/// Whether the wanted object names the version it is meant to replace.
fn check_version(kind: &Kind, name: &str, wanted: &Value, current: &Current) -> ApiResult<bool> {
    let uid = meta::uid(wanted);
    let present = meta::uid(&current.object);
    if !uid.is_empty() && uid != present {
        return Err(ApiError::precondition_failed(
            kind.group,
            kind.plural,
            name,
            "UID",
            uid,
            present,
        ));
    }
    let version = meta::resource_version(wanted);
    // "0" is what some clients send for "any".
    if version.is_empty() || version == "0" {
        return Ok(false);
    }
    if version != current.revision.to_string() {
        return Err(ApiError::stale(kind.group, kind.plural, name));
    }
    Ok(true)
}

/// The wanted object with defaults and with everything this write may not change, validated.
fn prepare(
    kind: &'static Kind,
    subresource: Subresource,
    mut wanted: Value,
    current: &Value,
) -> ApiResult<Value> {
    match subresource {
        Subresource::Main => {
            kind.apply_defaults(&mut wanted);
            super::cluster_ips::inherit(kind, &mut wanted, current);
            kind.prepare_update(&mut wanted, current);
            kind.validate_update(&wanted, current)?;
        }
        Subresource::Status => {
            kind.apply_defaults(&mut wanted);
            kind.prepare_status_update(&mut wanted, current);
            kind.validate_status_update(&wanted, current)?;
        }
        Subresource::Finalize => {
            let mut finalized = current.clone();
            let finalizers = list_at(&wanted, "spec.finalizers").to_vec();
            set(&mut finalized, "spec.finalizers", Value::Array(finalizers));
            wanted = finalized;
        }
    }
    Ok(wanted)
}

/// Whether the object is being deleted and nothing holds it any more.
pub(super) fn is_finished(kind: &Kind, object: &Value) -> bool {
    meta::is_deleting(object)
        && meta::finalizers(object).is_empty()
        && i64_at(object, "metadata.deletionGracePeriodSeconds").unwrap_or_default() == 0
        && (kind.kind != "Namespace" || list_at(object, "spec.finalizers").is_empty())
}
