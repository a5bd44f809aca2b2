//! The HTTP side. One function receives every request and works through the same stations in the same order as the API:
//! outage, route, body, ordered fault, body syntax, block of the address, key, access, validation, work.

pub(crate) mod admin;
pub(crate) mod conn;
mod jobs;
pub(crate) mod reply;
mod resources;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{Method, header};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use crate::auth;
use crate::faults::{Action, DownMode, Route};
use crate::server::Shared;
use conn::Conn;
use reply::{Failure, dashboard_reply, empty_reply, error_reply, json_reply};

/// A request for a route of the API with its body read.
pub(crate) struct Call {
    pub shared: Arc<Shared>,
    pub conn: Option<Arc<Conn>>,
    pub req: HttpRequest,
    pub route: Route,
    /// The id in the path, empty for routes without one.
    pub id: String,
    pub body: Bytes,
}

/// Entry point of every request.
pub(crate) async fn dispatch(req: HttpRequest, payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let shared = shared.into_inner();
    let conn = req.conn_data::<Arc<Conn>>().cloned();
    let path = req.path();
    if path == "/sim" || path.starts_with("/sim/") {
        if let Some(conn) = &conn {
            conn.mark_admin();
        }
        return admin::dispatch(shared, req, payload).await;
    }
    let down = shared.core.lock().faults.down;
    if down.is_some_and(|down| down.mode == DownMode::Close) {
        return cut(conn.as_deref());
    }
    let Some((route, id)) = find_route(req.method(), path) else {
        return unrouted(&req);
    };
    let limit = shared.core.options.body_limit;
    let body = match payload.to_bytes_limited(limit).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return error_reply(&req, &Failure::new(400, "request aborted")),
        Err(_) => return error_reply(&req, &Failure::new(413, "request entity too large")),
    };
    let call = Call { shared, conn, req, route, id, body };
    call.run().await
}

fn find_route(method: &Method, path: &str) -> Option<(Route, String)> {
    let rest = path.strip_prefix("/api/")?;
    let parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
    let found = match (method.as_str(), parts.as_slice()) {
        ("GET", ["jobs"]) => (Route::List, ""),
        ("GET", ["jobs", "poll"]) => (Route::Poll, ""),
        ("GET", ["jobs", id]) => (Route::Get, *id),
        ("POST", ["jobs", id, "status"]) => (Route::Status, *id),
        ("POST", ["runners", "healthcheck"]) => (Route::Healthcheck, ""),
        ("GET", ["runners", "me"]) => (Route::Me, ""),
        ("GET", ["sandbox", "for-runner"]) => (Route::ForRunner, ""),
        ("PUT", ["sandbox", id, "state"]) => (Route::SandboxState, *id),
        _ => return None,
    };
    Some((found.0, found.1.to_owned()))
}

/// Unknown paths: JSON below the prefix, the dashboard everywhere else.
fn unrouted(req: &HttpRequest) -> HttpResponse {
    let path = req.path();
    if path.starts_with("/api/") {
        let text = format!("Cannot {} {}", req.method(), req.uri());
        return error_reply(req, &Failure::new(404, text));
    }
    if path == "/" {
        return HttpResponse::Found().insert_header((header::LOCATION, format!("/dashboard{}", req.uri()))).finish();
    }
    dashboard_reply()
}

/// Cuts the connection. The answer returned is never seen; it ends the server's work on the request.
fn cut(conn: Option<&Conn>) -> HttpResponse {
    if let Some(conn) = conn {
        conn.cut();
    }
    empty_reply(503)
}

impl Call {
    /// Answers the request, with the ordered fault if there is one.
    async fn run(self) -> HttpResponse {
        let fault = self.shared.core.lock().faults.take(self.route);
        let kind = fault.as_ref().map(kind_of);
        if let Some(action) = &fault
            && let Some((status, reply)) = self.fail_before(action).await
        {
            self.record(status, kind);
            return reply;
        }
        let reply = self.work().await;
        let reply = reply.unwrap_or_else(|failure| error_reply(&self.req, &failure));
        self.record(reply.status().as_u16(), kind);
        match fault {
            Some(Action::CloseAfter) => cut(self.conn.as_deref()),
            Some(Action::DelayAfter { ms }) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                reply
            }
            _ => reply,
        }
    }

    /// Faults that replace the work; the number is the recorded status, 0 for no answer.
    async fn fail_before(&self, action: &Action) -> Option<(u16, HttpResponse)> {
        let reply = match action {
            Action::Status { code, retry_after } => {
                let mut reply = error_reply(&self.req, &Failure::new(*code, "Injected failure"));
                if let Some(seconds) = retry_after {
                    let value = header::HeaderValue::from(*seconds);
                    reply.headers_mut().insert(header::RETRY_AFTER, value);
                }
                (*code, reply)
            }
            Action::Html => (200, dashboard_reply()),
            Action::Garbage => {
                let mut reply = HttpResponse::Ok();
                let reply = reply.content_type("application/json");
                (200, reply.body("{\"jobs\":[{\"id\":"))
            }
            Action::Empty => (200, empty_reply(200)),
            Action::CloseBefore => (0, cut(self.conn.as_deref())),
            Action::Hang => {
                match &self.conn {
                    Some(conn) => conn.closed().await,
                    None => std::future::pending().await,
                }
                (0, empty_reply(503))
            }
            Action::Delay { ms } => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                return None;
            }
            Action::CloseAfter | Action::DelayAfter { .. } => return None,
        };
        Some(reply)
    }

    /// The stations from the body's syntax on.
    async fn work(&self) -> Result<HttpResponse, Failure> {
        let body = self.parse_body()?;
        let runner = self.authenticate()?;
        match self.route {
            Route::Poll => self.poll(&runner).await,
            Route::List => self.list_jobs(&runner),
            Route::Get => self.get_job(&runner),
            Route::Status => self.post_status(&runner, &body),
            Route::Healthcheck => self.healthcheck(&runner, &body),
            Route::Me => self.me(&runner),
            Route::ForRunner => self.for_runner(&runner),
            Route::SandboxState => self.put_state(&runner, &body),
            Route::Any => Err(Failure::new(404, "Not Found")),
        }
    }

    /// Reads the body as JSON. A content type that is not JSON hides the body, so that validation finds nothing.
    fn parse_body(&self) -> Result<Value, Failure> {
        let kind = self.req.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = kind.to_ascii_lowercase();
        let declared = kind.contains("application/json");
        if self.body.is_empty() || !(declared || kind.is_empty() || kind.contains("text/json")) {
            return Ok(json!({}));
        }
        match serde_json::from_slice::<Value>(&self.body) {
            Ok(body) if body.is_object() || body.is_array() => Ok(body),
            _ if !declared => Ok(json!({})),
            Ok(_) => Err(Failure::new(400, "JSON body must be an object or an array")),
            Err(error) => Err(Failure::new(400, format!("Malformed JSON: {error}"))),
        }
    }

    /// The id of the runner whose key the request carries.
    fn authenticate(&self) -> Result<String, Failure> {
        let options = &self.shared.core.options;
        let address = self.client_address();
        let mut state = self.shared.core.lock();
        if let (Some(limit), Some(left)) = (options.failed_auth, state.logins.blocked(address)) {
            return Err(Failure::throttled(limit.limit, left));
        }
        let header = self.req.headers().get(header::AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()).and_then(auth::bearer);
        if let Some(runner) = state.runners.iter().find(|runner| Some(runner.token.as_str()) == token) {
            return Ok(runner.id.clone());
        }
        if token.is_some_and(|token| options.foreign_tokens.iter().any(|known| known == token)) {
            return Err(Failure::new(403, "Invalid authentication context"));
        }
        state.event(format!("failed login from {address}"));
        if let Some(limit) = options.failed_auth
            && let Some(left) = state.logins.record(address, limit)
        {
            return Err(Failure::throttled(limit.limit, left));
        }
        Err(Failure::new(401, "Invalid credentials"))
    }

    /// The API trusts every proxy: the first forwarded address counts.
    fn client_address(&self) -> IpAddr {
        let forwarded = self.req.headers().get("x-forwarded-for");
        let first = forwarded
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.split(',').next()?.trim().parse().ok());
        first.or(self.req.peer_addr().map(|peer| peer.ip())).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// A query parameter; the first one of a name counts.
    fn query(&self, name: &str) -> Option<String> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(self.req.query_string()).ok()?;
        pairs.into_inner().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

fn kind_of(action: &Action) -> &'static str {
    match action {
        Action::Status { .. } => "status",
        Action::Html => "html",
        Action::Garbage => "garbage",
        Action::Empty => "empty",
        Action::Hang => "hang",
        Action::CloseBefore => "close_before",
        Action::CloseAfter => "close_after",
        Action::Delay { .. } => "delay",
        Action::DelayAfter { .. } => "delay_after",
    }
}

fn ok(body: &Value) -> Result<HttpResponse, Failure> {
    Ok(json_reply(200, body))
}
