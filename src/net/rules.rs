//! The packet filter rules: what a sandbox can reach, and what can reach it.
//!
//! Two tables stand one behind the other. The one inside the namespace makes sure that only the
//! guest's own address gets out, translated, and that nothing but answers gets in. The one on the
//! host keeps sandboxes away from each other, from the host and from the networks that the operator
//! names. A guest that breaks out of its virtual machine into its namespace still meets the second.
//!
//! Connections are let back in by their direction, not because they are established: otherwise a flow
//! that was begun under an older, wider rule would outlive it.

use std::net::Ipv4Addr;

use super::addresses::{HOST_LINKS, Ipv4Net};
use super::nft::{Hook, Rule, Transaction, Verdict};
use super::{Egress, GUEST, GUEST_GATEWAY, TAP};

/// Name of the table inside every namespace.
pub(super) const SANDBOX_TABLE: &str = "runner_ch";
/// The namespace's end of the veth.
pub(super) const UPLINK: &str = "eth0";

/// Networks that no sandbox may reach through the host, whatever is configured.
const NEVER: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::around(Ipv4Addr::new(0, 0, 0, 0), 8), "no address"),
    (Ipv4Net::around(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::around(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local, cloud metadata"),
    (Ipv4Net::around(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::around(Ipv4Addr::new(240, 0, 0, 0), 4), "reserved, broadcast"),
];

/// What the host's table depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRules<'a> {
    pub table: &'a str,
    pub bridge: &'a str,
    /// The runner made the bridge, so nothing but sandboxes is on it.
    pub own_bridge: bool,
    pub pool: Ipv4Net,
    pub deny: &'a [Ipv4Net],
}

/// The host's table, replacing an older one of the same name.
pub(super) fn host(rules: &HostRules<'_>) -> Transaction {
    let mut transaction = Transaction::replace(rules.table);
    forward_guard(&mut transaction, rules);
    input_guard(&mut transaction, rules);
    let chain = "nat_out";
    transaction.chain(chain, Hook::SourceNat, Verdict::Accept);
    transaction.rule(chain, &Rule::new().source(rules.pool).to_other_link(rules.bridge).masquerade());
    transaction
}

fn forward_guard(transaction: &mut Transaction, rules: &HostRules<'_>) {
    let pool = rules.pool;
    let chain = "forward_guard";
    transaction.chain(chain, Hook::Forward, Verdict::Accept);
    let mut add = |rule: Rule| transaction.rule(chain, &rule);
    for from in sandbox_links(rules) {
        add(from.clone().source_outside(pool).verdict(Verdict::Drop).comment("spoofed source"));
        add(from.ipv6().verdict(Verdict::Drop).comment("sandboxes have no IPv6"));
    }
    add(Rule::new().source(pool).destination(pool).verdict(Verdict::Drop).comment("sandbox to sandbox"));
    for (net, comment) in NEVER {
        add(Rule::new().source(pool).destination(net).verdict(Verdict::Drop).comment(comment));
    }
    for net in rules.deny {
        add(Rule::new().source(pool).destination(*net).verdict(Verdict::Drop).comment("configured"));
    }
    add(Rule::new().source(pool).tcp_syn().clamp_segment_size());
    add(Rule::new().destination(pool).tcp_syn().clamp_segment_size());
    add(Rule::new().destination(pool).reply().verdict(Verdict::Accept));
    add(Rule::new().destination(pool).verdict(Verdict::Drop).comment("nothing is begun towards a sandbox"));
}

fn input_guard(transaction: &mut Transaction, rules: &HostRules<'_>) {
    let chain = "input_guard";
    transaction.chain(chain, Hook::Input, Verdict::Accept);
    transaction.rule(chain, &Rule::new().source(rules.pool).reply().verdict(Verdict::Accept));
    transaction.rule(chain, &Rule::new().source(rules.pool).verdict(Verdict::Drop).comment("sandbox to host"));
    for from in sandbox_links(rules) {
        transaction.rule(chain, &from.verdict(Verdict::Drop));
    }
}

/// Matches of the links by which nothing but sandboxes comes in: the bridge that the runner made, and the
/// host's ends of sandboxes that are routed. The ends that are ports of a bridge never match, because what
/// they receive comes in by the bridge. On somebody else's bridge there may be others, who must not be cut
/// off from the host; there the pool's addresses are all that tells a sandbox.
fn sandbox_links(rules: &HostRules<'_>) -> impl Iterator<Item = Rule> {
    let bridge = rules.own_bridge.then(|| Rule::new().from_link(rules.bridge));
    bridge.into_iter().chain([Rule::new().from_links(HOST_LINKS)])
}

/// The table inside a new namespace.
pub(super) fn sandbox(egress: &Egress) -> Transaction {
    let guest = Ipv4Net::around(GUEST, 32);
    let gateway = Ipv4Net::around(GUEST_GATEWAY, 32);
    let mut transaction = Transaction::create(SANDBOX_TABLE);

    transaction.chain("forward", Hook::Forward, Verdict::Drop);
    let mut add = |rule: Rule| transaction.rule("forward", &rule);
    add(Rule::new().invalid().verdict(Verdict::Drop).comment("would leave untranslated"));
    let out = || Rule::new().from_link(TAP).to_link(UPLINK).source(guest);
    match egress {
        Egress::Open => add(out().verdict(Verdict::Accept)),
        Egress::Blocked => {}
        Egress::Only(nets) => nets.iter().for_each(|net| add(out().destination(*net).verdict(Verdict::Accept))),
    }
    add(Rule::new().from_link(UPLINK).to_link(TAP).reply().verdict(Verdict::Accept));

    transaction.chain("input", Hook::Input, Verdict::Drop);
    let mut add = |rule: Rule| transaction.rule("input", &rule);
    add(Rule::new().reply().verdict(Verdict::Accept).comment("answers to the runner"));
    add(Rule::new().from_link(TAP).source(guest).destination(gateway).ping().verdict(Verdict::Accept));

    transaction.chain("nat_out", Hook::SourceNat, Verdict::Accept);
    transaction.rule("nat_out", &Rule::new().to_link(UPLINK).masquerade());
    transaction
}
