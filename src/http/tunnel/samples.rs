//! Frames for tests: made, encoded and read back without the code under test.

use proptest::collection::vec;
use proptest::prelude::*;

use super::Leg;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub last: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn pong(payload: Vec<u8>) -> Self {
        Self { last: true, opcode: 10, payload }
    }

    pub fn bytes(&self, from: Leg, key: [u8; 4]) -> Vec<u8> {
        let mask = if from == Leg::Client { 0x80 } else { 0 };
        let mut bytes = vec![u8::from(self.last) << 7 | self.opcode];
        match self.payload.len() {
            length @ 0..126 => bytes.push(mask | length as u8),
            length @ 126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if from == Leg::Guest {
            bytes.extend(&self.payload);
            return bytes;
        }
        bytes.extend(key);
        bytes.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    /// The frames at the beginning, and how many bytes they are.
    pub fn read(bytes: &[u8]) -> (Vec<Self>, usize) {
        let (mut frames, mut at) = (Vec::new(), 0);
        while let Some((frame, length)) = Self::read_one(&bytes[at..]) {
            frames.push(frame);
            at += length;
        }
        (frames, at)
    }

    fn read_one(bytes: &[u8]) -> Option<(Self, usize)> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let (length, at) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
            length => (u64::from(length), 2),
        };
        let masked = second & 0x80 != 0;
        let key = if masked { bytes.get(at..at + 4)? } else { &[0; 4] };
        let at = if masked { at + 4 } else { at };
        let end = at + length as usize;
        let payload = bytes.get(at..end)?.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        Some((Self { last: first & 0x80 != 0, opcode: first & 0x0f, payload }, end))
    }
}

pub(super) fn stream(frames: &[Frame], from: Leg, key: [u8; 4]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.bytes(from, key)).collect()
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        6 => 0..20_usize,
        2 => 120..130_usize,
        1 => 65_530..65_540_usize,
    ];
    (length, any::<u8>()).prop_map(|(length, seed)| (0..length).map(|at| seed.wrapping_add(at as u8)).collect())
}

/// A ping or pong. Pings are never as long as ours; pongs may be.
fn control() -> impl Strategy<Value = Frame> {
    let ping = vec(any::<u8>(), 0..126).prop_filter("as long as ours", |payload| payload.len() != 8);
    let pong = prop_oneof![vec(any::<u8>(), 0..126), vec(any::<u8>(), 8)];
    prop_oneof![(Just(9), ping.boxed()), (Just(10), pong.boxed())].prop_map(|(opcode, payload)| Frame {
        last: true,
        opcode,
        payload,
    })
}

/// A message in fragments, with control frames between them.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    let fragments = vec((payload(), vec(control(), 0..2)), 1..4);
    (1..=2_u8, fragments).prop_map(|(opcode, fragments)| {
        let count = fragments.len();
        let mut list = Vec::new();
        for (at, (payload, control)) in fragments.into_iter().enumerate() {
            list.push(Frame { last: at + 1 == count, opcode: if at == 0 { opcode } else { 0 }, payload });
            list.extend(control);
        }
        list
    })
}

/// Some messages.
pub(super) fn frames() -> impl Strategy<Value = Vec<Frame>> {
    vec(message(), 0..6).prop_map(|messages| messages.into_iter().flatten().collect())
}
