//! Our encoding against that of the `nft` tool: both tables must list alike.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::*;
use crate::net::addresses::Ipv4Net;
use crate::net::{Egress, rules};

/// Runs in a new network namespace without a name, on a thread of its own.
fn isolated<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::spawn(enter).join().unwrap()
}

fn nft(arguments: &[&str], input: &str) -> String {
    let mut child =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nft runs");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?} fails on\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules as the tool lists them, without the handles that the kernel counts up.
fn listed() -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("handle");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut all: Value = serde_json::from_str(&nft(&["-j", "list", "ruleset"], "")).unwrap();
    strip(&mut all);
    all
}

fn assert_same(ours: impl FnOnce() -> Transaction + Send + 'static, text: &'static str) {
    let (ours, words) = isolated(move || {
        ours().commit().unwrap();
        (listed(), nft(&["list", "ruleset"], ""))
    });
    let theirs = isolated(move || {
        nft(&["-f", "-"], text);
        listed()
    });
    assert_eq!(ours, theirs, "ours lists as\n{words}");
    assert!(ours["nftables"].as_array().unwrap().len() > 1, "the list is not empty");
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// The table inside a namespace, with what the guest may reach as the only difference.
macro_rules! inside {
    ($out:literal) => {
        concat!(
            r#"table inet runner_ch {
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    ct state invalid drop comment "would leave untranslated""#,
            "\n",
            $out,
            r#"
                    iifname "eth0" oifname "tap0" ct direction reply accept
                }
                chain input {
                    type filter hook input priority filter; policy drop;
                    ct direction reply accept comment "answers to the runner"
                    iifname "tap0" ip saddr 192.168.0.2 ip daddr 192.168.0.1 icmp type echo-request accept
                }
                chain nat_out {
                    type nat hook postrouting priority srcnat; policy accept;
                    oifname "eth0" masquerade
                }
            }"#
        )
    };
}

#[test]
fn the_table_inside_a_namespace() {
    assert_same(
        || rules::sandbox(&Egress::Open),
        inside!(r#"iifname "tap0" oifname "eth0" ip saddr 192.168.0.2 accept"#),
    );
}

#[test]
fn the_table_of_a_host_with_its_own_bridge() {
    assert_same(
        || {
            let deny = [net("10.0.0.0/12"), net("192.0.2.7/32")];
            let (bridge, pool) = ("br0", net("10.231.0.0/17"));
            rules::host(&rules::HostRules { table: "runner_ch", bridge, own_bridge: true, pool, deny: &deny })
        },
        r#"table inet runner_ch {
            chain forward_guard {
                type filter hook forward priority filter; policy accept;
                iifname "br0" ip saddr != 10.231.0.0/17 drop comment "spoofed source"
                iifname "br0" meta nfproto ipv6 drop comment "sandboxes have no IPv6"
                iifname "chv*" ip saddr != 10.231.0.0/17 drop comment "spoofed source"
                iifname "chv*" meta nfproto ipv6 drop comment "sandboxes have no IPv6"
                ip saddr 10.231.0.0/17 ip daddr 10.231.0.0/17 drop comment "sandbox to sandbox"
                ip saddr 10.231.0.0/17 ip daddr 0.0.0.0/8 drop comment "no address"
                ip saddr 10.231.0.0/17 ip daddr 127.0.0.0/8 drop comment "loopback"
                ip saddr 10.231.0.0/17 ip daddr 169.254.0.0/16 drop comment "link-local, cloud metadata"
                ip saddr 10.231.0.0/17 ip daddr 224.0.0.0/4 drop comment "multicast"
                ip saddr 10.231.0.0/17 ip daddr 240.0.0.0/4 drop comment "reserved, broadcast"
                ip saddr 10.231.0.0/17 ip daddr 10.0.0.0/12 drop comment "configured"
                ip saddr 10.231.0.0/17 ip daddr 192.0.2.7 drop comment "configured"
                ip saddr 10.231.0.0/17 tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
                ip daddr 10.231.0.0/17 tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
                ip daddr 10.231.0.0/17 ct direction reply accept
                ip daddr 10.231.0.0/17 drop comment "nothing is begun towards a sandbox"
            }
            chain input_guard {
                type filter hook input priority filter; policy accept;
                ip saddr 10.231.0.0/17 ct direction reply accept
                ip saddr 10.231.0.0/17 drop comment "sandbox to host"
                iifname "br0" drop
                iifname "chv*" drop
            }
            chain nat_out {
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr 10.231.0.0/17 oifname != "br0" masquerade
            }
        }"#,
    );
}

#[test]
fn the_table_of_a_host_with_somebody_elses_bridge() {
    assert_same(
        || {
            let (bridge, pool) = ("br0", net("10.231.0.0/17"));
            rules::host(&rules::HostRules { table: "runner_ch", bridge, own_bridge: false, pool, deny: &[] })
        },
        r#"table inet runner_ch {
            chain forward_guard {
                type filter hook forward priority filter; policy accept;
                iifname "chv*" ip saddr != 10.231.0.0/17 drop comment "spoofed source"
                iifname "chv*" meta nfproto ipv6 drop comment "sandboxes have no IPv6"
                ip saddr 10.231.0.0/17 ip daddr 10.231.0.0/17 drop comment "sandbox to sandbox"
                ip saddr 10.231.0.0/17 ip daddr 0.0.0.0/8 drop comment "no address"
                ip saddr 10.231.0.0/17 ip daddr 127.0.0.0/8 drop comment "loopback"
                ip saddr 10.231.0.0/17 ip daddr 169.254.0.0/16 drop comment "link-local, cloud metadata"
                ip saddr 10.231.0.0/17 ip daddr 224.0.0.0/4 drop comment "multicast"
                ip saddr 10.231.0.0/17 ip daddr 240.0.0.0/4 drop comment "reserved, broadcast"
                ip saddr 10.231.0.0/17 tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
                ip daddr 10.231.0.0/17 tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
                ip daddr 10.231.0.0/17 ct direction reply accept
                ip daddr 10.231.0.0/17 drop comment "nothing is begun towards a sandbox"
            }
            chain input_guard {
                type filter hook input priority filter; policy accept;
                ip saddr 10.231.0.0/17 ct direction reply accept
                ip saddr 10.231.0.0/17 drop comment "sandbox to host"
                iifname "chv*" drop
            }
            chain nat_out {
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr 10.231.0.0/17 oifname != "br0" masquerade
            }
        }"#,
    );
}

#[test]
fn the_table_inside_a_namespace_with_a_list() {
    assert_same(
        || rules::sandbox(&Egress::Only(vec![net("10.0.0.0/8"), net("192.0.2.7/32")])),
        inside!(
            r#"iifname "tap0" oifname "eth0" ip saddr 192.168.0.2 ip daddr 10.0.0.0/8 accept
            iifname "tap0" oifname "eth0" ip saddr 192.168.0.2 ip daddr 192.0.2.7 accept"#
        ),
    );
}

#[test]
fn the_table_inside_a_namespace_that_is_blocked() {
    assert_same(|| rules::sandbox(&Egress::Blocked), inside!(""));
}

#[test]
fn replacing_leaves_one_table_and_deleting_none() {
    isolated(|| {
        for _ in 0..3 {
            let mut transaction = Transaction::replace("runner_ch");
            transaction.chain("a", Hook::Input, Verdict::Accept);
            transaction.commit().unwrap();
            let items = listed()["nftables"].as_array().unwrap().len();
            assert_eq!(items, 3, "remark, table and chain");
        }
        for _ in 0..2 {
            Transaction::delete("runner_ch").commit().unwrap();
            assert_eq!(listed()["nftables"].as_array().unwrap().len(), 1);
        }
    });
}

#[test]
fn a_refused_message_is_named_and_nothing_happens() {
    isolated(|| {
        let mut transaction = Transaction::create("runner_ch");
        transaction.chain("a", Hook::Input, Verdict::Accept);
        transaction.rule("missing", &Rule::new().verdict(Verdict::Drop));
        transaction.chain("b", Hook::Input, Verdict::Accept);
        let error = transaction.commit().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        assert!(error.to_string().contains("chain missing of table inet runner_ch"), "{error}");
        assert_eq!(listed()["nftables"].as_array().unwrap().len(), 1, "the table is there");
    });
}

#[test]
fn a_thousand_rules_are_one_transaction() {
    isolated(|| {
        let mut transaction = Transaction::create("runner_ch");
        transaction.chain("a", Hook::Forward, Verdict::Accept);
        for n in 0..1000u32 {
            let net = Ipv4Net::around(std::net::Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)), 24);
            transaction.rule("a", &Rule::new().source(net).destination(net).verdict(Verdict::Drop));
        }
        transaction.commit().unwrap();
        assert_eq!(listed()["nftables"].as_array().unwrap().len(), 1003);
    });
}
