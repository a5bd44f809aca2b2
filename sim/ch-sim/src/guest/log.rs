//! The toolbox's log of a session's command (PROTOCOL.md 7): whole, or followed by a WebSocket.

use std::time::Duration;

use super::http::Head;
use super::toolbox::Reply;
use super::ws;

/// Time between two messages of a log that is followed.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// What the command wrote, marked by where: 1 is stdout, 2 stderr.
const LINES: [(u8, &str); 5] =
    [(1, "line 1\n"), (2, "warning 2\n"), (1, "line 3\n"), (2, "warning 4\n"), (1, "line 5\n")];
/// Bytes before each piece of a multiplexed log.
const MARK_BYTES: usize = 3;

/// How a log ends, which the command's id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With this close code.
    Code(u16),
    /// Without a word.
    Cut,
    /// Not at all: the lines are repeated.
    Never,
}

/// A log that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    next: usize,
    end: End,
}

/// What a log has to say next.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// One frame; more will come.
    More(Vec<u8>),
    /// The last bytes, after which the connection ends.
    Last(Vec<u8>),
}

impl Log {
    /// The next frame.
    pub fn next(&mut self) -> Said {
        let number = self.next;
        self.next += 1;
        match (LINES.get(number), self.end) {
            (Some(line), _) => Said::More(ws::frame(0x82, &marked(*line))),
            (None, End::Never) => Said::More(ws::frame(0x82, &marked(LINES[number % LINES.len()]))),
            (None, End::Code(code)) => Said::Last(ws::frame(0x88, &code.to_be_bytes())),
            (None, End::Cut) => Said::Last(Vec::new()),
        }
    }
}

fn marked((mark, text): (u8, &str)) -> Vec<u8> {
    [&[mark; MARK_BYTES], text.as_bytes()].concat()
}

/// Answers `GET /process/session/{session}/command/{command}/logs`; `None` for other paths.
pub fn answer(head: &Head) -> Option<Reply> {
    let rest = head.path().strip_prefix("/process/session/")?;
    let mut parts = rest.split('/');
    let (_, "command", command, "logs", None) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    if head.method != "GET" {
        return None;
    }
    let code = command.strip_prefix("close-").and_then(|code| code.parse().ok());
    let end = match (command, code) {
        (_, Some(code)) => End::Code(code),
        ("done", _) => End::Code(1000),
        ("cut", _) => End::Cut,
        ("endless", _) => End::Never,
        _ => return Some(Reply::error(404, "command not found", head)),
    };
    let follow = head.parameter("follow").is_some_and(|follow| follow == "true");
    Some(match head.wants_websocket() {
        true if follow => Reply::Log(Log { next: 0, end }),
        true => Reply::error(400, "a log that is not followed has no WebSocket", head),
        // As the original: who follows must bring a WebSocket.
        false if follow => Reply::error(400, "a log is followed by a WebSocket", head),
        false => Reply::bytes("text/plain; charset=utf-8", LINES.iter().flat_map(|line| marked(*line)).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(target: &str, upgrade: &str) -> Option<Reply> {
        let mut wire = format!("GET {target} HTTP/1.1\r\n{upgrade}\r\n").into_bytes();
        answer(&Head::take(&mut wire).unwrap().unwrap())
    }

    fn frames(command: &str, count: usize) -> Vec<Said> {
        let target = format!("/process/session/s/command/{command}/logs?follow=true");
        let Some(Reply::Log(mut log)) = reply(&target, "Upgrade: websocket\r\n") else { panic!("{command}: no log") };
        (0..count).map(|_| log.next()).collect()
    }

    #[test]
    fn a_log_is_multiplexed_and_ends_as_its_command_says() {
        let said = frames("done", 6);
        assert_eq!(said[0], Said::More(b"\x82\x0a\x01\x01\x01line 1\n".to_vec()));
        assert_eq!(said[1], Said::More(b"\x82\x0d\x02\x02\x02warning 2\n".to_vec()));
        assert_eq!(said[5], Said::Last(vec![0x88, 2, 3, 0xe8]));
        assert_eq!(frames("close-1011", 6)[5], Said::Last(vec![0x88, 2, 3, 0xf3]));
        assert_eq!(frames("cut", 6)[5], Said::Last(Vec::new()));
        assert_eq!(frames("endless", 6)[5], said[0]);
    }

    #[test]
    fn only_a_websocket_follows() {
        let path = "/process/session/s/command/done/logs";
        assert!(matches!(reply(path, ""), Some(Reply::Full { status: 200, .. })));
        assert!(matches!(reply(&format!("{path}?follow=true"), ""), Some(Reply::Full { status: 400, .. })));
        assert!(matches!(reply(path, "Upgrade: websocket\r\n"), Some(Reply::Full { status: 400, .. })));
        let unknown = reply("/process/session/s/command/other/logs", "");
        assert!(matches!(unknown, Some(Reply::Full { status: 404, .. })));
        assert!(reply("/process/session/s/command/done/logs/x", "").is_none());
        assert!(reply("/process/session/s/exec", "").is_none());
    }
}
