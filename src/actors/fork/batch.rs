//! Copies that are served by one pause of their source.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use tokio::sync::{Notify, mpsc};

use crate::fork::Ticket;
use crate::ids::SandboxId;

/// Copies of one source that wait for the same point in time.
pub(super) struct Batch {
    pub ticket: Ticket,
    /// Told whenever one of them is ready or has given up.
    news: RefCell<Option<mpsc::UnboundedReceiver<SandboxId>>>,
    /// Those that are not ready yet.
    unready: RefCell<HashSet<SandboxId>>,
    /// Those that have not ended yet, well or not.
    unfinished: Cell<usize>,
    /// At least one was ready.
    armed: Cell<bool>,
    changed: Notify,
}

impl Batch {
    pub fn new(ticket: Ticket, news: mpsc::UnboundedReceiver<SandboxId>) -> Self {
        Self {
            ticket,
            news: RefCell::new(Some(news)),
            unready: RefCell::default(),
            unfinished: Cell::new(0),
            armed: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// These wait, too.
    pub fn join(&self, copies: &[SandboxId]) {
        self.unready.borrow_mut().extend(copies.iter().cloned());
        self.unfinished.set(self.unfinished.get() + copies.len());
    }

    /// This one has ended.
    pub fn finished(&self, copy: &SandboxId) {
        self.unready.borrow_mut().remove(copy);
        self.unfinished.set(self.unfinished.get() - 1);
        self.changed.notify_waiters();
    }

    /// Waits until each is ready or has ended; whether there is anybody left to make a point in time for.
    pub async fn all_ready(&self) -> bool {
        let Some(mut news) = self.news.borrow_mut().take() else { return false };
        loop {
            let changed = self.changed.notified();
            if self.unready.borrow().is_empty() {
                return self.armed.get();
            }
            tokio::select! {
                Some(copy) = news.recv() => {
                    self.unready.borrow_mut().remove(&copy);
                    self.armed.set(true);
                }
                () = changed => {}
            }
        }
    }

    /// Waits until all have ended.
    pub async fn all_finished(&self) {
        loop {
            let changed = self.changed.notified();
            if self.unfinished.get() == 0 {
                return;
            }
            changed.await;
        }
    }
}
