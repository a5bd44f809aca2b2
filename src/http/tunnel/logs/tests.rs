use std::future::{pending, ready};
use std::pin::pin;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::http::tunnel::Leg;
use crate::http::tunnel::samples::Frame;

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    Frame { last: true, opcode, payload: payload.to_vec() }.bytes(Leg::Guest, [0; 4])
}

fn close(code: u16) -> Vec<u8> {
    frame(8, &code.to_be_bytes())
}

/// What is read when the guest sends this and closes, and what it got back.
async fn read(sent: &[u8]) -> (Vec<io::Result<Bytes>>, Vec<Frame>) {
    let (mut guest, leg) = duplex(1 << 20);
    guest.write_all(sent).await.unwrap();
    guest.shutdown().await.unwrap();
    let read = messages(leg, pending()).collect::<Vec<_>>().await;
    let mut answers = Vec::new();
    guest.read_to_end(&mut answers).await.unwrap();
    (read, Frame::read(&answers).0)
}

#[tokio::test]
async fn each_message_is_passed_until_the_close_code_1000() {
    let sent = [frame(2, b"\x01\x01\x01out"), frame(1, b"text"), frame(2, b""), close(1000), frame(2, b"behind")];
    let (read, answers) = read(&sent.concat()).await;
    let read: Vec<Bytes> = read.into_iter().map(Result::unwrap).collect();
    assert_eq!(read, [&b"\x01\x01\x01out"[..], b"text", b""]);
    assert_eq!(answers, [Frame { last: true, opcode: 8, payload: 1000_u16.to_be_bytes().to_vec() }]);
}

#[tokio::test]
async fn pings_are_answered() {
    let (read, answers) = read(&[frame(9, b"there?"), frame(2, b"out"), close(1000)].concat()).await;
    assert_eq!(read.len(), 1);
    assert_eq!(answers[0], Frame::pong(b"there?".to_vec()));
}

#[tokio::test]
async fn any_other_end_is_an_error() {
    let table = [
        ("code 1001", close(1001), "closed with code 1001"),
        ("code 1011", close(1011), "closed with code 1011"),
        ("code 4000", close(4000), "closed with code 4000"),
        ("no code", frame(8, b""), "closed without a code"),
        ("no close frame", Vec::new(), "without closing handshake"),
        ("no frames", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), "WebSocket protocol error"),
        ("half a frame", frame(2, b"cut off")[..5].to_vec(), "without closing handshake"),
    ];
    for (what, sent, reason) in table {
        let (read, _) = read(&[frame(2, b"out"), sent].concat()).await;
        assert_eq!(read[0].as_ref().unwrap(), &b"out"[..], "{what}");
        let error = read[1].as_ref().unwrap_err().to_string();
        assert!(error.contains(reason), "{what}: {error}");
        assert_eq!(read.len(), 2, "{what}");
    }
}

#[tokio::test]
async fn fragments_are_one_message_and_too_long_ones_an_error() {
    let part =
        |last, opcode, payload: &[u8]| Frame { last, opcode, payload: payload.to_vec() }.bytes(Leg::Guest, [0; 4]);
    let (read_all, _) = read(&[part(false, 2, b"ab"), part(true, 0, b"cd"), close(1000)].concat()).await;
    assert_eq!(read_all[0].as_ref().unwrap(), &b"abcd"[..]);
    let announced = [&[0x82, 127][..], &(MESSAGE_MAX as u64 + 1).to_be_bytes()].concat();
    let (too_long, _) = read(&announced).await;
    assert!(too_long[0].as_ref().unwrap_err().to_string().contains("too long"), "{too_long:?}");
}

#[tokio::test]
async fn the_end_of_the_run_is_an_error_behind_what_has_arrived() {
    let (mut guest, leg) = duplex(1 << 10);
    guest.write_all(&frame(2, b"out")).await.unwrap();
    let mut read = pin!(messages(leg, ready(())));
    assert_eq!(read.next().await.unwrap().unwrap(), &b"out"[..]);
    let error = read.next().await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the sandbox has stopped");
    assert!(read.next().await.is_none());
}
