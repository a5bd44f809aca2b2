//! Where WebSocket frames begin and end in a stream that only passes by (RFC 6455, section 5.2). Headers
//! are read, payloads are counted. No I/O and no clock in here.

use super::Leg;

/// Length of the payload of a ping of ours.
pub(super) const PAYLOAD: usize = 8;
/// FIN and opcode of a Pong and of a Ping.
const PONG: u8 = 0x8a;
const PING: u8 = 0x89;
/// The bit of the second byte that tells that a masking key follows.
const MASKED: u8 = 0x80;
const KEY: u64 = 4;
/// More than that is not allowed in a control frame.
const CONTROL_MAX: u8 = 125;

/// What may be done with the first bytes that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// So many pass.
    Pass(usize),
    /// So many are the answer to a ping of ours, which nobody else waits for.
    Drop(usize),
    /// All of them are the beginning of what may be such an answer: wait for more.
    More,
}

/// Position in one direction of a WebSocket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames {
    from: Leg,
    place: Place,
    /// A message has begun whose last fragment has not.
    fragmented: bool,
    /// Payload of our pings to the sender, once there was one.
    awaited: Option<[u8; PAYLOAD]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Between,
    /// Behind the first byte, which was this one.
    Second(u8),
    /// Inside the extended length of `width` bytes, of which so many are missing.
    Length {
        width: u8,
        missing: u8,
        length: u64,
    },
    /// So many bytes of masking key and payload are missing.
    Inside(u64),
    /// A Close frame has begun: no frame may follow.
    Closing,
    /// This is no WebSocket, or not one as we know it.
    Unknown,
}

impl Frames {
    /// At the beginning of what this side sends.
    pub fn new(from: Leg) -> Self {
        Self { from, place: Place::Between, fragmented: false, awaited: None }
    }

    /// Whether everything that passed so far is whole frames, after which another one may come.
    pub fn between(&self) -> bool {
        self.place == Place::Between
    }

    /// Whether frames are still told apart, and more may come.
    pub fn follows(&self) -> bool {
        !matches!(self.place, Place::Closing | Place::Unknown)
    }

    /// The payload of pings to the sender: the given one the first time, the same from then on, as an answer may
    /// come late. Pongs with it are dropped.
    pub fn payload(&mut self, first: [u8; PAYLOAD]) -> [u8; PAYLOAD] {
        *self.awaited.get_or_insert(first)
    }

    /// Looks at what was received and not yet judged. What is passed or dropped must not be shown again,
    /// anything else must.
    pub fn next(&mut self, bytes: &[u8]) -> Next {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.place == Place::Between
                && let Some(payload) = &self.awaited
            {
                match answer(rest, self.from, payload) {
                    Answer::Other => {}
                    _ if at > 0 => return Next::Pass(at),
                    Answer::Whole(length) => return Next::Drop(length),
                    Answer::Begun => return Next::More,
                }
            }
            at += self.step(rest);
        }
        Next::Pass(at)
    }

    /// Goes on by at least one byte; how many.
    fn step(&mut self, rest: &[u8]) -> usize {
        let (next, length) = match self.place {
            Place::Between => (self.first(rest[0]), 1),
            Place::Second(first) => (self.second(first, rest[0]), 1),
            Place::Length { width, missing, length } => {
                let length = length << 8 | u64::from(rest[0]);
                let missing = missing - 1;
                (if missing > 0 { Place::Length { width, missing, length } } else { self.long(width, length) }, 1)
            }
            Place::Inside(missing) => {
                let here = missing.min(rest.len() as u64);
                // It is not more than `rest` is long.
                (inside(missing - here), here as usize)
            }
            Place::Closing | Place::Unknown => (self.place, rest.len()),
        };
        self.place = next;
        length
    }

    fn first(&mut self, byte: u8) -> Place {
        let (last, reserved, opcode) = (byte & 0x80 != 0, byte >> 4 & 0b111, byte & 0x0f);
        // Of the reserved bits, only the first has a use (RFC 7692: the message is compressed).
        match opcode {
            0x0 if self.fragmented && reserved == 0 => self.fragmented = !last,
            0x1 | 0x2 if !self.fragmented && reserved & 0b011 == 0 => self.fragmented = !last,
            0x8..=0xa if last && reserved == 0 => {}
            _ => return Place::Unknown,
        }
        Place::Second(byte)
    }

    fn second(&self, first: u8, byte: u8) -> Place {
        let (masked, length, control) = (byte & MASKED != 0, byte & !MASKED, first & 0x08 != 0);
        // Clients mask, servers do not.
        if masked != (self.from == Leg::Client) || (control && length > CONTROL_MAX) {
            return Place::Unknown;
        }
        match length {
            _ if first & 0x0f == 0x08 => Place::Closing,
            126 => Place::Length { width: 2, missing: 2, length: 0 },
            127 => Place::Length { width: 8, missing: 8, length: 0 },
            _ => inside(u64::from(length) + self.key()),
        }
    }

    fn long(&self, width: u8, length: u64) -> Place {
        // The shortest form must be used, and the highest bit is none.
        let shortest = if width == 2 { 126 } else { 1 << 16 };
        if length < shortest || length >> 63 != 0 { Place::Unknown } else { inside(length + self.key()) }
    }

    fn key(&self) -> u64 {
        if self.from == Leg::Client { KEY } else { 0 }
    }
}

fn inside(missing: u64) -> Place {
    if missing == 0 { Place::Between } else { Place::Inside(missing) }
}

enum Answer {
    Other,
    Begun,
    Whole(usize),
}

/// Whether a frame begins here that is a Pong with this payload.
fn answer(bytes: &[u8], from: Leg, payload: &[u8; PAYLOAD]) -> Answer {
    let (masked, head) = if from == Leg::Client { (MASKED, 6) } else { (0, 2) };
    let key = if masked == 0 { &[0; 4][..] } else { bytes.get(2..6).unwrap_or_default() };
    let whole = head + PAYLOAD;
    let fits = bytes.iter().take(whole).enumerate().all(|(at, byte)| match at {
        0 => *byte == PONG,
        1 => *byte == masked | PAYLOAD as u8,
        _ if at < head => true,
        _ => *byte == payload[at - head] ^ key[(at - head) % key.len()],
    });
    match fits {
        false => Answer::Other,
        true if bytes.len() >= whole => Answer::Whole(whole),
        true => Answer::Begun,
    }
}

/// Room for a ping; the second number of [`ping`] is its length.
pub(super) const PING_MAX: usize = 6 + PAYLOAD;

/// A Ping to this side: masked with this key when it goes to the server.
pub(super) fn ping(to: Leg, payload: [u8; PAYLOAD], key: [u8; 4]) -> ([u8; PING_MAX], usize) {
    let mut frame = [0; PING_MAX];
    frame[0] = PING;
    frame[1] = PAYLOAD as u8;
    if to == Leg::Client {
        frame[2..2 + PAYLOAD].copy_from_slice(&payload);
        return (frame, 2 + PAYLOAD);
    }
    frame[1] |= MASKED;
    frame[2..6].copy_from_slice(&key);
    for (at, byte) in payload.iter().enumerate() {
        frame[6 + at] = byte ^ key[at % key.len()];
    }
    (frame, PING_MAX)
}

/// A Close frame to the client with code 1001 (going away) and this reason, which must be short.
pub(super) fn going_away(reason: &'static str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(usize::from(CONTROL_MAX) - 2)];
    let mut frame = vec![0x88, 2 + reason.len() as u8];
    frame.extend(1001_u16.to_be_bytes());
    frame.extend(reason);
    frame
}

#[cfg(test)]
mod tests;
