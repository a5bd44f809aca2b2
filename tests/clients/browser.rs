//! Chromium. A browser sends no key by itself when it goes to a page: the front adds it, as Daytona's proxy does.

use super::setup::{Front, Need, PORT_URL, Stage, run_script, skipped};

#[test]
fn chromium_shows_a_page_with_all_it_has() {
    if skipped(&[Need::Program("chromium"), Need::Node("ws"), Need::Node("playwright-core")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    let _front = Front::new(&stage.host);
    run_script(&stage.host, "node/browser.mjs", &[]);
}

/// The same redirect for whoever asks, without a guest's word.
#[test]
fn the_remote_desktop_is_redirected_to_itself_connected() {
    let stage = Stage::new();
    let path = PORT_URL.trim_start_matches("http://127.0.0.1:3006").replace("8080", "6080");
    for (asked, expected) in [
        ("vnc.html", "vnc.html?autoconnect=true&resize=scale"),
        ("vnc.html?path=a%2Fb", "vnc.html?path=a%2Fb&autoconnect=true&resize=scale"),
    ] {
        let answer = stage.host.http().get(&format!("{path}/{asked}"));
        assert_eq!((answer.status, answer.header("location")), (302, Some(expected)), "{answer:?}");
    }
}
