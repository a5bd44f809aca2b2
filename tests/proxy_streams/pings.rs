//! WebSockets on which nobody says anything: they are asked whether they are still there, on both
//! sides, and never in the middle of a frame.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::Host;
use super::common::backend::{Backend, Conn, TOOLBOX};
use super::common::eventually;
use super::common::origin::Reader;
use super::common::stream::{Client, frame};

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn serve(host: &Host, after: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
    Backend::serve(host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(_)) = reader.head(&mut conn) else { return };
        let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let _ = conn.write_all(accepted.as_bytes());
        after(&mut conn);
    })
}

fn open(host: &Host) -> Client {
    let mut client = Client::new(host);
    client.send("GET", "/sandboxes/box/toolbox/ws", HANDSHAKE);
    assert_eq!(client.head().status, 101);
    client
}

/// A host whose silent WebSockets are pinged each second.
fn host() -> (Host, super::Runner) {
    let mut host = Host::new();
    host.set("RUNNER_PROXY_PING_SEC", "1");
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}

/// A frame of a client: its opcode and payload, unmasked.
fn read_masked(conn: &mut Conn) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    conn.read_exact(&mut head)?;
    assert!(head[1] & 0x80 != 0, "a client's frames are masked, the runner's too");
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        let mut long = [0; 2];
        conn.read_exact(&mut long)?;
        length = usize::from(u16::from_be_bytes(long));
    }
    let mut key = [0; 4];
    conn.read_exact(&mut key)?;
    let mut payload = vec![0; length];
    conn.read_exact(&mut payload)?;
    payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Ok((head[0] & 0x0f, payload))
}

#[test]
fn both_sides_are_asked_and_frames_stay_whole() {
    let (host, _runner) = host();
    let backend = serve(&host, |conn| {
        // Half a frame, a long breath, the other half.
        let whole = [&[0x82, 100][..], &[b'g'; 100]].concat();
        let _ = conn.write_all(&whole[..50]);
        std::thread::sleep(Duration::from_millis(1500));
        let _ = conn.write_all(&whole[50..]);
        let (mut pings, mut data) = (0, Vec::new());
        while data.is_empty() || pings < 2 {
            match read_masked(conn) {
                Ok((9, payload)) => {
                    pings += 1;
                    let _ = conn.write_all(&[&[0x8a, payload.len() as u8][..], &payload].concat());
                }
                Ok((_, payload)) => data = payload,
                Err(_) => return,
            }
        }
        let _ = conn.write_all(&[&[0x82, 126][..], &(data.len() as u16).to_be_bytes(), &data].concat());
        conn.read_to_its_end();
    });
    let mut client = open(&host);
    // The same from this side.
    let mine = frame(2, &[b'c'; 300]);
    client.write(&mine[..100]);
    let rest = mine[100..].to_vec();
    let mut second = client.stream.get_ref().try_clone().unwrap();
    let slow = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        second.write_all(&rest).unwrap();
    });
    let (mut pings, mut frames) = (0, Vec::new());
    while frames.len() < 2 || pings < 2 {
        let (opcode, payload) = client.frame();
        match opcode {
            9 => {
                pings += 1;
                // Not into the frame that is under way.
                if slow.is_finished() {
                    client.write(&frame(10, &payload));
                }
            }
            2 => frames.push(payload),
            // The guest's pongs to the runner's pings end at the runner, or pass: they say nothing.
            10 => {}
            other => panic!("opcode {other}: {payload:?}"),
        }
    }
    slow.join().unwrap();
    assert!(frames[0] == [b'g'; 100] && frames[1] == [b'c'; 300], "{frames:?}");
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn a_client_that_is_not_there_any_more() {
    let (host, _runner) = host();
    let backend = serve(&host, |conn| {
        while read_masked(conn).is_ok_and(|(opcode, payload)| {
            opcode != 9 || conn.write_all(&[&[0x8a, payload.len() as u8][..], &payload].concat()).is_ok()
        }) {}
    });
    // It keeps its connection and answers nothing, like one whose cable was pulled.
    let client = open(&host);
    let began = Instant::now();
    eventually("the guest's side ends", || (backend.open() == 0).then_some(()));
    let took = began.elapsed();
    assert!((1.0..8.0).contains(&took.as_secs_f64()), "{took:?}");
    drop(client);
}
