//! Which headers cross the proxy, and which end here (PROTOCOL.md 7; RFC 9110, 7.6.1).

use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, Version};
use actix_web::{HttpMessage, HttpRequest, HttpResponseBuilder};

use crate::http::auth::{Carrier, DAYTONA_AUTHORIZATION, Token};
use crate::net;
use crate::toolbox::PORT;

/// Headers that belong to one connection and end here.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Whether the client wants a WebSocket on this connection. Other protocols, and an upgrade that comes
/// with a body, are passed as ordinary requests, which the guest may answer as such.
pub(super) fn wants_upgrade(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let mut options = headers.get_all(header::CONNECTION).flat_map(|value| options(value.as_bytes()));
    let websocket = headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    websocket && options.any(|option| option == "upgrade") && !has_body(request)
}

/// Whether a body follows the head. HTTP/2, which TLS brings along, needs no header to announce one.
pub(super) fn has_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let silent = request.version() == Version::HTTP_2
        && !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match headers.get(header::CONTENT_LENGTH) {
        Some(length) => length.as_bytes() != b"0",
        None => silent || headers.contains_key(header::TRANSFER_ENCODING),
    }
}

/// The words of one `Connection` header, in lower case.
fn options(value: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    text.split(',').map(|option| option.trim().to_owned()).collect()
}

/// The head for the guest, without its body.
pub(super) fn to_guest(
    request: &HttpRequest,
    token: &Token,
    path: &str,
    upgrade: bool,
) -> hyper::http::request::Builder {
    let mut builder = hyper::Request::builder().method(request.method().as_str()).uri(path);
    let listed: Vec<String> =
        request.headers().get_all(header::CONNECTION).flat_map(|value| options(value.as_bytes())).collect();
    let user_may_authorize = request.extensions().get::<Carrier>() == Some(&Carrier::Daytona);
    for (name, value) in request.headers() {
        let ends_here = match name.as_str() {
            "host" | DAYTONA_AUTHORIZATION | FORWARDED_FOR => true,
            "authorization" => !user_may_authorize || token.is_in(value),
            name => HOP_BY_HOP.contains(&name) || listed.iter().any(|option| option == name),
        };
        if !ends_here {
            builder = builder.header(name.as_str(), value.as_bytes());
        }
    }
    builder = builder.header("host", format!("{}:{PORT}", net::GUEST));
    if let Some(protocol) = request.headers().get(header::UPGRADE).filter(|_| upgrade) {
        builder = builder.header("connection", "upgrade").header("upgrade", protocol.as_bytes());
    }
    forwarded(request).into_iter().fold(builder, |builder, (name, value)| builder.header(name, value))
}

/// `X-Forwarded-*`: the address is added to those of earlier proxies, host and scheme are theirs if
/// they told.
fn forwarded(request: &HttpRequest) -> Vec<(&'static str, String)> {
    let connection = request.connection_info();
    let earlier = request.headers().get_all(FORWARDED_FOR).filter_map(|value| value.to_str().ok());
    let peer = request.peer_addr().map(|peer| peer.ip().to_string());
    let through: Vec<String> = earlier.map(str::to_owned).chain(peer).collect();
    let mut headers = vec![(FORWARDED_FOR, through.join(", "))];
    if !request.headers().contains_key("x-forwarded-host") {
        headers.push(("x-forwarded-host", connection.host().to_owned()));
    }
    if !request.headers().contains_key("x-forwarded-proto") {
        headers.push(("x-forwarded-proto", connection.scheme().to_owned()));
    }
    headers
}

/// Copies the guest's headers; the length is left to the one who knows how the body is sent.
pub(super) fn to_client(builder: &mut HttpResponseBuilder, headers: &hyper::HeaderMap) {
    let listed: Vec<String> =
        headers.get_all(hyper::header::CONNECTION).iter().flat_map(|value| options(value.as_bytes())).collect();
    for (name, value) in headers {
        let text = name.as_str();
        let ends_here =
            HOP_BY_HOP.contains(&text) || text == "content-length" || listed.iter().any(|option| option == text);
        if let (false, Ok(name), Ok(value)) =
            (ends_here, HeaderName::try_from(text), HeaderValue::from_bytes(value.as_bytes()))
        {
            builder.append_header((name, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::HttpResponse;

    use super::*;

    #[test]
    fn what_belongs_to_the_guests_connection_does_not_reach_the_client() {
        let mut headers = hyper::HeaderMap::new();
        let pairs = [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "5"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("location", "/next"),
        ];
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        let mut builder = HttpResponse::Ok();
        to_client(&mut builder, &headers);
        let response = builder.finish();
        let mut passed: Vec<(&str, &[u8])> =
            response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        passed.sort_unstable();
        assert_eq!(passed, [("location", &b"/next"[..]), ("set-cookie", b"a=1"), ("set-cookie", b"b=2")]);
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let wanted = |pairs: &[(&str, &str)]| {
            let pair = |(name, value): &(&str, &str)| {
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
            };
            let mut request = actix_web::test::TestRequest::get();
            for (name, value) in pairs.iter().map(pair) {
                request = request.append_header((name, value));
            }
            wants_upgrade(&request.to_http_request())
        };
        assert!(wanted(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]));
        assert!(wanted(&[("upgrade", "websocket"), ("connection", "keep-alive"), ("connection", "upgrade")]));
        assert!(!wanted(&[("upgrade", "websocket")]));
        assert!(!wanted(&[("upgrade", "h2c"), ("connection", "upgrade")]));
        assert!(!wanted(&[("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "3")]));
        assert!(!wanted(&[("connection", "upgrade")]));
        assert!(!wanted(&[("upgrade", "websocket"), ("connection", "upgrades")]));
    }
}
