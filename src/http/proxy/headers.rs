//! Which headers cross the proxy, and which end here (PROTOCOL.md 7; RFC 9110, 7.6.1).

use hyper::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::{request, response};

use super::Peer;
use super::access::REQUEST_ID;
use crate::http::auth::{Carrier, DAYTONA_AUTHORIZATION, Token};

/// Headers that belong to one connection and end here. `Trailer` and `TE: trailers` pass, because
/// trailers do; the transfer coding is that of the message, which is chunked again on the other side.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const DAYTONA: HeaderName = HeaderName::from_static(DAYTONA_AUTHORIZATION);
/// [`crate::net::GUEST`] and [`crate::toolbox::PORT`]; a test compares them.
pub(super) const GUEST: HeaderValue = HeaderValue::from_static("192.168.0.2:2280");

fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|word| word.trim().to_ascii_lowercase()).collect()
}

/// The protocol that the client wants to speak instead on this connection. HTTP/2 in the clear is not
/// offered, and an upgrade that comes with a body is passed as an ordinary request.
pub(super) fn wants_upgrade(head: &request::Parts) -> Option<HeaderValue> {
    let offered = words(&head.headers, &UPGRADE);
    // One protocol is passed on; of several only the WebSocket, since what else is offered is not known here.
    let protocol = match &offered[..] {
        [_] => head.headers.get(UPGRADE)?.clone(),
        several if several.iter().any(|word| word == "websocket") => HeaderValue::from_static("websocket"),
        _ => return None,
    };
    let body = head.headers.contains_key(TRANSFER_ENCODING)
        || head.headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    let wanted = !body
        && head.version == hyper::Version::HTTP_11
        && !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2")
        && words(&head.headers, &CONNECTION).iter().any(|word| word == "upgrade");
    wanted.then_some(protocol)
}

/// Whether the client waits for a 100 before it sends its body.
pub(super) fn expects_continue(head: &request::Parts) -> bool {
    head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        for word in words(headers, &CONNECTION) {
            // What tells where a message goes and where it ends is nobody's to take away.
            if !matches!(word.as_str(), "transfer-encoding" | "content-length" | "trailer" | "te" | "host") {
                headers.remove(word.as_str());
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Turns the client's head into the guest's.
pub(super) fn to_guest(
    head: &mut request::Parts,
    token: &Token,
    carrier: Carrier,
    peer: &Peer,
    upgrade: Option<&HeaderValue>,
    id: &HeaderValue,
) {
    let authority = head.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let headers = &mut head.headers;
    let trailers = headers.contains_key(TE) && words(headers, &TE).iter().any(|word| word == "trailers");
    let earlier: Vec<HeaderValue> = match headers.entry(FORWARDED_FOR) {
        Entry::Occupied(entry) => entry.remove_entry_mult().1.collect(),
        Entry::Vacant(_) => Vec::new(),
    };
    remove_hop_by_hop(headers);
    if headers.contains_key(TRANSFER_ENCODING) {
        // As this side writes it, however the client has.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.remove(DAYTONA);
    let ours = |value: &HeaderValue| token.is_in(value.as_bytes());
    if carrier == Carrier::Standard || headers.get_all(AUTHORIZATION).iter().any(ours) {
        headers.remove(AUTHORIZATION);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    let asked = headers.insert(HOST, GUEST);
    headers.insert(FORWARDED_FOR, through(&earlier, &peer.text));
    if let (false, Some(host)) = (headers.contains_key(FORWARDED_HOST), authority.or(asked)) {
        headers.insert(FORWARDED_HOST, host);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if peer.tls { "https" } else { "http" }));
    }
    headers.insert(REQUEST_ID, id.clone());
}

/// The addresses that a request has come through.
fn through(earlier: &[HeaderValue], last: &HeaderValue) -> HeaderValue {
    if earlier.is_empty() {
        return last.clone();
    }
    let all: Vec<&[u8]> = earlier.iter().map(HeaderValue::as_bytes).chain([last.as_bytes()]).collect();
    // Valid values with a comma between them are one.
    HeaderValue::from_bytes(&all.join(&b", "[..])).unwrap_or_else(|_| last.clone())
}

/// Turns the guest's head into the client's.
pub(super) fn to_client(head: &mut response::Parts) {
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // Where both stand, the coding tells the length (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    head.version = hyper::Version::HTTP_11;
}

/// The same for an answer that switches to another protocol.
pub(super) fn switched(head: &mut response::Parts, wanted: &HeaderValue) {
    let protocol = head.headers.get(UPGRADE).cloned();
    to_client(head);
    head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(UPGRADE, protocol.unwrap_or_else(|| wanted.clone()));
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(pairs: &[(&'static str, &'static str)]) -> request::Parts {
        let mut request = Request::builder().uri("/x");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn passed(pairs: &[(&'static str, &'static str)], carrier: Carrier) -> Vec<(String, String)> {
        let mut head = head(pairs);
        let peer = Peer::new("[::ffff:192.0.2.9]:1".parse().unwrap(), false);
        to_guest(&mut head, &Token::new("secret"), carrier, &peer, None, &HeaderValue::from_static("r"));
        let mut passed: Vec<(String, String)> = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .filter(|(name, _)| !matches!(name.as_str(), "x-request-id" | "x-forwarded-proto"))
            .collect();
        passed.sort_unstable();
        passed
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_hosts_name_of_a_guest() {
        assert_eq!(GUEST, format!("{}:{}", crate::net::GUEST, crate::toolbox::PORT));
    }

    #[test]
    fn what_the_guest_is_told() {
        let sent = [
            ("host", "runner.example:3006"),
            ("connection", "close, x-private, host"),
            ("x-private", "1"),
            ("x-public", "1"),
            ("te", "gzip, Trailers"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
        ];
        let expected = [
            ("host", "192.168.0.2:2280"),
            ("te", "trailers"),
            ("x-forwarded-for", "192.0.2.1, 192.0.2.2, 192.0.2.9"),
            ("x-forwarded-host", "runner.example:3006"),
            ("x-public", "1"),
        ];
        assert_eq!(passed(&sent, Carrier::Daytona), pairs(&expected));
    }

    #[test]
    fn our_token_stays_here() {
        let user = ("authorization", "Basic dTpw");
        let ours = ("authorization", "Bearer secret");
        let odd = ("authorization", "bearer,secret");
        let has = |sent: &[(&'static str, &'static str)], carrier| {
            passed(sent, carrier).into_iter().any(|(name, _)| name == "authorization")
        };
        assert!(has(&[user, (DAYTONA_AUTHORIZATION, "Bearer secret")], Carrier::Daytona));
        assert!(!has(&[ours, (DAYTONA_AUTHORIZATION, "Bearer secret")], Carrier::Daytona));
        let parameter = ("authorization", "Bearer token=\"secret\"");
        assert!(!has(&[parameter, (DAYTONA_AUTHORIZATION, "Bearer secret")], Carrier::Daytona));
        assert!(!has(&[odd, (DAYTONA_AUTHORIZATION, "Bearer secret")], Carrier::Daytona));
        assert!(!has(&[user, ours, (DAYTONA_AUTHORIZATION, "Bearer secret")], Carrier::Daytona));
        assert!(!has(&[ours], Carrier::Standard));
        let passed = passed(&[(DAYTONA_AUTHORIZATION, "Bearer secret"), ("connection", "x")], Carrier::Daytona);
        assert!(passed.iter().all(|(name, _)| name != DAYTONA_AUTHORIZATION), "{passed:?}");
    }

    #[test]
    fn what_belongs_to_the_guests_connection_does_not_reach_the_client() {
        let answer = [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "5"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("location", "/next"),
            ("trailer", "x-sum"),
        ];
        let mut response = hyper::Response::builder();
        for (name, value) in answer {
            response = response.header(name, value);
        }
        let mut head = response.body(()).unwrap().into_parts().0;
        to_client(&mut head);
        let mut passed: Vec<(&str, &[u8])> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        passed.sort_unstable();
        let expected: [(&str, &[u8]); 4] =
            [("location", b"/next"), ("set-cookie", b"a=1"), ("set-cookie", b"b=2"), ("trailer", b"x-sum")];
        assert_eq!(passed, expected);
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let wanted = |pairs: &[(&'static str, &'static str)]| wants_upgrade(&head(pairs)).is_some();
        assert!(wanted(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]));
        assert!(wanted(&[("upgrade", "websocket"), ("connection", "keep-alive"), ("connection", "upgrade")]));
        assert!(wanted(&[("upgrade", "tcp"), ("connection", "upgrade"), ("content-length", "0")]));
        assert!(!wanted(&[("upgrade", "websocket")]));
        assert!(!wanted(&[("upgrade", "h2c"), ("connection", "upgrade")]));
        assert!(!wanted(&[("upgrade", "websocket"), ("connection", "upgrade"), ("content-length", "3")]));
        assert!(!wanted(&[("upgrade", "websocket"), ("connection", "upgrade"), ("transfer-encoding", "chunked")]));
        assert!(!wanted(&[("connection", "upgrade")]));
        assert!(!wanted(&[("upgrade", "websocket"), ("connection", "upgrades")]));
    }
}
