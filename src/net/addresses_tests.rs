//! Tests of networks, slots and plans.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

#[test]
fn networks_are_parsed_and_written() {
    for text in ["10.220.0.0/16", "0.0.0.0/0", "255.255.255.255/32", "192.168.0.0/24"] {
        assert_eq!(net(text).to_string(), text);
    }
    assert_eq!(serde_json::to_string(&net("10.0.0.0/8")).unwrap(), "\"10.0.0.0/8\"");
    assert_eq!(serde_json::from_str::<Ipv4Net>("\"10.0.0.0/8\"").unwrap(), net("10.0.0.0/8"));
    assert!(serde_json::from_str::<Ipv4Net>("\"10.0.0.0\"").is_err());
}

#[test]
fn refusals_say_what_was_expected() {
    for (text, words) in [
        ("", "such as 10.220.0.0/16"),
        ("10.0.0.0", "such as 10.220.0.0/16"),
        ("10.0.0/8", "four numbers"),
        ("10.0.0.256/8", "four numbers"),
        ("::/0", "four numbers"),
        ("10.0.0.0/", "number of 0 to 32"),
        ("10.0.0.0/33", "number of 0 to 32"),
        ("10.0.0.0/+8", "number of 0 to 32"),
        ("10.0.0.0/-1", "number of 0 to 32"),
        ("10.0.0.0/256", "number of 0 to 32"),
        ("10.220.0.1/16", "10.220.0.0/16"),
    ] {
        let error = text.parse::<Ipv4Net>().unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&format!("{text:?}")), "{text:?}: {error}");
    }
}

#[test]
fn a_pool_needs_a_slash_29() {
    assert_eq!(SlotPool::new(net("10.0.0.0/29")).unwrap().capacity(), 5);
    for small in ["10.0.0.0/30", "10.0.0.0/32", "0.0.0.0/0"] {
        let error = SlotPool::new(net(small)).unwrap_err().to_string();
        assert!(error.contains(small) && error.contains("RUNNER_NETWORK_POOL"), "{error}");
    }
    assert!(SlotPool::new(net("10.220.0.0/16")).unwrap().capacity() > 4_000);
}

#[test]
fn slots_map_to_all_addresses_but_three() {
    let mut pool = SlotPool::new(net("10.9.8.0/29")).unwrap();
    let sandbox: SandboxId = "box".parse().unwrap();
    let mut addresses = Vec::new();
    while let Some(slot) = pool.take() {
        let plan = pool.plan(&sandbox, slot);
        assert_eq!(plan.gateway.to_string(), "10.9.8.1");
        addresses.push(plan.address.to_string());
    }
    assert_eq!(addresses, ["10.9.8.2", "10.9.8.3", "10.9.8.4", "10.9.8.5", "10.9.8.6"]);
    assert_eq!(pool.in_use(), pool.capacity());
}

#[test]
fn a_plan_names_everything() {
    let pool = SlotPool::new(net("10.220.0.0/16")).unwrap();
    let plan = pool.plan(&"box-1".parse().unwrap(), Slot(300));
    assert_eq!(plan.netns.as_str(), "ns-box-1");
    assert_eq!(plan.host_link.as_str(), "chv300");
    assert_eq!(plan.address.to_string(), "10.220.1.45");
    // printf box-1 | sha256sum
    let hash = Sha256::digest(b"box-1");
    assert_eq!(plan.guest_mac[0], 2);
    assert_eq!(plan.guest_mac[1..], hash[..5]);
}

#[test]
fn a_slot_is_not_used_again_at_once() {
    let mut pool = SlotPool::new(net("10.0.0.0/29")).unwrap();
    let all: Vec<Slot> = std::iter::from_fn(|| pool.take()).collect();
    for slot in [all[3], all[0], all[2]] {
        pool.release(slot);
    }
    assert_eq!(pool.take(), Some(all[3]));
    pool.release(all[3]);
    assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(all[0]), Some(all[2]), Some(all[3]), None]);
}

#[test]
fn claims_come_from_records() {
    let mut pool = SlotPool::new(net("10.0.0.0/29")).unwrap();
    assert!(pool.claim(Slot(2)));
    assert!(!pool.claim(Slot(2)), "twice");
    assert!(!pool.claim(Slot(0)), "the gateway");
    assert!(!pool.claim(Slot(6)), "the broadcast address");
    assert_eq!(pool.take(), Some(Slot(1)));
    assert_eq!(pool.take(), Some(Slot(3)));
    pool.release(Slot(2));
    assert!(pool.claim(Slot(2)));
    assert_eq!([pool.take(), pool.take(), pool.take()], [Some(Slot(4)), Some(Slot(5)), None]);
}

#[derive(Debug, Clone)]
enum Step {
    Take,
    Claim(u32),
    Release(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![Just(Step::Take), (0u32..20).prop_map(Step::Claim), (0u32..20).prop_map(Step::Release)];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "[0-9./+ a-]{0,24}") {
        if let Ok(net) = text.parse::<Ipv4Net>() {
            prop_assert_eq!(net.to_string().parse::<Ipv4Net>().unwrap(), net);
        }
    }

    #[test]
    fn containment_and_overlap_agree(a: u32, b: u32, m in 0u8..=32, n in 0u8..=32) {
        let (x, y) = (Ipv4Net::around(Ipv4Addr::from_bits(a), m), Ipv4Net::around(Ipv4Addr::from_bits(b), n));
        prop_assert!(x.contains(Ipv4Addr::from_bits(a)));
        prop_assert_eq!(x.overlaps(&y), y.overlaps(&x));
        prop_assert!(x.overlaps(&x));
        // Two networks overlap exactly if the wider one contains the narrower one's base.
        let (wide, narrow) = if m < n { (x, y) } else { (y, x) };
        prop_assert_eq!(x.overlaps(&y), wide.contains(narrow.base()));
        prop_assert_eq!(x.to_string().parse::<Ipv4Net>().unwrap(), x);
    }

    #[test]
    fn no_slot_is_given_twice_and_none_is_lost(steps in steps()) {
        let mut pool = SlotPool::new("10.0.0.0/28".parse().unwrap()).unwrap();
        let mut model = HashSet::new();
        for step in steps {
            match step {
                Step::Take => match pool.take() {
                    Some(slot) => {
                        prop_assert!(slot.0 >= 1 && slot.0 <= pool.capacity());
                        prop_assert!(model.insert(slot), "{} given twice", slot);
                    }
                    None => prop_assert_eq!(model.len() as u32, pool.capacity()),
                },
                Step::Claim(n) => {
                    let ok = (1..=pool.capacity()).contains(&n) && !model.contains(&Slot(n));
                    prop_assert_eq!(pool.claim(Slot(n)), ok);
                    if ok { model.insert(Slot(n)); }
                }
                Step::Release(n) => { pool.release(Slot(n)); model.remove(&Slot(n)); }
            }
            prop_assert_eq!(pool.in_use() as usize, model.len());
        }
        let rest = std::iter::from_fn(|| pool.take()).count() as u32;
        prop_assert_eq!(rest + model.len() as u32, pool.capacity());
    }

    #[test]
    fn plans_of_different_slots_differ(a in 1u32..65_000, b in 1u32..65_000) {
        let pool = SlotPool::new("10.220.0.0/16".parse().unwrap()).unwrap();
        let id: SandboxId = "box".parse().unwrap();
        let (x, y) = (pool.plan(&id, Slot(a)), pool.plan(&id, Slot(b)));
        prop_assert_eq!(a == b, x.address == y.address);
        prop_assert_eq!(a == b, x.host_link == y.host_link);
        prop_assert!(pool.net().contains(x.address) && x.address != x.gateway);
    }
}
