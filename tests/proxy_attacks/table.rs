//! A table of attacks, each run against one host, and judged by what client and guest saw.

use super::common::Host;
use super::common::origin::Origin;
use super::common::wire::{End, Reply, Wire, key};

/// What every smuggled request asks for; the guest must never see it.
pub const SMUGGLED: &str = "/sandboxes/box/toolbox/smuggled";

/// What is right.
#[derive(Debug, Clone)]
pub enum Want {
    /// One of these statuses, then the connection ends; the guest sees no complete request. 0 stands
    /// for an end without an answer.
    Refused(&'static [u16]),
    /// The runner itself answers with one of these; the connection may go on.
    Denied(&'static [u16]),
    /// The client ends its side behind these bytes: the guest sees no complete request.
    Nothing,
    /// The guest sees exactly this body in exactly one request, and the connection goes on if it says so.
    Passed(Vec<u8>),
    /// Refused or passed with this body: the RFC leaves it open.
    Either(&'static [u16], Vec<u8>),
    /// As [`Want::Either`], and the connection must end in both cases.
    EitherEnds(&'static [u16], Vec<u8>),
}

/// One attack. `{PATH}` in its bytes becomes a path of the guest of its own.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    pub want: Want,
}

pub fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, want: Want) -> Case {
    Case { name: name.into(), bytes: bytes.into(), want }
}

/// A request with the key: these whole header lines, this body.
pub fn post(headers: &str, body: &str) -> String {
    format!("POST {{PATH}} HTTP/1.1\r\nHost: runner\r\n{}{headers}\r\n{body}", key())
}

pub fn get(headers: &str) -> String {
    format!("GET {{PATH}} HTTP/1.1\r\nHost: runner\r\n{}{headers}\r\n", key())
}

/// A whole request that must not come to life.
pub fn smuggled() -> String {
    format!("GET {SMUGGLED} HTTP/1.1\r\nHost: runner\r\n{}\r\n", key())
}

/// Runs all, and tells of all that went wrong at the end.
#[track_caller]
pub fn run(host: &Host, origin: &Origin, cases: Vec<Case>) {
    let (mut wrong, mut complete) = (Vec::new(), 0);
    let mut seen = Vec::new();
    for (number, case) in cases.into_iter().enumerate() {
        let inside = format!("/case-{number}");
        let bytes = replace(&case.bytes, b"{PATH}", format!("/sandboxes/box/toolbox{inside}").as_bytes());
        let outcome = attack(host, &bytes, &inside, matches!(case.want, Want::Nothing));
        // What is under way to the guest has arrived when this has.
        let probe = host.http().get("/sandboxes/box/toolbox/probe");
        let record = origin.take();
        let requests: Vec<_> = record.requests.iter().filter(|request| request.target != "/probe").collect();
        complete += requests.len();
        let first = requests.first().map(|request| request.body.clone());
        let told = format!(
            "{}: {outcome:?}; guest: {} complete, {} broken off",
            case.name,
            requests.len(),
            record.broken_off.len()
        );
        println!("{told}");
        let mut fault = |why: String| wrong.push(format!("{told}\n    {why}\n    sent {}", shown(&bytes)));
        if let Err(why) = judge(&case.want, &outcome, first.as_deref(), requests.len()) {
            fault(why);
        }
        if probe.status != 200 {
            fault(format!("the next client got {} {}", probe.status, probe.body));
        }
        for text in &record.malformed {
            fault(format!("the guest got what is no request: {text}"));
        }
        seen.extend(record.requests);
    }
    let late = origin.take();
    seen.extend(late.requests);
    for request in seen.iter().filter(|request| request.target.contains("smuggled")) {
        wrong.push(format!("smuggled: {request:?}"));
    }
    let all = seen.iter().filter(|request| request.target != "/probe").count();
    if all != complete {
        wrong.push(format!("{all} requests in all, {complete} in time"));
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the client saw.
#[derive(Debug)]
struct Outcome {
    /// 0 without an answer.
    status: u16,
    /// The answer is that of the guest for this request.
    own: bool,
    ended: bool,
    /// Something that should not be.
    odd: Option<String>,
}

fn attack(host: &Host, bytes: &[u8], inside: &str, half: bool) -> Outcome {
    let mut wire = Wire::new(host);
    wire.send(bytes);
    if half {
        wire.half_close();
    }
    let mut outcome = Outcome { status: 0, own: false, ended: false, odd: None };
    let reply = match wire.answer() {
        Ok(reply) => reply,
        Err(End::Closed | End::Reset) => return Outcome { ended: true, ..outcome },
        Err(end) => return Outcome { odd: Some(format!("{end:?}")), ..outcome },
    };
    outcome.status = reply.status;
    outcome.own = reply.text() == inside;
    if !outcome.own && reply.status < 400 {
        outcome.odd = Some(reply.text());
    }
    if ends(&reply) {
        match wire.ends() {
            End::Closed | End::Reset => outcome.ended = true,
            end => outcome.odd = Some(format!("{end:?} behind the answer")),
        }
        return outcome;
    }
    // The very next answer must be this one's.
    wire.request("GET", "/sandboxes/box/toolbox/probe", "");
    match wire.answer() {
        Ok(reply) if reply.text() == "/probe" => {}
        Err(End::Closed | End::Reset) => outcome.ended = true,
        other => outcome.odd = Some(format!("{other:?} as the answer to the next request")),
    }
    outcome
}

fn ends(reply: &Reply) -> bool {
    let options = reply.all("connection").join(",").to_ascii_lowercase();
    options.contains("close") || (reply.version == "HTTP/1.0" && !options.contains("keep-alive"))
}

fn judge(want: &Want, outcome: &Outcome, body: Option<&[u8]>, requests: usize) -> Result<(), String> {
    if let Some(odd) = &outcome.odd {
        return Err(odd.clone());
    }
    let refused = |statuses: &[u16]| match (statuses.contains(&outcome.status), outcome.ended, requests) {
        (true, true, 0) => Ok(()),
        (false, ..) => Err(format!("{} instead of one of {statuses:?}", outcome.status)),
        (_, false, _) => Err("the connection stays open".to_owned()),
        (.., count) => Err(format!("refused, and the guest got {count}")),
    };
    let passed = |wanted: &[u8]| match (outcome.status, outcome.own, requests, body) {
        (200, true, 1, Some(body)) if body == wanted => Ok(()),
        (200, true, 1, Some(body)) => Err(format!("the guest got {}, not {}", shown(body), shown(wanted))),
        (status, _, count, _) => Err(format!("{status} for the client, {count} requests for the guest")),
    };
    match want {
        Want::Refused(statuses) => refused(statuses),
        Want::Nothing if requests == 0 && outcome.status != 200 => Ok(()),
        Want::Nothing => Err(format!("{} for the client, {requests} requests for the guest", outcome.status)),
        Want::Denied(statuses) if statuses.contains(&outcome.status) && requests == 0 => Ok(()),
        Want::Denied(statuses) => {
            Err(format!("{}, not {statuses:?}; {requests} requests for the guest", outcome.status))
        }
        Want::Passed(wanted) => passed(wanted),
        Want::Either(statuses, wanted) => {
            refused(statuses).or_else(|why| passed(wanted).map_err(|other| format!("{why}; {other}")))
        }
        Want::EitherEnds(statuses, wanted) => {
            refused(statuses).or_else(|why| passed(wanted).map_err(|other| format!("{why}; {other}")))?;
            if outcome.ended { Ok(()) } else { Err("the connection stays open".to_owned()) }
        }
    }
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let Some(at) = bytes.windows(what.len()).position(|part| part == what) else { return bytes.to_vec() };
    [&bytes[..at], with, &bytes[at + what.len()..]].concat()
}

/// Bytes as text, shortened.
pub fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], bytes.len()),
        None => text,
    }
}
