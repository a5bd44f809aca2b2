//! The way from hyper into the actix application and back. Both know the same messages under two
//! versions of the `http` crate, so names and values are carried over as bytes.

use std::rc::Rc;

use actix_http::Payload;
use actix_service::IntoServiceFactory;
use actix_web::dev::{AppConfig, Service, ServiceFactory};
use actix_web::error::PayloadError;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{App, HttpResponse};
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http_body_util::BodyStream;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};

use super::Answer;
use crate::http::error::Problem;
use crate::http::proxy::Peer;
use crate::http::{State, configure};

type Call = dyn Fn(actix_http::Request) -> LocalBoxFuture<'static, HttpResponse>;

/// The actix application of this thread.
#[derive(Clone)]
pub struct Admin(Rc<Call>);

impl Admin {
    /// Makes the application.
    ///
    /// # Errors
    /// None that is known; actix gives no words.
    pub async fn new(state: State) -> Result<Self, ()> {
        let factory = App::new().configure(configure(state)).into_factory();
        let service = Rc::new(factory.new_service(AppConfig::default()).await?);
        Ok(Self(Rc::new(move |request| {
            let answered = service.call(request);
            async move {
                match answered.await {
                    Ok(answered) => answered.into_parts().1.map_into_boxed_body(),
                    Err(error) => HttpResponse::from_error(error),
                }
            }
            .boxed_local()
        })))
    }

    /// Answers one request.
    pub async fn call(&self, request: Request<Incoming>, peer: &Peer) -> Response<Answer> {
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let Some(request) = inward(request, peer) else {
            let message = "this request cannot be read; see RFC 9110 for what a method, a path and a header may be";
            return Problem::new(400, "BAD_REQUEST", message).answer(&method, &path);
        };
        outward((self.0)(request).await)
    }
}

fn inward(request: Request<Incoming>, peer: &Peer) -> Option<actix_http::Request> {
    let (parts, body) = request.into_parts();
    let chunks = BodyStream::new(body)
        .map_err(|error| PayloadError::Io(std::io::Error::other(error)))
        .try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())))
        .boxed_local();
    let mut request = actix_http::Request::with_payload(Payload::Stream { payload: chunks });
    let head = request.head_mut();
    head.method = actix_web::http::Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    head.uri = parts.uri.to_string().parse().ok()?;
    head.version = match parts.version {
        hyper::Version::HTTP_10 => actix_web::http::Version::HTTP_10,
        _ => actix_web::http::Version::HTTP_11,
    };
    head.peer_addr = Some(peer.address);
    for (name, value) in &parts.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(request)
}

fn outward(response: HttpResponse) -> Response<Answer> {
    let (head, body) = response.into_parts();
    let body = Answer::admin(body);
    let mut builder = Response::builder().status(head.status().as_u16());
    for (name, value) in head.headers() {
        builder = builder.header(name.as_str(), value.as_bytes());
    }
    // A HEAD has the length of the body that it does not have.
    if let Some(length) = body.size_hint().exact().filter(|_| !matches!(head.status().as_u16(), 204 | 304)) {
        builder = builder.header(hyper::header::CONTENT_LENGTH, length);
    }
    // Everything in it was a valid name or value already.
    builder.body(body).unwrap_or_else(|_| Response::new(Answer::whole("")))
}
