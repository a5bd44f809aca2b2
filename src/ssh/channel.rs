//! One channel of a client and the guest's channel behind it: bytes, half-closes, requests and ends both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use russh::{ChannelWriteHalf, Pty, Sig, client, server};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::guest::{Guest, Incoming};
use super::queue::{Item, Queue};
use super::valve::Valve;

/// What a client had sent before it closed a channel may take so long to be delivered.
const LAST_DELIVERY: Duration = Duration::from_secs(10);
/// A program that has ended its output and not itself: so long the end of its output is kept back from a client that goes
/// on sending.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Stream number of stderr (RFC 4254, 5.2).
pub(super) const STDERR: u32 = 1;

/// A request that is answered.
#[derive(Debug)]
pub(super) enum Request {
    Pty { term: String, size: [u32; 4], modes: Vec<(Pty, u32)> },
    Env(String, String),
    Shell,
    Exec(Vec<u8>),
    Subsystem(String),
}

impl Request {
    /// It starts a program.
    pub fn starts(&self) -> bool {
        matches!(self, Self::Shell | Self::Exec(_) | Self::Subsystem(_))
    }
}

/// A channel that is open on both sides.
pub(super) struct Link {
    /// What the client has said.
    pub from_client: Queue,
    from_guest: Arc<Incoming>,
    to_guest: ChannelWriteHalf<client::Msg>,
    guest: Arc<Guest>,
    /// A program was started: what may be asked for before that is not asked for any more.
    started: AtomicBool,
    /// Requests whose answer the client has not been given; what comes behind it waits.
    asking: AtomicUsize,
    answered: Notify,
    client_closed: AtomicBool,
    closing: Notify,
    client_eof: AtomicBool,
    /// It has a program, with an exit status.
    session: bool,
}

impl Link {
    pub fn new(
        valve: Arc<Valve>,
        guest: Arc<Guest>,
        to_guest: ChannelWriteHalf<client::Msg>,
        from_guest: Arc<Incoming>,
        session: bool,
    ) -> Self {
        Self {
            from_client: Queue::new(valve),
            from_guest,
            to_guest,
            guest,
            started: AtomicBool::new(false),
            asking: AtomicUsize::new(0),
            answered: Notify::new(),
            client_closed: AtomicBool::new(false),
            closing: Notify::new(),
            client_eof: AtomicBool::new(false),
            session,
        }
    }

    /// Passes a request on and returns the guest's answer. [`Link::told`] must follow when the client has it.
    pub async fn ask(&self, request: Request) -> bool {
        self.asking.fetch_add(1, Ordering::AcqRel);
        let starts = request.starts();
        if self.started.load(Ordering::Acquire) {
            return false;
        }
        let _urgent = self.guest.valve.urgently();
        let answer = self.from_guest.answer();
        let guest = &self.to_guest;
        let sent = match request {
            Request::Pty { term, size: [columns, rows, width, height], modes } => {
                guest.request_pty(true, &term, columns, rows, width, height, &modes).await
            }
            Request::Env(name, value) => guest.set_env(true, name, value).await,
            Request::Shell => guest.request_shell(true).await,
            Request::Exec(command) => guest.exec(true, command).await,
            Request::Subsystem(name) => guest.request_subsystem(true, name).await,
        };
        // Without a guest nothing is refused: what the client is told then is why.
        let answer = (sent.is_ok() && answer.await) || self.guest.is_lost();
        if answer && starts {
            self.started.store(true, Ordering::Release);
        }
        answer
    }

    /// The client has been given the answer.
    pub fn told(&self) {
        self.asking.fetch_sub(1, Ordering::AcqRel);
        self.answered.notify_one();
    }

    /// Passes on that the client's terminal has another size; overtakes data.
    pub async fn resize(&self, [columns, rows, width, height]: [u32; 4]) {
        // A guest that is gone tells it by its queue.
        let _ = self.to_guest.window_change(columns, rows, width, height).await;
    }

    /// Passes on a signal; overtakes data, which the program may not take any more.
    pub async fn signal(&self, signal: Sig) {
        let _ = self.to_guest.signal(signal).await;
    }

    /// The client has sent all that it will.
    pub fn end_by_client(&self) {
        self.client_eof.store(true, Ordering::Release);
        self.from_client.push(Item::Eof);
    }

    /// The client has closed its channel, or is gone: what it sent is still delivered, nothing more is sent to it.
    pub fn close_by_client(&self) {
        self.client_closed.store(true, Ordering::Release);
        self.from_client.push(Item::Close);
        self.closing.notify_waiters();
    }

    async fn closed_by_client(&self) {
        loop {
            let closing = self.closing.notified();
            if self.client_closed.load(Ordering::Acquire) {
                return;
            }
            closing.await;
        }
    }

    /// Carries everything both ways until the channel is over. What was left to say when the guest's connection was
    /// lost is the result of `words`.
    pub async fn run(
        &self,
        client_valve: &Valve,
        to_client: &ChannelWriteHalf<server::Msg>,
        client: &server::Handle,
        words: impl Fn() -> Option<String>,
    ) {
        tokio::select! {
            () = self.up(client_valve) => {}
            () = self.down(to_client, client, words) => {}
        }
        self.guest.forget(self.to_guest.id());
    }

    /// Ends when the client's close has been passed on.
    async fn up(&self, valve: &Valve) {
        let deliver = async {
            loop {
                match self.from_client.pop().await {
                    Item::Data(stream, bytes) => {
                        let delivered = valve.delivering(bytes.len());
                        let sent = match stream {
                            None => self.to_guest.data_bytes(bytes).await,
                            Some(stream) => self.to_guest.extended_data_bytes(stream, bytes).await,
                        };
                        drop(delivered);
                        if sent.is_err() {
                            // The other direction ends this.
                            std::future::pending::<()>().await;
                        }
                    }
                    Item::Eof => drop(self.to_guest.eof().await),
                    Item::Close => return,
                    // The client's side says nothing of that kind.
                    Item::Status(_) | Item::Signal { .. } | Item::Lost => {}
                }
            }
        };
        tokio::select! {
            () = deliver => {}
            () = async {
                self.closed_by_client().await;
                tokio::time::sleep(LAST_DELIVERY).await;
            } => {}
        }
        let _ = self.to_guest.close().await;
    }

    /// Ends when the guest's close has been passed on.
    async fn down(
        &self,
        client: &ChannelWriteHalf<server::Msg>,
        handle: &server::Handle,
        words: impl Fn() -> Option<String>,
    ) {
        let mut eof = false;
        loop {
            let item = match eof {
                true => self.last_words().await,
                false => self.from_guest.queue.pop().await,
            };
            while self.asking.load(Ordering::Acquire) > 0 {
                self.answered.notified().await;
            }
            // A client that is gone takes nothing; the other direction ends this.
            match item {
                Item::Data(stream, bytes) => {
                    let _delivered = self.guest.valve.delivering(bytes.len());
                    let send = async {
                        match stream {
                            None => client.data_bytes(bytes).await,
                            Some(stream) => client.extended_data_bytes(stream, bytes).await,
                        }
                    };
                    tokio::select! {
                        sent = send => drop(sent),
                        () = self.closed_by_client() => {}
                    }
                }
                Item::Eof if self.session && !eof => {
                    eof = true;
                    continue;
                }
                Item::Eof => {
                    eof = false;
                    let _ = client.eof().await;
                }
                Item::Status(status) => drop(client.exit_status(status).await),
                Item::Signal { name, core_dumped, message } => {
                    let told = handle.exit_signal_request(client.id(), name, core_dumped, message, String::new());
                    let _ = told.await;
                }
                Item::Close => {
                    if eof {
                        let _ = client.eof().await;
                    }
                    break;
                }
                Item::Lost => {
                    self.tell_of_loss(client, handle, words()).await;
                    break;
                }
            }
        }
        let _ = client.close().await;
    }

    /// What comes behind the end of a program's output. A client whose both directions have ended closes the channel at
    /// once, and russh leaves no time between that and the last word on it: so how the program ended goes first.
    async fn last_words(&self) -> Item {
        let next = self.from_guest.queue.pop();
        tokio::pin!(next);
        loop {
            match timeout(LAST_WORDS, &mut next).await {
                Ok(item) => return item,
                // Its end may depend on what the client sends when it sees this one.
                Err(_) if !self.client_eof.load(Ordering::Acquire) => return Item::Eof,
                Err(_) => {}
            }
        }
    }

    async fn tell_of_loss(
        &self,
        client: &ChannelWriteHalf<server::Msg>,
        handle: &server::Handle,
        words: Option<String>,
    ) {
        let Some(words) = words else { return };
        // A client whose window is closed is told by the rest.
        let line = format!("{words}\r\n");
        let _ = timeout(Duration::from_millis(200), client.extended_data_bytes(STDERR, line)).await;
        let _ = handle.exit_signal_request(client.id(), Sig::KILL, false, words, String::new()).await;
    }
}
