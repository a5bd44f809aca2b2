//! Requests for guests (PROTOCOL.md 7): the toolbox and the ports behind it. A connection is made in
//! the sandbox's namespace for each request; bodies stream both ways; an upgrade becomes a tunnel.

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

use super::sandboxes::{find, sandbox_id};
use super::{FromGuest, State, error};
use crate::error::{ErrorCode, Failure, chain};
use crate::ids::SandboxId;
use guest::{GuestStream, Over};

mod guest;
mod headers;

/// Chunks that may wait between the two sides of a body; more would only be memory.
const WAITING_CHUNKS: usize = 8;
/// One read of a tunnel.
const TUNNEL_CHUNK: usize = 32 << 10;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Documentation of the toolbox route; [`forward`] serves it.
#[utoipa::path(get, path = "/sandboxes/{id}/toolbox/{path}", description = "Any method: the guest's toolbox at this path",
    params(("id" = String, Path, description = "sandbox id"), ("path" = String, Path, description = "path in the guest")),
    responses((status = 200, description = "what the guest answers"), (status = 404, body = error::ErrorBody), (status = 502, body = error::ErrorBody)))]
#[allow(dead_code, reason = "carries the OpenAPI text; utoipa wants a function per documented path")]
fn toolbox() {}

/// Documentation of the port route; [`forward`] serves it.
#[utoipa::path(get, path = "/sandboxes/{id}/proxy/{port}/{path}", description = "Any method: a port of the guest",
    params(("id" = String, Path, description = "sandbox id"), ("port" = u16, Path, description = "port in the guest"),
        ("path" = String, Path, description = "path in the guest")),
    responses((status = 200, description = "what the guest answers"), (status = 404, body = error::ErrorBody), (status = 502, body = error::ErrorBody)))]
#[allow(dead_code, reason = "carries the OpenAPI text; utoipa wants a function per documented path")]
fn port() {}

/// Forwards a request to the guest.
pub async fn forward(request: HttpRequest, state: Data<State>, payload: Payload) -> HttpResponse {
    let target = match target(request.uri().path(), request.uri().query()) {
        Ok(target) => target,
        Err(failure) => return error::answer(&request, &failure),
    };
    match connect(&state, &target.id).await {
        Ok(guest) => exchange(&request, &state, payload, &target, guest).await,
        Err(Unreached::Refused(failure)) => return error::answer(&request, &failure),
        Err(Unreached::Broken(reason)) => Err(reason),
    }
    .unwrap_or_else(|reason| {
        let message = format!("sandbox {}: the guest cannot be reached: {reason}", target.id);
        error::with_status(&request, StatusCode::BAD_GATEWAY, "BAD_GATEWAY", message)
    })
}

enum Unreached {
    /// There is no such sandbox, or it does not run.
    Refused(Failure),
    /// It runs and takes no connection.
    Broken(String),
}

async fn connect(state: &State, id: &SandboxId) -> Result<(GuestStream, Over), Unreached> {
    let connected = GuestStream::connect(&state.routes, id).await;
    if let Some(guest) = connected.map_err(|error| Unreached::Broken(chain(&error)))? {
        return Ok(guest);
    }
    // Only now, as it may have stopped meanwhile.
    let view = find(state, id).map_err(Unreached::Refused)?;
    let now = serde_json::to_value(view.state).ok().and_then(|name| name.as_str().map(str::to_owned));
    let message = format!("sandbox {id} has no address (it is {}). Is the Sandbox started?", now.unwrap_or_default());
    Err(Unreached::Refused(Failure::new(ErrorCode::BadRequest, message)))
}

/// Where in the guest a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    id: SandboxId,
    /// Path and query, encoded as they came.
    path: String,
}

/// Reads the target out of the raw path, so that its encoding stays as it is.
fn target(path: &str, query: Option<&str>) -> Result<Target, Failure> {
    let no_route = || Failure::new(ErrorCode::NotFound, format!("there is no {path} here"));
    let mut parts = path.splitn(5, '/').skip(2);
    let (id, kind, rest) = (parts.next().ok_or_else(no_route)?, parts.next().ok_or_else(no_route)?, parts.next());
    let rest = rest.unwrap_or_default();
    let mut inside = match kind {
        "toolbox" => format!("/{rest}"),
        "proxy" => {
            let (port, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let port: u16 = port.parse().ok().filter(|&port| port > 0).ok_or_else(|| {
                Failure::new(ErrorCode::BadRequest, format!("port: expected 1 to 65535, got {port:?}"))
            })?;
            format!("/proxy/{port}/{rest}")
        }
        _ => return Err(no_route()),
    };
    if let Some(query) = query {
        inside.push('?');
        inside.push_str(query);
    }
    Ok(Target { id: sandbox_id(id)?, path: inside })
}

async fn exchange(
    request: &HttpRequest,
    state: &State,
    payload: Payload,
    target: &Target,
    (stream, over): (GuestStream, Over),
) -> Result<HttpResponse, String> {
    let words = |error: hyper::Error| chain(&error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(words)?;
    let id = target.id.clone();
    actix_web::rt::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(sandbox = %id, error = %chain(&error), "a connection to the guest ended early");
        }
    });
    let upgrade = headers::wants_upgrade(request);
    let (body, payload) = match headers::has_body(request) {
        true if !upgrade => (request_body(payload), None),
        _ => (Empty::new().map_err(|never| match never {}).boxed_unsync(), Some(payload)),
    };
    let outgoing = headers::to_guest(request, &state.token, &target.path, upgrade);
    let outgoing = outgoing.body(body).map_err(|error| error.to_string())?;
    let response = sender.send_request(outgoing).await.map_err(words)?;
    match (response.status().as_u16(), payload) {
        (101, Some(payload)) if upgrade => tunnel(response, payload, over).await,
        _ => Ok(incoming(response)),
    }
}

/// The client's body for the guest. actix's payload belongs to its thread, hyper wants a body that
/// could move: a bounded channel between them keeps the back-pressure.
fn request_body(mut payload: Payload) -> Body {
    let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
    actix_web::rt::spawn(async move {
        while let Some(chunk) = payload.next().await {
            let broken = chunk.is_err();
            let chunk = chunk.map(Frame::data).map_err(|error| std::io::Error::other(error.to_string()));
            if sender.send(chunk).await.is_err() || broken {
                break;
            }
        }
    });
    let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    StreamBody::new(chunks).boxed_unsync()
}

fn incoming(response: hyper::Response<Incoming>) -> HttpResponse {
    // hyper only lets three-digit numbers through, and actix takes those.
    let status = StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut builder = HttpResponse::build(status);
    builder.extensions_mut().insert(FromGuest);
    headers::to_client(&mut builder, response.headers());
    let length = response.headers().get(hyper::header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()).and_then(|length| length.parse().ok());
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        // There is no body, not even one without content; the length is that of what was not modified.
        if let Some(length) = length {
            builder.insert_header(("content-length", length));
        }
        return builder.finish();
    }
    let chunks = BodyStream::new(response.into_body())
        .try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())))
        .map_err(std::io::Error::other);
    match length {
        Some(length) => builder.body(SizedStream::new(length, chunks)),
        None => builder.streaming(chunks),
    }
}

/// After a 101 both sides speak whatever they like.
async fn tunnel(mut response: hyper::Response<Incoming>, payload: Payload, over: Over) -> Result<HttpResponse, String> {
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| chain(&error))?;
    let mut builder = HttpResponse::SwitchingProtocols();
    headers::to_client(&mut builder, response.headers());
    let protocol = response.headers().get(hyper::header::UPGRADE).and_then(|value| value.to_str().ok());
    builder.upgrade(protocol.unwrap_or("websocket"));
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    actix_web::rt::spawn(async move {
        tokio::select! {
            () = to_guest(payload, write) => {}
            // A guest that is gone takes nothing, and the kernel would try for a quarter of an hour.
            () = over => {}
        }
    });
    Ok(builder.streaming(from_guest(read)))
}

async fn to_guest(mut payload: Payload, mut guest: impl AsyncWriteExt + Unpin) {
    while let Some(Ok(chunk)) = payload.next().await {
        if guest.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // The client's side has ended; the guest may have more to say.
    if let Err(error) = guest.shutdown().await {
        debug!(%error, "a tunnel to a guest was already closed");
    }
}

fn from_guest(guest: impl AsyncReadExt + Unpin) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures::stream::unfold(guest, |mut guest| async move {
        let mut chunk = vec![0; TUNNEL_CHUNK];
        match guest.read(&mut chunk).await {
            Ok(0) => None,
            Ok(length) => {
                chunk.truncate(length);
                Some((Ok(Bytes::from(chunk)), guest))
            }
            Err(error) => Some((Err(error), guest)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(path: &str, query: Option<&str>) -> Result<String, ErrorCode> {
        target(path, query).map(|target| target.path).map_err(|failure| failure.code)
    }

    #[test]
    fn paths_are_kept_as_they_came() {
        let table = [
            ("/sandboxes/b/toolbox", None, "/"),
            ("/sandboxes/b/toolbox/", None, "/"),
            ("/sandboxes/b/toolbox/files/a%2Fb%20c", Some("x=%41&y"), "/files/a%2Fb%20c?x=%41&y"),
            ("/sandboxes/b/toolbox/proxy/8080//x", None, "/proxy/8080//x"),
            ("/sandboxes/b/proxy/8080/a/b", Some(""), "/proxy/8080/a/b?"),
            ("/sandboxes/b/proxy/8080", None, "/proxy/8080/"),
        ];
        for (path, query, expected) in table {
            assert_eq!(path_of(path, query), Ok(expected.to_owned()), "{path}");
        }
    }

    #[test]
    fn bad_targets() {
        for path in [
            "/sandboxes/..%2f/toolbox/x",
            "/sandboxes/b/proxy/0/x",
            "/sandboxes/b/proxy/65536/x",
            "/sandboxes/b/proxy/x/",
        ] {
            assert_eq!(path_of(path, None), Err(ErrorCode::BadRequest), "{path}");
        }
        assert_eq!(path_of("/sandboxes/b/other/x", None), Err(ErrorCode::NotFound));
    }
}
