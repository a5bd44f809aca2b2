//! What one side of a channel has said and the other has not been told yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use russh::Sig;
use tokio::sync::Notify;

use super::valve::Valve;

/// Data is gathered up to this many bytes: as much as one packet takes.
const GATHERED: usize = 32 << 10;

/// Something to pass on.
#[derive(Debug)]
pub(super) enum Item {
    /// Bytes, of the stream with this number (1 is stderr) or of the main one.
    Data(Option<u32>, Bytes),
    /// No more bytes will come.
    Eof,
    /// How the program ended.
    Status(u32),
    /// A signal ended the program.
    Signal {
        /// Which.
        name: Sig,
        /// It left a core.
        core_dumped: bool,
        /// Words for a user.
        message: String,
    },
    /// The channel is over.
    Close,
    /// The connection is.
    Lost,
}

#[derive(Debug)]
enum Waiting {
    Data(Option<u32>, BytesMut),
    Other(Item),
}

/// A queue that never makes anybody wait who puts something in: [`Valve`] keeps it short.
#[derive(Debug)]
pub(super) struct Queue {
    items: Mutex<VecDeque<Waiting>>,
    ready: Notify,
    valve: Arc<Valve>,
}

impl Queue {
    /// An empty one, whose bytes are counted by this valve.
    pub fn new(valve: Arc<Valve>) -> Self {
        Self { items: Mutex::default(), ready: Notify::new(), valve }
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds data. Small pieces become one, so that many of them are not more than their bytes.
    pub fn data(&self, stream: Option<u32>, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.valve.received(data.len());
        let mut items = self.items();
        match items.back_mut() {
            Some(Waiting::Data(last, bytes)) if *last == stream && bytes.len() + data.len() <= GATHERED => {
                bytes.extend_from_slice(data);
            }
            _ => items.push_back(Waiting::Data(stream, BytesMut::from(data))),
        }
        drop(items);
        self.ready.notify_one();
    }

    /// Adds anything else.
    pub fn push(&self, item: Item) {
        self.items().push_back(Waiting::Other(item));
        self.ready.notify_one();
    }

    /// Takes the next; for one taker at a time. Who takes data tells the valve when it is delivered.
    pub async fn pop(&self) -> Item {
        loop {
            let next = self.items().pop_front();
            match next {
                Some(Waiting::Data(stream, bytes)) => return Item::Data(stream, bytes.freeze()),
                Some(Waiting::Other(item)) => return item,
                None => self.ready.notified().await,
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let items = std::mem::take(&mut *self.items());
        let bytes = items.iter().map(|item| match item {
            Waiting::Data(_, bytes) => bytes.len(),
            Waiting::Other(_) => 0,
        });
        self.valve.delivered(bytes.sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_pieces_are_gathered_and_order_is_kept() {
        let valve = Valve::new(1 << 20);
        let queue = Queue::new(valve.clone());
        for byte in 0..100 {
            queue.data(None, &[byte]);
        }
        queue.data(Some(1), b"error");
        queue.data(None, &[7; GATHERED]);
        queue.data(None, b"more");
        queue.data(None, b"");
        queue.push(Item::Status(3));
        queue.data(None, b"behind");
        let mut told = Vec::new();
        for _ in 0..6 {
            told.push(match queue.pop().await {
                Item::Data(stream, bytes) => {
                    valve.delivered(bytes.len());
                    format!("{stream:?} {}", bytes.len())
                }
                other => format!("{other:?}"),
            });
        }
        assert_eq!(told, ["None 100", "Some(1) 5", "None 32768", "None 4", "Status(3)", "None 6"]);
        assert_eq!(valve.waiting(), 0);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_not_counted_for_ever() {
        let valve = Valve::new(10);
        let queue = Queue::new(valve.clone());
        queue.data(None, &[0; 40]);
        queue.data(Some(1), &[0; 2]);
        assert_eq!(valve.waiting(), 42);
        drop(queue);
        assert_eq!(valve.waiting(), 0);
    }
}
