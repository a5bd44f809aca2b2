//! Every job type, with the runner killed at each crash point on its way: before and after every effect, and between
//! the steps of those that have several. After each kill a new runner must bring the host, the store and the API to
//! where the uninterrupted run brings them, and leave nothing.
//!
//! `CRASH_ROUNDS=each` takes every point between which something changes, `all` also the others, and `double` lets the
//! second runner die as well, at each point of the job and of the recovery in turn. By default it is a third of the
//! points. In two of three rounds a second kill is tried. Each test prints how many points it has met.

mod common;
#[path = "crashes/harness.rs"]
mod harness;
mod life;
#[path = "crashes/table.rs"]
mod table;

use harness::enumerate;
macro_rules! stories {
    ($($name:ident: $job:expr;)*) => {
        $(#[test]
        fn $name() {
            enumerate(stringify!($name), &$job);
        })*
    };
}

stories! {
    create_on_reflink: table::create("reflink", false);
    create_on_overlays: table::create("overlay", false);
    create_without_start: table::create("reflink", true);
    create_from_memory: table::create_warm();
    start_from_memory_on_reflink: table::start("reflink");
    start_from_memory_on_overlays: table::start("overlay");
    start_by_boot: table::start_cold();
    stop_with_memory_on_reflink: table::stop("reflink");
    stop_with_memory_on_overlays: table::stop("overlay");
    stop_by_force: table::stop_forced();
    pause: table::pause();
    resume: table::resume();
    resize_of_a_running_one: table::resize_running();
    resize_of_a_stopped_one: table::resize_stopped();
    fork_on_reflink: table::fork("reflink");
    fork_on_overlays: table::fork("overlay");
    fork_of_a_stopped_one: table::fork_stopped();
    clone: table::clone();
    snapshot_with_memory: table::snapshot(true);
    snapshot_of_the_disk: table::snapshot(false);
    removal_of_a_snapshot: table::remove_snapshot();
    destroy_of_a_running_one: table::destroy("reflink");
    destroy_on_overlays: table::destroy("overlay");
}
