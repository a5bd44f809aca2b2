//! The guest's network card: frames with virtio headers on a TAP.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::tap::HEADER_BYTES;

/// Largest frame without header.
const FRAME_BYTES: usize = 1514;

/// A TAP as a smoltcp device. Frames are handed in one at a time, so that the stack can prepare for each.
pub struct Card {
    tap: File,
    received: Option<Vec<u8>>,
}

impl Card {
    /// A card on an opened TAP.
    pub fn new(tap: OwnedFd) -> Self {
        Self { tap: tap.into(), received: None }
    }

    /// Descriptor to poll for frames.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// Takes the next frame from the TAP; false when there is none.
    pub fn fetch(&mut self) -> bool {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.tap.read(&mut buffer) {
                Ok(length) if length > HEADER_BYTES => {
                    self.received = Some(buffer[HEADER_BYTES..length].to_vec());
                    return true;
                }
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// Port of a TCP connection that the fetched frame wants to open.
    pub fn fetched_syn(&self) -> Option<u16> {
        let frame = self.received.as_deref()?;
        let ip = frame.get(14..)?;
        let is_tcp = frame[12..14] == [0x08, 0x00] && *ip.get(9)? == 6;
        let tcp = ip.get(usize::from(ip[0] & 0x0f) * 4..)?;
        let opens = tcp.get(13)? & 0x12 == 0x02;
        let port = u16::from_be_bytes([tcp[2], tcp[3]]);
        (is_tcp && opens).then_some(port)
    }

    /// Sends a frame past the stack.
    pub fn send(&mut self, frame: &[u8]) {
        let mut packet = vec![0; HEADER_BYTES];
        packet.extend_from_slice(frame);
        // A full or vanished TAP loses frames, like a real card.
        let _ = self.tap.write(&packet);
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.received.take()?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

/// A frame for the stack.
pub struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a frame of the stack.
pub struct Sender<'a>(&'a mut Card);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}
