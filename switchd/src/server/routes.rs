//! The routes, and how requests become calls and refusals become answers.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vswitch::switch::Error;

use super::{BODY_MAX_BYTES, READ_TIMEOUT, metrics};
use crate::api::{
    AttachInfo, BridgeAdd, BridgeInfo, BridgeSet, Done, Failure, FdbAdd, FdbInfo, FdbKey, FdbSelect, Flushed,
    NeighAdd, NeighInfo, NeighKey, NeighSelect, PortAdd, PortInfo, PortSet, ReloadReport, Stats, StatusInfo,
};
use crate::calls::{Calls, Failed};
use crate::daemon::Daemon;

/// What cannot be said beside the routes.
#[derive(OpenApi)]
#[openapi(info(
    title = "vswitchd control API",
    description = "Bridges, ports and stations of a userspace virtual switch. Served over a Unix socket: curl --unix-socket /run/vswitchd/ctl.sock http://localhost/v1/ports"
))]
struct Description;

/// The description of every route and type, as `GET /openapi.json` serves it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().split_for_parts().1
}

fn documented() -> OpenApiRouter<Calls> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(bridges, add_bridge))
        .routes(routes!(bridge, set_bridge, del_bridge))
        .routes(routes!(ports, add_port))
        .routes(routes!(port, set_port, del_port))
        .routes(routes!(fdb, fdb_add))
        .routes(routes!(fdb_del))
        .routes(routes!(fdb_flush))
        .routes(routes!(neighbours, neigh_add))
        .routes(routes!(neigh_del))
        .routes(routes!(neigh_flush))
        .routes(routes!(attach))
        .routes(routes!(stats))
        .routes(routes!(reload))
        .routes(routes!(prometheus))
}

/// All routes, over the daemon that `calls` leads to.
pub fn router(calls: Calls) -> Router {
    let (router, openapi) = documented().split_for_parts();
    // Serialised once; an error would show in the tests, which read it.
    let description = serde_json::to_vec(&openapi).unwrap_or_default();
    router
        .route("/openapi.json", get(move || async move { json_bytes(StatusCode::OK, description.clone()) }))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(calls)
}

async fn no_route(uri: Uri) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("no '{}' here: GET /openapi.json tells what there is", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let text = format!("'{}' does not take {method}: GET /openapi.json tells what it takes", uri.path());
    Refusal(StatusCode::METHOD_NOT_ALLOWED, text)
}

// ---- answers ----

/// A refused request.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Exists(_) => StatusCode::CONFLICT,
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            // It passes: the same request may do later.
            error if error.lacks_thread() => StatusCode::SERVICE_UNAVAILABLE,
            Error::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.to_string())
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        let status = match failed {
            Failed::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Failed::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, failed.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        Answer(self.0, Failure { error: crate::one_line(&self.1) }).into_response()
    }
}

/// A status and a JSON document.
struct Answer<T>(StatusCode, T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.1) {
            Ok(bytes) => json_bytes(self.0, bytes),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

type Reply<T> = Result<Answer<T>, Refusal>;

/// Calls the daemon on a thread that may block.
async fn call<T, F>(calls: Calls, status: StatusCode, work: F) -> Reply<T>
where
    T: Send + 'static,
    F: FnOnce(&Daemon) -> Result<T, Error> + Send + 'static,
{
    Ok(Answer(status, calls.run(work).await??))
}

// ---- requests ----

/// A JSON body, whatever its Content-Type says (so that `curl -d` needs no header).
struct Json<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let body = Limited::new(request.into_body(), BODY_MAX_BYTES).collect();
        let bytes = match tokio::time::timeout(READ_TIMEOUT, body).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                let text = format!("the request is larger than {} KiB", BODY_MAX_BYTES >> 10);
                return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            Ok(Err(error)) => {
                return Err(Refusal(
                    StatusCode::BAD_REQUEST,
                    format!("the request's body broke off: {error}"),
                ));
            }
            Err(_) => {
                let secs = Duration::as_secs(&READ_TIMEOUT);
                let text = format!("the request's body did not arrive within {secs} s");
                return Err(Refusal(StatusCode::REQUEST_TIMEOUT, text));
            }
        };
        serde_json::from_slice(&bytes)
            .map(Json)
            .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("the request's JSON: {error}")))
    }
}

/// The part of a URL after `?`.
struct Query<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map(Query)
            .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("the request's query: {error}")))
    }
}

/// The name in a path.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Name(name)),
            Err(error) => Err(Refusal(StatusCode::BAD_REQUEST, format!("the request's path: {error}"))),
        }
    }
}

/// Tolerance of an addition.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AddQuery {
    /// Fine when it exists with the same attributes.
    #[serde(default)]
    may_exist: bool,
}

/// Tolerance of a removal.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DelQuery {
    /// Fine when there is none.
    #[serde(default)]
    if_exists: bool,
}

/// How to remove a bridge.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DelBridgeQuery {
    /// Fine when there is none.
    #[serde(default)]
    if_exists: bool,
    /// Together with its ports.
    #[serde(default)]
    with_ports: bool,
}

/// How to remove an entry.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DelEntryQuery {
    /// Bridge that knows it.
    bridge: String,
    /// Its VLAN, on a filtering bridge.
    #[param(value_type = Option<u16>)]
    vlan: Option<crate::api::values::StationVlan>,
    /// Fine when there is none.
    #[serde(default)]
    if_exists: bool,
}

/// Which port's counters.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StatsQuery {
    /// Name of the port; all when absent.
    port: Option<String>,
}

// ---- routes ----

type Shared = State<Calls>;

/// The daemon and its workers.
#[utoipa::path(get, path = "/v1/status", responses((status = OK, body = StatusInfo)))]
async fn status(State(calls): Shared) -> Reply<StatusInfo> {
    call(calls, StatusCode::OK, |daemon| Ok(daemon.status())).await
}

/// Every bridge.
#[utoipa::path(get, path = "/v1/bridges", responses((status = OK, body = Vec<BridgeInfo>)))]
async fn bridges(State(calls): Shared) -> Reply<Vec<BridgeInfo>> {
    call(calls, StatusCode::OK, |daemon| Ok(daemon.bridges())).await
}

/// Adds a bridge.
#[utoipa::path(post, path = "/v1/bridges", params(AddQuery), request_body = BridgeAdd,
    responses((status = CREATED, body = BridgeInfo), (status = 400, body = Failure), (status = 409, body = Failure)))]
async fn add_bridge(
    State(calls): Shared,
    Query(how): Query<AddQuery>,
    Json(request): Json<BridgeAdd>,
) -> Reply<BridgeInfo> {
    call(calls, StatusCode::CREATED, move |daemon| daemon.add_bridge(&request, how.may_exist)).await
}

/// One bridge.
#[utoipa::path(get, path = "/v1/bridges/{name}", params(("name" = String, Path)),
    responses((status = OK, body = BridgeInfo), (status = 404, body = Failure)))]
async fn bridge(State(calls): Shared, Name(name): Name) -> Reply<BridgeInfo> {
    call(calls, StatusCode::OK, move |daemon| daemon.bridge(&name)).await
}

/// Changes settings of a bridge; those not given stay.
#[utoipa::path(patch, path = "/v1/bridges/{name}", params(("name" = String, Path)), request_body = BridgeSet,
    responses((status = OK, body = BridgeInfo), (status = 400, body = Failure), (status = 404, body = Failure)))]
async fn set_bridge(
    State(calls): Shared,
    Name(name): Name,
    Json(request): Json<BridgeSet>,
) -> Reply<BridgeInfo> {
    call(calls, StatusCode::OK, move |daemon| daemon.set_bridge(&name, &request)).await
}

/// Removes a bridge.
#[utoipa::path(delete, path = "/v1/bridges/{name}", params(("name" = String, Path), DelBridgeQuery),
    responses((status = OK, body = Done), (status = 400, body = Failure), (status = 404, body = Failure)))]
async fn del_bridge(
    State(calls): Shared,
    Name(name): Name,
    Query(how): Query<DelBridgeQuery>,
) -> Reply<Done> {
    let work =
        move |daemon: &Daemon| daemon.del_bridge(&name, how.with_ports, how.if_exists).map(|()| Done {});
    call(calls, StatusCode::OK, work).await
}

/// Every port.
#[utoipa::path(get, path = "/v1/ports", responses((status = OK, body = Vec<PortInfo>)))]
async fn ports(State(calls): Shared) -> Reply<Vec<PortInfo>> {
    call(calls, StatusCode::OK, |daemon| Ok(daemon.ports())).await
}

/// Adds a port.
#[utoipa::path(post, path = "/v1/ports", params(AddQuery), request_body = PortAdd,
    responses((status = CREATED, body = PortInfo), (status = 400, body = Failure), (status = 404, body = Failure),
        (status = 409, body = Failure), (status = 500, body = Failure)))]
async fn add_port(
    State(calls): Shared,
    Query(how): Query<AddQuery>,
    Json(request): Json<PortAdd>,
) -> Reply<PortInfo> {
    call(calls, StatusCode::CREATED, move |daemon| daemon.add_port(&request, how.may_exist)).await
}

/// One port.
#[utoipa::path(get, path = "/v1/ports/{name}", params(("name" = String, Path)),
    responses((status = OK, body = PortInfo), (status = 404, body = Failure)))]
async fn port(State(calls): Shared, Name(name): Name) -> Reply<PortInfo> {
    call(calls, StatusCode::OK, move |daemon| daemon.port(&name)).await
}

/// Changes settings of a port; those not given stay.
#[utoipa::path(patch, path = "/v1/ports/{name}", params(("name" = String, Path)), request_body = PortSet,
    responses((status = OK, body = PortInfo), (status = 400, body = Failure), (status = 404, body = Failure)))]
async fn set_port(State(calls): Shared, Name(name): Name, Json(request): Json<PortSet>) -> Reply<PortInfo> {
    call(calls, StatusCode::OK, move |daemon| daemon.set_port(&name, &request)).await
}

/// Removes a port.
#[utoipa::path(delete, path = "/v1/ports/{name}", params(("name" = String, Path), DelQuery),
    responses((status = OK, body = Done), (status = 404, body = Failure)))]
async fn del_port(State(calls): Shared, Name(name): Name, Query(how): Query<DelQuery>) -> Reply<Done> {
    call(calls, StatusCode::OK, move |daemon| daemon.del_port(&name, how.if_exists).map(|()| Done {})).await
}

/// The stations that are known.
#[utoipa::path(get, path = "/v1/fdb", params(FdbSelect),
    responses((status = OK, body = Vec<FdbInfo>), (status = 404, body = Failure)))]
async fn fdb(State(calls): Shared, Query(select): Query<FdbSelect>) -> Reply<Vec<FdbInfo>> {
    call(calls, StatusCode::OK, move |daemon| daemon.fdb(&select)).await
}

/// Adds a static entry.
#[utoipa::path(post, path = "/v1/fdb", params(AddQuery), request_body = FdbAdd,
    responses((status = CREATED, body = FdbInfo), (status = 400, body = Failure), (status = 404, body = Failure),
        (status = 409, body = Failure)))]
async fn fdb_add(
    State(calls): Shared,
    Query(how): Query<AddQuery>,
    Json(request): Json<FdbAdd>,
) -> Reply<FdbInfo> {
    call(calls, StatusCode::CREATED, move |daemon| daemon.fdb_add(&request, how.may_exist)).await
}

/// Removes an entry.
#[utoipa::path(delete, path = "/v1/fdb/{mac}", params(("mac" = String, Path), DelEntryQuery),
    responses((status = OK, body = Done), (status = 400, body = Failure), (status = 404, body = Failure)))]
async fn fdb_del(State(calls): Shared, Name(mac): Name, Query(how): Query<DelEntryQuery>) -> Reply<Done> {
    let work = move |daemon: &Daemon| {
        let mac = mac.parse().map_err(Error::Invalid)?;
        let key = FdbKey { bridge: how.bridge, vlan: how.vlan };
        daemon.fdb_del(mac, &key, how.if_exists).map(|()| Done {})
    };
    call(calls, StatusCode::OK, work).await
}

/// Forgets dynamic entries.
#[utoipa::path(post, path = "/v1/fdb/flush", params(FdbSelect),
    responses((status = OK, body = Flushed), (status = 404, body = Failure)))]
async fn fdb_flush(State(calls): Shared, Query(select): Query<FdbSelect>) -> Reply<Flushed> {
    let work = move |daemon: &Daemon| daemon.fdb_flush(&select).map(|flushed| Flushed { flushed });
    call(calls, StatusCode::OK, work).await
}

/// The neighbours that are known.
#[utoipa::path(get, path = "/v1/neigh", params(NeighSelect),
    responses((status = OK, body = Vec<NeighInfo>), (status = 404, body = Failure)))]
async fn neighbours(State(calls): Shared, Query(select): Query<NeighSelect>) -> Reply<Vec<NeighInfo>> {
    call(calls, StatusCode::OK, move |daemon| daemon.neighbours(&select)).await
}

/// Adds a static neighbour.
#[utoipa::path(post, path = "/v1/neigh", params(AddQuery), request_body = NeighAdd,
    responses((status = CREATED, body = NeighInfo), (status = 400, body = Failure), (status = 404, body = Failure),
        (status = 409, body = Failure)))]
async fn neigh_add(
    State(calls): Shared,
    Query(how): Query<AddQuery>,
    Json(request): Json<NeighAdd>,
) -> Reply<NeighInfo> {
    call(calls, StatusCode::CREATED, move |daemon| daemon.neigh_add(&request, how.may_exist)).await
}

/// Removes a neighbour.
#[utoipa::path(delete, path = "/v1/neigh/{address}", params(("address" = String, Path), DelEntryQuery),
    responses((status = OK, body = Done), (status = 400, body = Failure), (status = 404, body = Failure)))]
async fn neigh_del(
    State(calls): Shared,
    Name(address): Name,
    Query(how): Query<DelEntryQuery>,
) -> Reply<Done> {
    let work = move |daemon: &Daemon| {
        let address = address
            .parse()
            .map_err(|_| Error::Invalid(format!("'{}' is not an IP address", address.escape_debug())))?;
        let key = NeighKey { bridge: how.bridge, vlan: how.vlan };
        daemon.neigh_del(address, &key, how.if_exists).map(|()| Done {})
    };
    call(calls, StatusCode::OK, work).await
}

/// Forgets dynamic neighbours.
#[utoipa::path(post, path = "/v1/neigh/flush", params(NeighSelect),
    responses((status = OK, body = Flushed), (status = 404, body = Failure)))]
async fn neigh_flush(State(calls): Shared, Query(select): Query<NeighSelect>) -> Reply<Flushed> {
    let work = move |daemon: &Daemon| daemon.neigh_flush(&select).map(|flushed| Flushed { flushed });
    call(calls, StatusCode::OK, work).await
}

/// Who may attach guests over the attach socket, beside root, and how many are.
#[utoipa::path(get, path = "/v1/attach", responses((status = OK, body = Vec<AttachInfo>)))]
async fn attach(State(calls): Shared) -> Reply<Vec<AttachInfo>> {
    call(calls, StatusCode::OK, |daemon| Ok(daemon.attach_rules())).await
}

/// Counters, and drops by reason.
#[utoipa::path(get, path = "/v1/stats", params(StatsQuery),
    responses((status = OK, body = Vec<Stats>), (status = 404, body = Failure)))]
async fn stats(State(calls): Shared, Query(which): Query<StatsQuery>) -> Reply<Vec<Stats>> {
    call(calls, StatusCode::OK, move |daemon| daemon.stats(which.port.as_deref())).await
}

/// Reads the configuration again and applies the difference.
#[utoipa::path(post, path = "/v1/reload",
    responses((status = OK, body = ReloadReport), (status = 400, body = Failure), (status = 409, body = Failure),
        (status = 500, body = Failure)))]
async fn reload(State(calls): Shared) -> Reply<ReloadReport> {
    call(calls, StatusCode::OK, crate::vswitchd::reload).await
}

/// Everything that counts, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = OK, body = String, content_type = "text/plain")))]
async fn prometheus(State(calls): Shared) -> Result<Response, Refusal> {
    let Answer(status, text) = call(calls, StatusCode::OK, |daemon| Ok(metrics::exposition(daemon))).await?;
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
