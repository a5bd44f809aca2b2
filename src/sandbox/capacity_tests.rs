use proptest::prelude::*;

use super::*;
use crate::sandbox::StopMode;

const GIB: u64 = 1 << 30;
const HOST: Host = Host { cpus: 2, memory: 8 * GIB, available: 6 * GIB, slots: 10 };
const LIMITS: Limits = Limits { memory_percent: 500, vcpus_per_cpu: 16, min_free_memory: GIB };

fn size(vcpus: u32, memory: u64) -> Size {
    Size { vcpus, memory, disk: GIB }
}

fn view(state: WireState, size: Size) -> View {
    let id = "box".parse().unwrap();
    View { state, size, ..View::unreadable(id, String::new()) }
}

#[track_caller]
fn refused(asked: Size, promised: Promised, host: Host, limits: Limits, words: &[&str]) {
    let failure = room(asked, promised, host, limits).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Busy);
    for word in words {
        assert!(failure.message.contains(word), "{word:?} is not in {failure}");
    }
}

#[test]
fn what_fits_to_the_last_byte_is_admitted_and_no_more() {
    let promised = Promised { memory: 39 * GIB, sandboxes: 39, ..Promised::default() };
    assert_eq!(room(size(1, GIB), promised, HOST, LIMITS), Ok(()));
    let words = ["1025 MiB asked for", "39936 MiB are promised to 39", "8192 MiB", "500 %", "RUNNER_MEMORY_OVERCOMMIT"];
    refused(size(1, GIB + (1 << 20)), promised, HOST, LIMITS, &words);
    let promised = Promised { vcpus: 30, sandboxes: 15, ..Promised::default() };
    assert_eq!(room(size(2, GIB), promised, HOST, LIMITS), Ok(()));
    let words = ["3 vCPUs asked for", "30 are promised to 15", "2 CPUs", "(32)", "RUNNER_CPU_OVERCOMMIT"];
    refused(size(3, GIB), promised, HOST, LIMITS, &words);
}

#[test]
fn slots_that_are_promised_are_taken() {
    let promised = Promised { slots: 10, ..Promised::default() };
    refused(size(1, GIB), promised, HOST, Limits::NONE, &["10 network slots", "RUNNER_NETWORK_POOL"]);
}

#[test]
fn free_memory_counts_those_that_are_being_started() {
    let host = Host { available: GIB + 3 * START_TOUCHES, ..HOST };
    let promised = |starting| Promised { starting, sandboxes: starting, ..Promised::default() };
    assert_eq!(room(size(1, GIB), promised(2), host, LIMITS), Ok(()));
    let words = ["1216 MiB of 8192 MiB are available", "3 sandboxes are being started", "RUNNER_MIN_FREE_MEMORY_MB"];
    refused(size(1, GIB), promised(3), host, LIMITS, &words);
}

#[test]
fn only_what_gets_a_vm_that_it_has_not_needs_room() {
    let (made, present) = (size(1, GIB), size(2, 2 * GIB));
    assert_eq!(needs(Ask::Create(Make::Boot), None, Some(made)), Some(made));
    assert_eq!(needs(Ask::Create(Make::Idle), None, Some(made)), None);
    for state in [WireState::Started, WireState::Paused, WireState::Starting, WireState::Creating] {
        for ask in [Ask::Start, Ask::Boot, Ask::Create(Make::Boot)] {
            assert_eq!(needs(ask, Some(&view(state, present)), Some(made)), None, "{ask:?} {state:?}");
        }
    }
    for state in [WireState::Stopped, WireState::Stopping, WireState::Error] {
        assert_eq!(needs(Ask::Start, Some(&view(state, present)), None), Some(present), "{state:?}");
    }
    assert_eq!(needs(Ask::Create(Make::Boot), Some(&view(WireState::Destroying, present)), Some(made)), Some(made));
    let tears = [Ask::Stop(StopMode::Checkpoint), Ask::Pause, Ask::Destroy, Ask::Capture, Ask::Resize];
    for ask in tears {
        assert_eq!(needs(ask, Some(&view(WireState::Stopped, present)), Some(made)), None, "{ask:?}");
    }
}

#[test]
fn a_full_volume_keeps_nobody_from_being_ended_or_from_running_on() {
    for ask in [Ask::Stop(StopMode::Usual), Ask::Destroy, Ask::Pause] {
        assert!(!writes(ask, None), "{ask:?}");
    }
    let any = size(1, GIB);
    assert!(!writes(Ask::Start, Some(&view(WireState::Paused, any))));
    assert!(writes(Ask::Start, Some(&view(WireState::Stopped, any))));
    assert!(writes(Ask::Create(Make::Idle), None) && writes(Ask::Capture, Some(&view(WireState::Started, any))));
}

proptest! {
    /// However many ask, what is promised never passes the limits.
    #[test]
    fn promises_stay_within_the_limits(
        asked in prop::collection::vec((1u32..64, 0u64..100 * GIB), 0..200),
        memory_percent in 1u64..1000, vcpus_per_cpu in 1u64..32,
    ) {
        let limits = Limits { memory_percent, vcpus_per_cpu, min_free_memory: 0 };
        let mut promised = Promised::default();
        for (vcpus, memory) in asked {
            let asked = size(vcpus, memory);
            if room(asked, promised, HOST, limits).is_ok() {
                promised.add(asked, true, true);
            }
        }
        prop_assert!(promised.memory <= HOST.memory * memory_percent / 100);
        prop_assert!(promised.vcpus <= 2 * vcpus_per_cpu);
        prop_assert!(promised.slots <= 10);
    }

    #[test]
    fn zero_limits_nothing(vcpus in 1u32..10_000, memory in any::<u64>(), available in any::<u64>()) {
        let host = Host { available, ..HOST };
        let promised = Promised { memory: u64::MAX, vcpus: 1 << 40, sandboxes: 9, starting: 1 << 40, slots: 9 };
        prop_assert_eq!(room(size(vcpus, memory), promised, host, Limits::NONE), Ok(()));
    }
}
