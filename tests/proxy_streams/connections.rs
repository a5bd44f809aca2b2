//! Connections to the guest: few of them, and none that outlives a run.

use super::common::origin::Origin;
use super::common::wire::{Wire, key};
use super::common::{eventually, leftovers};
use super::with_box;

#[test]
fn a_thousand_requests_need_few_connections() {
    let (host, _runner) = with_box();
    let origin = Origin::plain(&host, "box");
    let mut wire = Wire::new(&host);
    for number in 0..1000 {
        let path = format!("/{number}");
        match number % 3 {
            0 => drop(
                wire.request("POST", &format!("/sandboxes/box/toolbox{path}"), "Content-Length: 4\r\n")
                    && wire.send("body"),
            ),
            _ => drop(wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), "")),
        }
        assert_eq!(wire.answer().unwrap().text(), path);
    }
    let accepted = origin.backend.accepted();
    assert!(accepted <= 3, "{accepted} connections to the guest");
    // Many clients, one after another, share what there is.
    for number in 0..50 {
        assert_eq!(host.http().get(&format!("/sandboxes/box/toolbox/{number}")).status, 200);
    }
    let more = origin.backend.accepted() - accepted;
    assert!(more <= 16, "{more} more connections for 50 clients");
    assert_eq!(origin.take().requests.len(), 1050);
}

#[test]
fn a_new_run_never_gets_an_old_connection() {
    let (host, _runner) = with_box();
    let mut wire = Wire::new(&host);
    for run in 0..4 {
        let origin = Origin::plain(&host, "box");
        for number in 0..20 {
            let path = format!("/{run}-{number}");
            wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), "");
            let reply = wire.answer().unwrap_or_else(|end| panic!("{path}: {end:?}"));
            assert_eq!((reply.status, reply.text()), (200, path));
        }
        // This run's server has seen this run's requests, on connections that it has accepted itself.
        let record = origin.take();
        assert_eq!((record.requests.len(), record.malformed.len(), record.broken_off.len()), (20, 0, 0), "{record:?}");
        host.completed(&host.api.stop_sandbox("box", None).unwrap());
        wire.request("GET", "/sandboxes/box/toolbox/stopped", "");
        assert_eq!(wire.answer().unwrap().status, 400);
        assert!(origin.take().requests.is_empty());
        host.completed(&host.api.start_sandbox("box").unwrap());
    }
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn two_sandboxes_never_share_a_connection() {
    let (host, _runner) = with_box();
    host.completed(&host.api.create_sandbox(&host.spec("other")).unwrap());
    let (one, two) = (Origin::plain(&host, "box"), Origin::plain(&host, "other"));
    // On the same connections of the clients, in turn and in one packet.
    let mut wire = Wire::new(&host);
    for round in 0..20 {
        let get = |id: &str| format!("GET /sandboxes/{id}/toolbox/{id}-{round} HTTP/1.1\r\nHost: r\r\n{}\r\n", key());
        wire.send([get("box"), get("other"), get("other"), get("box")].concat());
        for id in ["box", "other", "other", "box"] {
            assert_eq!(wire.answer().unwrap().text(), format!("/{id}-{round}"));
        }
    }
    for (origin, id) in [(&one, "box"), (&two, "other")] {
        let record = origin.take();
        assert_eq!(record.requests.len(), 40);
        assert!(record.requests.iter().all(|request| request.target.starts_with(&format!("/{id}-"))), "{record:?}");
    }
    // What one sandbox's end does to its own connections, it does not do to the other's.
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    wire.request("GET", "/sandboxes/other/toolbox/after", "");
    assert_eq!(wire.answer().unwrap().text(), "/after");
    eventually("the connections into the other one stay", || {
        (two.backend.open() > 0 || two.backend.accepted() > 0).then_some(())
    });
}
