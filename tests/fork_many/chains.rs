//! Copies of copies, and what follows a copy at once.

use crate::common::Host;
use crate::common::copies::{beats, consistent, describe, destroy, forked, host, only, parent};
use crate::common::leftovers;

const DEPTH: usize = 8;

fn name(depth: usize) -> String {
    if depth == 0 { "parent".to_owned() } else { format!("depth-{depth}") }
}

/// Each generation is a copy of the one before, which writes what the later ones must see and the earlier must not.
fn generations(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    let (mut counter, boot) = beats(&host, "parent");
    for depth in 1..=DEPTH {
        let (old, new) = (name(depth - 1), name(depth));
        host.in_guest(&old, &format!("echo mark > /tmp/of-{old}; write-block {} {old}", 100 + depth));
        forked(&host, &old, &new);
        let now = beats(&host, &new);
        assert!(now.1 == boot && now.0 >= counter, "{new}: {now:?} after {counter}");
        counter = now.0;
        consistent(&host, &new);
        consistent(&host, &old);
    }
    let last = name(DEPTH);
    for depth in 1..=DEPTH {
        let writer = name(depth - 1);
        assert_eq!(host.in_guest(&last, &format!("cat /tmp/of-{writer}")), "mark");
        assert!(host.in_guest(&last, &format!("read-block {}", 100 + depth)).contains(&writer));
    }
    assert!(!host.in_guest("parent", &format!("read-block {}", 100 + DEPTH)).contains(&name(DEPTH - 1)));
    let layers = describe(&host, &last)["diskLayers"].as_u64().unwrap();
    println!("{strategy}: the disk of generation {DEPTH} stands on {layers} layers");
    // From the oldest to the youngest: nobody needs those before.
    for depth in 0..DEPTH {
        destroy(&host, &name(depth));
        consistent(&host, &last);
    }
    only(&host, &[&last], &[]);
    destroy(&host, &last);
    leftovers::none(&host);
    crate::common::eventually("the layers are gone", || (leftovers::layers(&host) == 0).then_some(()));
}

/// One source is copied again and again: its own disk gets one more layer each time.
fn again_and_again(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    let copies: Vec<String> = (0..DEPTH + 2).map(|number| format!("copy-{number}")).collect();
    for copy in &copies {
        forked(&host, "parent", copy);
    }
    for copy in &copies {
        consistent(&host, copy);
        destroy(&host, copy);
    }
    consistent(&host, "parent");
    only(&host, &["parent"], &[]);
}

fn stop_and_start(host: &Host, id: &str) {
    let before = beats(host, id);
    host.in_guest(id, "echo at-the-end > /tmp/end; write-block 5 at-the-end");
    let stopped = host.http().post(&format!("/sandboxes/{id}/stop"), r#"{"mode":"checkpoint"}"#);
    assert_eq!(stopped.status, 200, "{}\n{}", stopped.body, host.log());
    let view = describe(host, id);
    assert!(view["state"] == "stopped" && view["checkpoint"] == true, "{view}");
    let started = host.http().post(&format!("/sandboxes/{id}/start"), "");
    assert_eq!(started.status, 200, "{}\n{}", started.body, host.log());
    let view = describe(host, id);
    assert_eq!(view["begin"]["from"], "memory", "{view}");
    let after = beats(host, id);
    assert!(after.1 == before.1 && after.0 >= before.0, "{id}: {before:?} {after:?}");
    assert_eq!(host.in_guest(id, "cat /tmp/mark /tmp/end"), "from-parent\nat-the-end");
    assert!(host.in_guest(id, "read-block 5").contains("at-the-end"));
    consistent(host, id);
}

/// A stop with a checkpoint, a copy of the stopped one, and a start, each right after what was before.
fn stopped_after_a_copy(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    host.in_guest("parent", "touch-ram 16");
    for round in 0..3 {
        forked(&host, "parent", "child");
        stop_and_start(&host, "parent");
        stop_and_start(&host, "child");
        forked(&host, "child", "grandchild");
        stop_and_start(&host, "grandchild");
        consistent(&host, "child");
        let stopped = host.http().post("/sandboxes/child/stop", r#"{"mode":"checkpoint"}"#);
        assert_eq!(stopped.status, 200, "round {round}: {}", stopped.body);
        let boot = beats(&host, "grandchild").1;
        forked(&host, "child", "of-stopped");
        assert_eq!(beats(&host, "of-stopped").1, boot, "round {round}: the copy has the checkpoint's memory");
        consistent(&host, "of-stopped");
        assert_eq!(host.http().post("/sandboxes/child/start", "").status, 200);
        assert_eq!(beats(&host, "child").1, boot, "round {round}: the checkpoint is still good");
        consistent(&host, "child");
        for id in ["child", "grandchild", "of-stopped"] {
            destroy(&host, id);
        }
        only(&host, &["parent"], &[]);
    }
}

#[test]
fn copies_of_copies_on_reflink() {
    generations("reflink");
}

#[test]
fn copies_of_copies_on_overlays() {
    generations("overlay");
}

#[test]
fn one_copy_after_the_other_on_reflink() {
    again_and_again("reflink");
}

#[test]
fn one_copy_after_the_other_on_overlays() {
    again_and_again("overlay");
}

#[test]
fn a_stop_right_after_a_copy_on_reflink() {
    stopped_after_a_copy("reflink");
}

#[test]
fn a_stop_right_after_a_copy_on_overlays() {
    stopped_after_a_copy("overlay");
}
