use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::http::tunnel::samples::{Frame, frames, stream};

const OURS: [u8; PAYLOAD] = *b"12345678";

/// Shows a stream in chunks, as a direction does; what passes, and whether a frame may follow behind each chunk.
fn run(frames: &mut Frames, chunks: &[&[u8]]) -> (Vec<u8>, Vec<bool>) {
    let (mut out, mut rest, mut between) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        rest.extend_from_slice(chunk);
        while !rest.is_empty() {
            match frames.next(&rest) {
                Next::Pass(length) => out.extend(rest.drain(..length)),
                Next::Drop(length) => drop(rest.drain(..length)),
                Next::More => break,
            }
        }
        between.push(frames.between());
    }
    out.extend(rest);
    (out, between)
}

fn cut<'a>(bytes: &'a [u8], at: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|index| index.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn side() -> impl Strategy<Value = Leg> {
    prop_oneof![Just(Leg::Client), Just(Leg::Guest)]
}

proptest! {
    #[test]
    fn what_comes_out_is_what_goes_in_without_our_pongs(
        from in side(),
        list in frames(),
        ours in vec(any::<Index>(), 0..4),
        cuts in vec(any::<Index>(), 0..40),
        key: [u8; 4],
    ) {
        let mut sent = list.clone();
        for place in &ours {
            sent.insert(place.index(sent.len() + 1), Frame::pong(OURS.to_vec()));
        }
        let mut follower = Frames::new(from);
        prop_assert_eq!(follower.payload(OURS), OURS);
        let bytes = stream(&sent, from, key);
        let (out, _) = run(&mut follower, &cut(&bytes, &cuts));
        prop_assert_eq!(out, stream(&list, from, key));
        prop_assert!(follower.between());
    }

    #[test]
    fn between_frames_and_nowhere_else(from in side(), list in frames(), key: [u8; 4]) {
        let mut ends = Vec::new();
        let mut bytes = Vec::new();
        for frame in &list {
            bytes.extend(frame.bytes(from, key));
            ends.push(bytes.len());
        }
        let chunks: Vec<&[u8]> = bytes.chunks(1).collect();
        let (_, between) = run(&mut Frames::new(from), &chunks);
        for (at, between) in between.iter().enumerate() {
            prop_assert_eq!(*between, ends.contains(&(at + 1)), "behind byte {}", at);
        }
    }

    #[test]
    fn anything_else_passes_as_it_is(
        from in side(),
        bytes in vec(any::<u8>(), 0..600),
        list in frames(),
        cuts in vec(any::<Index>(), 0..20),
    ) {
        let mut all = stream(&list, from, [7; 4]);
        all.extend(&bytes);
        let mut follower = Frames::new(from);
        follower.payload(OURS);
        // The chance that this is in there is none.
        prop_assert_eq!(run(&mut follower, &cut(&all, &cuts)).0, all);
    }
}

#[test]
fn what_is_no_frame_ends_following() {
    let long = |length: u64| [&[0x82, 127][..], &length.to_be_bytes()].concat();
    let table: [(&str, Vec<u8>); 12] = [
        ("a masked frame of a server", vec![0x82, 0x81, 1, 2, 3, 4, 5]),
        ("a reserved opcode", vec![0x83, 0]),
        ("a reserved control opcode", vec![0x8b, 0]),
        ("a fragmented ping", vec![0x09, 0]),
        ("a long ping", vec![0x89, 126, 0, 200]),
        ("a compressed ping", vec![0xc9, 0]),
        ("a continuation of nothing", vec![0x80, 0]),
        ("a message in a message", vec![0x01, 0, 0x81, 0]),
        ("the third reserved bit", vec![0x91, 0]),
        ("a length of 63 bits and more", long(1 << 63)),
        ("a length in a longer form than needed", long(65_535)),
        ("a text", b"HTTP/1.1 200 OK".to_vec()),
    ];
    for (what, bytes) in table {
        let mut follower = Frames::new(Leg::Guest);
        let chunks: Vec<&[u8]> = bytes.chunks(1).collect();
        let (out, _) = run(&mut follower, &chunks);
        assert!(!follower.follows() && !follower.between(), "{what}");
        assert_eq!(out, bytes, "{what}");
    }
    let mut client = Frames::new(Leg::Client);
    assert_eq!(client.next(&[0x82, 1, 5]), Next::Pass(3));
    assert!(!client.follows(), "an unmasked frame of a client");
}

#[test]
fn nothing_follows_a_close_frame() {
    let mut follower = Frames::new(Leg::Guest);
    assert_eq!(follower.next(&[0x88, 2, 3, 232, 0x8a, 8]), Next::Pass(6));
    assert!(!follower.follows() && !follower.between());
}

#[test]
fn frames_of_any_size_are_followed() {
    let mut follower = Frames::new(Leg::Guest);
    let length: u64 = (1 << 63) - 1;
    assert_eq!(follower.next(&[&[0x82, 127][..], &length.to_be_bytes(), b"begin"].concat()), Next::Pass(15));
    assert!(follower.follows() && !follower.between());
    let mut masked = Frames::new(Leg::Client);
    assert_eq!(masked.next(&[&[0x82, 0xff][..], &length.to_be_bytes()].concat()), Next::Pass(10));
    assert!(masked.follows());
}

#[test]
fn an_answer_is_only_held_back_while_it_may_be_one() {
    let mut follower = Frames::new(Leg::Guest);
    assert_eq!(follower.next(&[0x8a]), Next::Pass(1), "no ping was sent yet");
    assert_eq!(follower.next(&[0]), Next::Pass(1));
    follower.payload(OURS);
    assert_eq!(follower.next(&[0x8a]), Next::More);
    assert_eq!(follower.next(&[0x8a, 8, b'1']), Next::More);
    assert_eq!(follower.next(&[0x8a, 8, b'1', b'x']), Next::Pass(4));
    assert_eq!(follower.next(b"345678"), Next::Pass(6));
    assert!(follower.between());
}

#[test]
fn our_frames_are_valid() {
    for leg in [Leg::Client, Leg::Guest] {
        let (frame, length) = ping(leg, OURS, [9, 8, 7, 6]);
        let expected = Frame { last: true, opcode: 9, payload: OURS.to_vec() };
        let other = if leg == Leg::Client { Leg::Guest } else { Leg::Client };
        assert_eq!(frame[..length], expected.bytes(other, [9, 8, 7, 6]));
    }
    let close = going_away("the end");
    assert_eq!(close, [&[0x88, 9, 3, 233][..], b"the end"].concat());
}
