//! The test's own servers really are what the runner reaches.

use std::io::{Read, Write};

use super::common::backend::{Backend, TOOLBOX};
use super::common::{Host, eventually, leftovers};

#[test]
fn servers_and_programs_stand_in_for_a_guest() {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| {
        let mut piece = [0; 4096];
        let length = conn.read(&mut piece).unwrap();
        assert!(length > 0);
        conn.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        conn.read_to_its_end();
    });
    let answer = host.http().get("/sandboxes/box/toolbox/anything?x=1");
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    let seen = String::from_utf8(backend.seen()[0].bytes.clone()).unwrap();
    assert!(seen.starts_with("GET /anything?x=1 HTTP/1.1\r\n"), "{seen}");
    assert_eq!(backend.accepted(), 1);
    let stand_in = backend.stand_in.clone();
    drop(backend);
    eventually("nobody listens", || stand_in.connect(TOOLBOX).is_none().then_some(()));

    let mut program = stand_in.spawn("python3", &["-m", "http.server", "2280"], &[]);
    program.listens(TOOLBOX);
    let answer = host.http().get("/sandboxes/box/toolbox/");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("server").unwrap().contains("Python"), "{answer:?}");

    // What stands in does not keep the sandbox's network alive.
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    drop(program);
}
