//! Requests about objects: the verbs over collections, objects and subresources.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tholepin_apimachinery::error::deleted_status;
use tholepin_apimachinery::{ApiError, Kind, kinds, meta};

use super::body::{self, Body};
use super::encode::{self, Shape};
use super::negotiate;
use super::query::Query;
use super::route::ResourcePath;
use super::{Frontend, decode, node, watch};
use crate::registry::{ApiResult, DeleteOutcome, RequestContext, Subresource};

/// Kinds whose deletion answers with the object; the others answer with a Status.
const RETURN_DELETED: [&str; 3] = ["Pod", "Service", "ServiceAccount"];

/// One request about objects.
pub(super) struct Call<'a> {
    pub(super) frontend: &'a Arc<Frontend>,
    pub(super) ctx: RequestContext,
    pub(super) kind: &'static Kind,
    pub(super) path: &'a ResourcePath<'a>,
    pub(super) query: Query<'a>,
    pub(super) headers: &'a HeaderMap,
}

pub(super) async fn handle(
    frontend: &Arc<Frontend>,
    mut ctx: RequestContext,
    path: &ResourcePath<'_>,
    mut request: Request<Incoming>,
) -> ApiResult<Response<Body>> {
    if path.group.is_empty() && path.resource == "bindings" {
        return create_binding(frontend, ctx, path, request).await;
    }
    let kind = kinds::by_resource(path.group, path.version, path.resource)
        .ok_or_else(ApiError::unknown_path)?;
    let is_scoped = !path.namespace.is_empty();
    if kind.is_namespaced != is_scoped && (is_scoped || !path.name.is_empty()) {
        return Err(ApiError::unknown_path());
    }
    if !path.subresource.is_empty() && kind.subresource(path.subresource).is_none() {
        return Err(ApiError::unknown_path());
    }
    let query_text = request.uri().query().map(str::to_owned);
    let query = Query::parse(query_text.as_deref());
    query.fill(&mut ctx)?;
    if node::is_node_call(kind, path.subresource) {
        return node::handle(frontend, path, &query, &mut request).await;
    }
    let (parts, incoming) = request.into_parts();
    if ctx.field_manager.is_empty() {
        ctx.field_manager = user_agent_name(&parts.headers);
    }
    let call = Call {
        frontend,
        ctx,
        kind,
        path,
        query,
        headers: &parts.headers,
    };
    match (&parts.method, path.name.is_empty()) {
        (&Method::GET | &Method::HEAD, true) => call.read_collection().await,
        (&Method::GET | &Method::HEAD, false) => call.read_object().await,
        (&Method::POST, true) => call.create(incoming).await,
        (&Method::POST, false) if path.subresource == "binding" => call.bind(incoming).await,
        (&Method::PUT, false) => call.update(incoming).await,
        (&Method::PATCH, false) => call.patch(incoming).await,
        (&Method::DELETE, false) if path.subresource.is_empty() => call.delete(incoming).await,
        (&Method::DELETE, true) => call.delete_collection(incoming).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// The manager of a client that names none: its program's name, as upstream does.
fn user_agent_name(headers: &HeaderMap) -> String {
    let agent = headers
        .get(http::header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    let name = agent
        .unwrap_or_default()
        .split('/')
        .next()
        .unwrap_or_default();
    name.chars().take(128).collect()
}

/// `POST …/bindings`: the pod is the one the binding is named after.
async fn create_binding(
    frontend: &Arc<Frontend>,
    mut ctx: RequestContext,
    path: &ResourcePath<'_>,
    request: Request<Incoming>,
) -> ApiResult<Response<Body>> {
    if request.method() != Method::POST || path.namespace.is_empty() || !path.name.is_empty() {
        return Err(ApiError::unknown_path());
    }
    let query_text = request.uri().query().map(str::to_owned);
    Query::parse(query_text.as_deref()).fill(&mut ctx)?;
    let (parts, incoming) = request.into_parts();
    let bytes = body::read(&parts.headers, incoming).await?;
    let binding = decode::binding(&ctx, &parts.headers, &bytes)?;
    let pod = meta::name(&binding).to_owned();
    frontend
        .registry
        .bind(&ctx, path.namespace, &pod, binding)
        .await?;
    Ok(encode::json(201, &success()))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

impl Call<'_> {
    fn shape(&self) -> ApiResult<Shape> {
        let form = negotiate::form(self.headers)?;
        Ok(Shape {
            form,
            include: self.query.include_object()?,
        })
    }

    fn scale(&self, scale: &Value, shape: Shape) -> Response<Body> {
        encode::object(self.headers, 200, &kinds::scale::SCALE, scale, shape)
    }

    /// A verb of a subresource that is not there is 405.
    fn subresource(&self) -> ApiResult<Subresource> {
        match self.path.subresource {
            "" => Ok(Subresource::Main),
            "status" => Ok(Subresource::Status),
            "finalize" => Ok(Subresource::Finalize),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn read_collection(self) -> ApiResult<Response<Body>> {
        if self.query.flag("watch") {
            return watch::serve(&self, self.shape()?, self.query.watch()?).await;
        }
        let shape = self.shape()?;
        let options = self.query.list()?;
        let registry = &self.frontend.registry;
        let list = registry
            .list_stored(self.kind, self.path.namespace, &options)
            .await?;
        encode::stored_list(self.headers, self.kind, &list, shape)
    }

    async fn read_object(self) -> ApiResult<Response<Body>> {
        let (namespace, name) = (self.path.namespace, self.path.name);
        let registry = &self.frontend.registry;
        if self.path.subresource == "scale" {
            let scale = registry
                .get_scale(&self.ctx, self.kind, namespace, name)
                .await?;
            return Ok(self.scale(&scale, self.shape()?));
        }
        self.subresource()?;
        if self.query.flag("watch") {
            let mut options = self.query.watch()?;
            options.field_selector = format!("metadata.name={name}");
            return watch::serve(&self, self.shape()?, options).await;
        }
        let shape = self.shape()?;
        let object = registry.get(&self.ctx, self.kind, namespace, name).await?;
        Ok(encode::object(self.headers, 200, self.kind, &object, shape))
    }

    async fn create(self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let shape = self.shape()?;
        let bytes = body::read(self.headers, incoming).await?;
        let object = decode::object(&self.ctx, self.kind, self.headers, &bytes)?;
        let namespace = self.path.namespace;
        let created = self
            .frontend
            .registry
            .create(&self.ctx, self.kind, namespace, object)
            .await?;
        Ok(encode::object(
            self.headers,
            201,
            self.kind,
            &created,
            shape,
        ))
    }

    async fn bind(self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let bytes = body::read(self.headers, incoming).await?;
        let binding = decode::binding(&self.ctx, self.headers, &bytes)?;
        let (namespace, name) = (self.path.namespace, self.path.name);
        let own = meta::name(&binding);
        if !own.is_empty() && own != name {
            return Err(ApiError::bad_request(
                "name in URL does not match name in Binding object",
            ));
        }
        self.frontend
            .registry
            .bind(&self.ctx, namespace, name, binding)
            .await?;
        Ok(encode::json(201, &success()))
    }

    async fn update(self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let shape = self.shape()?;
        let bytes = body::read(self.headers, incoming).await?;
        let (namespace, name) = (self.path.namespace, self.path.name);
        let registry = &self.frontend.registry;
        if self.path.subresource == "scale" {
            let scale = decode::scale(&self.ctx, self.headers, &bytes)?;
            let scale = registry
                .update_scale(&self.ctx, self.kind, namespace, name, scale)
                .await?;
            return Ok(self.scale(&scale, shape));
        }
        let subresource = self.subresource()?;
        let object = decode::object(&self.ctx, self.kind, self.headers, &bytes)?;
        let updated = registry
            .update(&self.ctx, self.kind, namespace, name, subresource, object)
            .await?;
        Ok(encode::object(
            self.headers,
            200,
            self.kind,
            &updated,
            shape,
        ))
    }

    async fn patch(self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let shape = self.shape()?;
        let bytes = body::read(self.headers, incoming).await?;
        let patch = decode::patch(self.headers, &bytes)?;
        let (namespace, name) = (self.path.namespace, self.path.name);
        let registry = &self.frontend.registry;
        if self.path.subresource == "scale" {
            let scale = registry
                .patch_scale(&self.ctx, self.kind, namespace, name, &patch)
                .await?;
            return Ok(self.scale(&scale, shape));
        }
        let subresource = self.subresource()?;
        let patched = registry
            .patch(&self.ctx, self.kind, namespace, name, subresource, &patch)
            .await?;
        Ok(encode::object(
            self.headers,
            200,
            self.kind,
            &patched,
            shape,
        ))
    }

    async fn delete(mut self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let shape = self.shape()?;
        let bytes = body::read(self.headers, incoming).await?;
        let options =
            decode::delete_options(&mut self.ctx, self.headers, &bytes, self.query.delete()?)?;
        let (namespace, name) = (self.path.namespace, self.path.name);
        let registry = &self.frontend.registry;
        let outcome = registry
            .delete(&self.ctx, self.kind, namespace, name, &options)
            .await?;
        let kind = self.kind;
        match outcome {
            DeleteOutcome::Deleted(object) if !RETURN_DELETED.contains(&kind.kind) => {
                let uid = meta::uid(&object);
                Ok(encode::json(
                    200,
                    &deleted_status(kind.group, kind.plural, name, uid),
                ))
            }
            DeleteOutcome::Deleted(object) | DeleteOutcome::Terminating(object) => {
                Ok(encode::object(self.headers, 200, kind, &object, shape))
            }
        }
    }

    async fn delete_collection(mut self, incoming: Incoming) -> ApiResult<Response<Body>> {
        let shape = self.shape()?;
        let bytes = body::read(self.headers, incoming).await?;
        let options =
            decode::delete_options(&mut self.ctx, self.headers, &bytes, self.query.delete()?)?;
        let list = self.query.list()?;
        let registry = &self.frontend.registry;
        let namespace = self.path.namespace;
        let deleted = registry
            .delete_collection(&self.ctx, self.kind, namespace, &list, &options)
            .await?;
        let revision = registry.current_revision();
        Ok(encode::objects(
            self.headers,
            self.kind,
            revision,
            deleted,
            shape,
        ))
    }
}
