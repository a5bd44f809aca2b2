//! A copy under an id that is somebody else's.

use crate::common::copies::{beats, destroy, fork, host, only, parent};

#[test]
fn a_copy_never_takes_the_place_of_another_sandbox() {
    let host = host("reflink");
    let _runner = host.runner();
    parent(&host);
    host.completed(&host.api.create_sandbox(&host.spec("taken")).unwrap());
    let before = beats(&host, "taken");
    let answer = fork(&host, "parent", "taken");
    assert_eq!(answer.status, 409, "a sandbox that is not a copy is not told to be one: {}", answer.body);
    assert_eq!(beats(&host, "taken").1, before.1);
    assert_eq!(host.http().post("/sandboxes/taken/stop", "").status, 200);
    let answer = fork(&host, "parent", "taken");
    assert_eq!(answer.status, 409, "{}", answer.body);
    only(&host, &["parent"], &["taken"]);
    let answer = host.http().post("/sandboxes/parent/fork", r#"{"newSandboxIds":["taken","free"]}"#);
    assert_eq!(answer.status, 207, "{}", answer.body);
    only(&host, &["free", "parent"], &["taken"]);
    destroy(&host, "free");
}
