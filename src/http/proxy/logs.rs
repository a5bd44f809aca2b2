//! Following a command's log (PROTOCOL.md 7): the guest's daemon offers it as a WebSocket, the client
//! reads a body that goes on as long as the command does.

use std::rc::Rc;

use futures::{FutureExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::body::RequestBody;
use super::exchange::{self, Order, Reply};
use super::pool::Run;
use super::target::Target;
use super::upgrade::Early;
use super::{about, origin_form};
use crate::actors::proxy::{Place, Route};
use crate::http::error::Problem;
use crate::http::front::Answer;
use crate::http::tunnel::logs;
use crate::ids::SandboxId;

/// The path of a log that is to be followed by a client that does not speak WebSocket.
pub(super) fn wanted(request: &Request<Incoming>, target: &Target) -> Option<String> {
    let websocket = request.headers().get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    (request.method() == Method::GET && !websocket && is_followed(target)).then(|| target.path.clone())
}

fn is_followed(target: &Target) -> bool {
    let parts: Vec<&str> = target.path.split('/').collect();
    let log =
        matches!(parts[..], ["", "process", "session", s, "command", c, "logs"] if !s.is_empty() && !c.is_empty());
    log && target.query.iter().flat_map(|query| query.split('&')).any(|pair| pair == "follow=true")
}

/// Opens the guest's WebSocket and answers with what comes of it.
pub(super) async fn follow(
    run: &Rc<Run>,
    route: &Route,
    id: &SandboxId,
    path: &str,
    place: Place,
) -> Result<Response<Answer>, Problem> {
    let request = Request::get(origin_form(format!("{path}?follow=true"))?)
        .header("host", super::headers::GUEST)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .body(());
    let request = request.map_err(|error| Problem::new(400, "BAD_REQUEST", about(id, &error.to_string())))?;
    let order = Order { head: request.into_parts().0, body: RequestBody::none(), interim: None };
    match exchange::send(run, route, order).await.map_err(|error| error.problem(id))? {
        Reply::Switched(_, guest, early) => {
            let messages = logs::messages(Early::new(guest, early), route.closed().boxed_local());
            let mut response = Response::new(Answer::stream(messages.map(move |message| {
                // The request is under way as long as its body is.
                let _place = &place;
                message
            })));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            Ok(response)
        }
        Reply::Answer(answer, _) => {
            let message = format!(
                "the guest answered {} where a WebSocket for the log of {path} was expected; \
                 ask without follow=true for what there is",
                answer.status()
            );
            let status = if answer.status() == 404 { 404 } else { 502 };
            Err(Problem::new(status, if status == 404 { "NOT_FOUND" } else { "BAD_GATEWAY" }, about(id, &message)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_paths_are_logs() {
        let followed = |path: &str| is_followed(&Target::read(&path.parse().unwrap()).unwrap());
        let log = "/sandboxes/b/toolbox/process/session/s/command/c/logs";
        assert!(followed(&format!("{log}?follow=true")));
        assert!(followed(&format!("{log}?x=1&follow=true")));
        for path in [
            log.to_owned(),
            format!("{log}?follow=false"),
            format!("{log}?follow=truely"),
            format!("{log}/x?follow=true"),
        ] {
            assert!(!followed(&path), "{path}");
        }
        assert!(!followed("/sandboxes/b/toolbox/proxy/80/process/session/s/command/c/logs?follow=true"));
        assert!(!followed("/sandboxes/b/toolbox/process/session//command/c/logs?follow=true"));
    }
}
