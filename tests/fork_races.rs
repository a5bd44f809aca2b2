//! Copies of a sandbox while something else happens to it or to the copy. Whoever comes first: everybody gets an
//! answer, every sandbox answers or rests with a reason, and nothing is left of what was not made.

mod common;
#[path = "fork_races/ids.rs"]
mod ids;
#[path = "fork_races/race.rs"]
mod race;

use common::http::Answer;
use common::{Http, TOKEN};
use race::{Others, races};

fn http() -> Http {
    Http::new(3006, TOKEN)
}

fn post(path: &str, body: &str) -> Option<Answer> {
    Some(http().post(path, body))
}

macro_rules! race {
    ($($name:ident: $others:expr, $action:expr;)*) => { $(
        mod $name {
            use super::*;

            #[test]
            fn on_reflink() {
                races("reflink", $others, $action);
            }

            #[test]
            fn on_overlays() {
                races("overlay", $others, $action);
            }
        }
    )* };
}

race! {
    two_forks_at_once: Others::Live, |_| post("/sandboxes/parent/fork", r#"{"newSandboxId":"other"}"#);
    a_clone_and_a_batch: Others::Live, |_| post("/sandboxes/parent/clone", r#"{"newSandboxIds":["other","third"]}"#);
    a_stop_that_keeps_memory: Others::Live, |_| post("/sandboxes/parent/stop", r#"{"mode":"checkpoint"}"#);
    a_stop_by_force: Others::Live, |_| post("/sandboxes/parent/stop", r#"{"force":true}"#);
    a_destroy: Others::Live, |_| Some(http().delete("/sandboxes/parent"));
    a_pause: Others::Live, |_| post("/sandboxes/parent/pause", "");
    a_start: Others::Live, |_| post("/sandboxes/parent/start", "");
    a_snapshot_with_memory: Others::Slow, |round| post("/snapshots/create", &format!(r#"{{"sandboxId":"parent","name":"warm-{round}","live":true}}"#));
    a_snapshot_of_the_disk: Others::Slow, |round| post("/snapshots/create", &format!(r#"{{"sandboxId":"parent","name":"cold-{round}","live":false}}"#));
    a_destroy_of_the_copy: Others::Live, |_| Some(http().delete("/sandboxes/child"));
    a_stop_of_the_copy: Others::Live, |_| post("/sandboxes/child/stop", r#"{"mode":"checkpoint"}"#);
    the_same_copy_twice: Others::Live, |_| post("/sandboxes/parent/fork", r#"{"newSandboxId":"child"}"#);
    the_end_of_the_sources_vmm: Others::Killed, |_| None;
}
