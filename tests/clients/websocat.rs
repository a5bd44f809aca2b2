//! websocat: WebSocket for shells.

use std::process::{Command, Stdio};

use super::common::TOKEN;
use super::setup::{Need, PORT_URL, Stage, dir, run_fed, skipped};

#[test]
fn websocat_talks_through_pipes() {
    if skipped(&[Need::Node("ws"), Need::Installed("websocat")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    let url = format!("{}/ws", PORT_URL.replacen("http", "ws", 1));
    let program = dir().join("bin/websocat");
    let header = format!("X-Daytona-Authorization: Bearer {TOKEN}");
    let feed = |name: &str, content: &[u8]| {
        std::fs::write(stage.host.path(name), content).unwrap();
        Stdio::from(std::fs::File::open(stage.host.path(name)).unwrap())
    };

    // A message a line, there and back. The URL comes first: what follows a header is another header.
    let lines: String = (0..200).map(|n| format!("line {n}\n")).collect();
    let mut command = Command::new(&program);
    command.args(["--no-async-stdio", "-1", &url, "--header", &header]);
    let one = run_fed(&stage.host, &mut command, feed("one", b"only one\n"));
    assert_eq!((one.code, one.out.as_str()), (Some(0), "only one\n"), "{one:?}");

    let mut command = Command::new(&program);
    command.args(["--no-async-stdio", "--text", "--no-close", "--max-messages-rev", "200", &url, "--header", &header]);
    let all = run_fed(&stage.host, &mut command, feed("lines", lines.as_bytes()));
    assert_eq!(all.out, lines, "{all:?}");

    let mut command = Command::new(&program);
    command.args(["--no-async-stdio", "-1", "--protocol", "chat", &url, "--header", &header]);
    let chat = run_fed(&stage.host, &mut command, feed("chat", b"hello\n"));
    assert_eq!((chat.code, chat.out.as_str()), (Some(0), "hello\n"), "{chat:?}");

    let mut command = Command::new(&program);
    command.args(["--no-async-stdio", "-1", &url]);
    let stranger = run_fed(&stage.host, &mut command, feed("stranger", b"x\n"));
    assert!(stranger.code != Some(0) && stranger.err.contains("401"), "{stranger:?}");
}
