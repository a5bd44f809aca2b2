//! The host's side.

use super::support::{TestHost, ip, link_exists, run};
use crate::net::netlink::Netlink;
use crate::net::{Error, Ipv4Net, LinuxNetwork, Network};

fn table(host: &TestHost) -> String {
    run("nft", &["list", "table", "inet", &host.table])
}

#[tokio::test]
async fn the_bridge_is_made_and_all_is_repeatable() {
    let host = TestHost::prepared().await;
    let name = host.bridge.as_str();
    let first = (ip(&format!("-d link show {name}")), ip(&format!("-4 addr show {name}")), table(&host));
    let gateway = format!("inet {}/24", host.pool.net().first());
    assert!(first.1.contains(&gateway), "{}", first.1);
    assert!(first.0.contains("alias runner-ch") && first.0.contains(",UP"), "{}", first.0);
    assert!(first.2.contains(&format!("oifname != \"{name}\" masquerade")), "{}", first.2);
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    host.network.prepare_host().await.unwrap();
    assert_eq!(ip(&format!("-4 addr show {name}")), first.1);
    assert_eq!(table(&host), first.2);
}

#[tokio::test]
async fn a_foreign_bridge_keeps_its_addresses_and_its_traffic() {
    let host = TestHost::reserved();
    let name = host.bridge.as_str();
    ip(&format!("link add {name} type bridge"));
    ip(&format!("addr add 198.18.{}.1/24 dev {name}", host.number));
    host.network.prepare_host().await.unwrap();
    let addresses = ip(&format!("-4 addr show {name}"));
    assert!(addresses.contains(&format!("198.18.{}.1/24", host.number)), "{addresses}");
    assert!(addresses.contains(&format!("{}/24", host.pool.net().first())), "{addresses}");
    assert!(!ip(&format!("-d link show {name}")).contains("alias"));
    let rules = table(&host);
    assert!(!rules.contains(&format!("iifname \"{name}\"")), "the operator's own traffic is left alone: {rules}");
    host.network.prepare_host().await.unwrap();
}

#[tokio::test]
async fn a_link_that_is_no_bridge_is_refused() {
    let host = TestHost::reserved();
    ip(&format!("tuntap add {} mode tap", host.bridge));
    let error = host.network.prepare_host().await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.to_string().contains(host.bridge.as_str()), "{error}");
}

#[tokio::test]
async fn a_pool_over_the_hosts_own_network_is_refused() {
    let host = TestHost::reserved();
    let taken = Netlink::open().unwrap().addresses().unwrap();
    let taken = taken.iter().find(|found| found.address.is_loopback()).unwrap();
    let pool = Ipv4Net::around(taken.address, 24);
    let network = LinuxNetwork::new(host.bridge.clone(), pool, vec![], &host.table);
    let error = network.prepare_host().await.unwrap_err().to_string();
    assert!(error.contains("RUNNER_NETWORK_POOL") && error.contains(&pool.to_string()), "{error}");
    assert!(error.contains(&taken.address.to_string()) && error.contains(" on lo"), "{error}");
    assert!(!link_exists(host.bridge.as_str()), "nothing is made");
}

#[tokio::test]
async fn a_pool_over_a_route_is_refused() {
    let host = TestHost::reserved();
    let other = format!("rctr{}", host.number);
    ip(&format!("tuntap add {other} mode tap"));
    ip(&format!("link set {other} up"));
    let route = format!("10.231.{}.64/26", host.number);
    ip(&format!("route add {route} dev {other}"));
    let result = host.network.prepare_host().await;
    ip(&format!("link del {other}"));
    let error = result.unwrap_err().to_string();
    assert!(error.contains(&route) && error.contains(&other) && error.contains("RUNNER_NETWORK_POOL"), "{error}");
    host.network.prepare_host().await.unwrap();
}

#[tokio::test]
async fn a_pool_over_the_guests_network_is_refused() {
    let host = TestHost::reserved();
    let pool = "192.168.0.0/16".parse().unwrap();
    let error = LinuxNetwork::new(host.bridge.clone(), pool, vec![], &host.table).prepare_host().await.unwrap_err();
    assert!(matches!(error, Error::Overlap { .. }), "{error}");
}
