//! The hook's caller against a small daemon that listens where a guest would, in a namespace of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::{Executed, HOOK, PATIENCE, confirmed, judge, last_words};
use crate::error::{Certainty, ErrorCode, Failure};
use crate::net::Namespace;
use crate::toolbox::{GuestToolbox, Renewal, Toolbox};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace that has the guest's address itself.
struct Guest {
    name: String,
}

impl Guest {
    fn new() -> Self {
        let name = format!("renew-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "addr", "add", "192.168.0.2/24", "dev", "lo"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    fn namespace(&self) -> Namespace {
        Namespace::open(&self.name.parse().unwrap()).unwrap()
    }

    /// A daemon that answers one request after the other in the given ways; what it was asked comes out of the channel.
    fn serve(&self, answers: Vec<Answer>) -> Receiver<String> {
        self.serve_after(Duration::ZERO, answers)
    }

    /// The same, listening only after some time.
    fn serve_after(&self, delay: Duration, answers: Vec<Answer>) -> Receiver<String> {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let (asked, inbox) = channel();
        let (listening, ready) = channel();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            if !delay.is_zero() {
                listening.send(()).unwrap();
                std::thread::sleep(delay);
            }
            let listener = TcpListener::bind(SocketAddr::from(([192, 168, 0, 2], super::PORT))).unwrap();
            // Nobody waits any more when the test gave a delay.
            let _ = listening.send(());
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                // A test may have ended without asking what it was asked.
                let _ = asked.send(request(&mut stream));
                answer.give(stream);
            }
        });
        ready.recv().unwrap();
        inbox
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

enum Answer {
    Json(u16, Value),
    BreakOff,
    Silence,
}

impl Answer {
    fn give(self, mut stream: TcpStream) {
        match self {
            Self::Json(status, body) => {
                let body = body.to_string();
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
                // The other side may have given up.
                let _ = stream.write_all((head + &body).as_bytes());
                let _ = stream.read(&mut [0]);
            }
            Self::BreakOff => {}
            // Until the other side gives up.
            Self::Silence => drop(stream.read(&mut [0])),
        }
    }
}

/// Reads a request with a body.
fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if count == 0 || body.len() >= length.parse::<usize>().unwrap() {
            return text;
        }
    }
}

fn renewal() -> Renewal {
    let unix_nanos = 1_700_000_000_000_000_000;
    Renewal { sandbox: "box-1".parse().unwrap(), machine_id: [0xab; 16], entropy: [0x0f; 64], unix_nanos }
}

fn executed(code: i64, result: &str) -> Answer {
    Answer::Json(200, json!({"exitCode": code, "result": result}))
}

const OK: &str = "runner-ch-identity ok box-1 rng,clock,machine-id,hostname,ssh\n";

async fn renew(guest: &Guest) -> Result<(), Failure> {
    GuestToolbox.renew(&guest.namespace(), &renewal()).await
}

#[tokio::test]
async fn the_hook_is_called_by_its_path_and_confirms() {
    let guest = Guest::new();
    let asked = guest.serve(vec![executed(0, &format!("some warning\n{OK}"))]);
    renew(&guest).await.unwrap();
    let asked = asked.recv().unwrap();
    assert!(asked.starts_with("POST /process/execute HTTP/1.1\r\n"), "{asked}");
    let body: Value = serde_json::from_str(asked.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["timeout"], 10);
    let command = body["command"].as_str().unwrap();
    let time = command.rsplit_once(' ').unwrap().1;
    let (machine_id, entropy) = ("ab".repeat(16), "0f".repeat(64));
    assert_eq!(command, format!("{HOOK} --sandbox box-1 --machine-id {machine_id} --entropy {entropy} --time {time}"));
    let time: u128 = time.parse().unwrap();
    let passed = time - renewal().unix_nanos;
    assert!(passed < PATIENCE.as_nanos(), "{passed}");
}

#[tokio::test]
async fn a_daemon_that_is_not_up_yet_or_breaks_off_is_tried_again() {
    let guest = Guest::new();
    let _asked = guest.serve_after(Duration::from_millis(300), vec![Answer::BreakOff, executed(0, OK)]);
    renew(&guest).await.unwrap();
}

#[tokio::test]
async fn a_guest_without_the_hook_is_told_from_one_whose_hook_fails() {
    let guest = Guest::new();
    let _asked = guest.serve(vec![
        executed(127, "sh: not found"),
        executed(-1, ""),
        executed(1, "runner-ch-identity: cannot write /etc/machine-id\u{1b}[31m\n"),
        Answer::Json(200, json!({"code": 126, "result": ""})),
    ]);
    for code in [127, -1] {
        let missing = renew(&guest).await.unwrap_err();
        assert_eq!((missing.code, missing.certainty), (ErrorCode::UnprocessableEntity, Certainty::NotDone));
        assert!(missing.message.contains(&format!("exit code {code}")), "{missing}");
    }
    let failed = renew(&guest).await.unwrap_err();
    assert_eq!((failed.code, failed.certainty), (ErrorCode::Internal, Certainty::Unknown));
    assert!(failed.message.ends_with("exit code 1: runner-ch-identity: cannot write /etc/machine-id [31m"), "{failed}");
    assert!(renew(&guest).await.unwrap_err().message.contains("exit code 126"));
}

#[tokio::test]
async fn a_daemon_that_refuses_or_talks_nonsense_is_no_confirmation() {
    let guest = Guest::new();
    let _asked = guest.serve(vec![
        Answer::Json(408, json!({"message": "command execution timeout"})),
        Answer::Json(404, json!({})),
        Answer::Json(200, json!("ok")),
        Answer::Json(200, json!({"result": OK})),
        executed(0, "runner-ch-identity ok box-2 rng,machine-id,hostname"),
    ]);
    for (code, text) in [
        (ErrorCode::Timeout, "status 408"),
        (ErrorCode::Internal, "status 404"),
        (ErrorCode::Internal, "not the result of a command"),
        (ErrorCode::Internal, "without confirming"),
        (ErrorCode::Internal, "without confirming"),
    ] {
        let failure = renew(&guest).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(text), "{failure}");
    }
}

#[tokio::test]
async fn without_an_answer_it_ends_in_time() {
    let guest = Guest::new();
    let patience = Duration::from_millis(400);
    let nobody = super::renew(&guest.namespace(), &renewal(), patience).await.unwrap_err();
    assert!(nobody.to_string().contains("within 0.4 s; last try: cannot connect"), "{nobody}");
    assert_eq!((nobody.code(), nobody.certainty()), (ErrorCode::Timeout, Certainty::Unknown));
    let _asked = guest.serve(vec![Answer::Silence]);
    let silent = super::renew(&guest.namespace(), &renewal(), patience).await.unwrap_err();
    assert!(matches!(silent, super::Error::NoAnswer { .. }), "{silent}");
}

#[test]
fn only_the_whole_confirmation_counts() {
    let steps = |line| confirmed(line, "a");
    assert!(steps("runner-ch-identity ok a rng,machine-id,hostname").is_some());
    assert!(steps("runner-ch-identity ok a rng-mixed,machine-id,hostname,ssh\r").is_some());
    for line in [
        "",
        "runner-ch-identity ok a",
        "runner-ch-identity ok a ",
        "runner-ch-identity ok b rng,machine-id,hostname",
        "runner-ch-identity ok a rng,machine-id",
        "runner-ch-identity ok a machine-id,hostname",
        "runner-ch-identity ok a rng,machine-id,hostname and more",
        "runner-ch-identity ok a rng,machine-id,hostname,,",
        "runner-ch-identity ok a rng,machine-id,hostname,\u{7}",
        "echo runner-ch-identity ok a rng,machine-id,hostname",
    ] {
        assert!(steps(line).is_none(), "{line:?}");
    }
}

#[test]
fn the_confirmation_is_the_last_line() {
    let with = |result: String| judge(&Executed { exit_code: Some(0), result }, &renewal());
    assert!(with(format!("x\n{OK}\n\n")).is_ok());
    assert!(with(format!("{OK}more")).is_err());
}

#[test]
fn words_of_the_guest_are_bounded_and_harmless() {
    let words = last_words(&format!("{}\r\nend\u{0}", "ä".repeat(5_000)));
    assert_eq!(words.chars().count(), 299);
    assert!(words.ends_with("ä  end") && !words.contains(char::is_control), "{words:?}");
    assert_eq!(last_words(" \n"), "it said nothing");
}
