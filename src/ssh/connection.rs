//! One connection of a client: its channels, the guest behind them, and its end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info};

use super::Shared;
use super::channel::Link;
use super::guest::{Guest, Kind, Unreached};
use super::valve::Valve;
use crate::ids::SandboxId;

/// All channels of a connection have ended so long after their guest or client, or are given up.
const LAST_CHANNELS: Duration = Duration::from_secs(12);
/// RFC 4254, 5.1: SSH_OPEN_CONNECT_FAILED.
const CONNECT_FAILED: u32 = 2;

/// One connection of a client.
pub(super) struct Connection {
    pub shared: Arc<Shared>,
    pub peer: SocketAddr,
    /// Holds up reading from the client, or ends the connection.
    pub valve: Arc<Valve>,
    /// True when somebody has logged in.
    pub login: watch::Sender<bool>,
    guest: tokio::sync::Mutex<Option<Arc<Guest>>>,
    channels: Mutex<HashMap<ChannelId, Entry>>,
    /// One for each channel that may be opened.
    pub free: Arc<Semaphore>,
    /// Told once that the guest is gone.
    lost: AtomicBool,
    /// The client is gone: nothing is begun for it any more.
    ended: AtomicBool,
}

/// What is behind a channel's number.
#[derive(Clone)]
pub(super) enum Entry {
    /// Open on both sides.
    Linked(Arc<Link>),
    /// There is no guest; whatever is asked for is answered by this.
    Told(Arc<Told>),
}

/// What a channel without a guest has to say; it is counted as one until that is said.
pub(super) struct Told {
    pub words: String,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub fn new(shared: Arc<Shared>, peer: SocketAddr, valve: Arc<Valve>) -> Self {
        let free = Arc::new(Semaphore::new(shared.settings.max_channels));
        Self {
            shared,
            peer,
            valve,
            login: watch::Sender::new(false),
            guest: tokio::sync::Mutex::default(),
            channels: Mutex::default(),
            free,
            lost: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// The channels that the client may use.
    pub fn channels(&self) -> MutexGuard<'_, HashMap<ChannelId, Entry>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is behind this number.
    pub fn entry(&self, id: ChannelId) -> Option<Entry> {
        self.channels().get(&id).cloned()
    }

    /// The same, if it is open on both sides.
    pub fn link(&self, id: ChannelId) -> Option<Arc<Link>> {
        match self.entry(id) {
            Some(Entry::Linked(link)) => Some(link),
            _ => None,
        }
    }

    /// The guest's connection, made by the first channel that needs it.
    async fn guest(&self, id: &SandboxId) -> Result<Arc<Guest>, Unreached> {
        let mut guest = self.guest.lock().await;
        if let Some(guest) = &*guest {
            return Ok(guest.clone());
        }
        let gone = || Unreached("the client is gone".to_owned());
        if self.ended.load(Ordering::Acquire) {
            return Err(gone());
        }
        let made = Arc::new(Guest::connect(&self.shared, id).await?);
        if self.ended.load(Ordering::Acquire) {
            return Err(gone());
        }
        debug!(sandbox = %id, peer = %self.peer, "SSH: connected to the guest");
        Ok(guest.insert(made).clone())
    }

    /// The client's side has ended: in order, what it sent is still delivered; otherwise the guest's connection ends at
    /// once.
    pub async fn end(&self, in_order: bool) {
        self.ended.store(true, Ordering::Release);
        let guest = self.guest.lock().await.take();
        let links: Vec<Entry> = self.channels().values().cloned().collect();
        for entry in links {
            if let Entry::Linked(link) = entry {
                link.close_by_client();
            }
        }
        let Some(guest) = guest else { return };
        if in_order {
            self.no_channels().await;
            guest.farewell().await;
        }
        guest.valve.cut();
    }

    /// Waits until every channel has ended, but not for one that does not.
    async fn no_channels(&self) {
        let all = u32::try_from(self.shared.settings.max_channels).unwrap_or(u32::MAX);
        if timeout(LAST_CHANNELS, self.free.acquire_many(all)).await.is_err() {
            debug!(peer = %self.peer, "SSH: a channel did not end in time");
        }
    }

    /// Why the guest's connection was lost; disconnects the client when its channels have been told.
    fn lose(self: &Arc<Self>, id: &SandboxId, client: &Handle) -> String {
        let words = match self.shared.routes.get(id) {
            None => self.shared.why_not(id),
            Some(_) => format!("the connection to the SSH server of sandbox {id} was lost"),
        };
        if !self.lost.swap(true, Ordering::AcqRel) {
            let (connection, client, words) = (self.clone(), client.clone(), words.clone());
            tokio::spawn(async move {
                connection.no_channels().await;
                // A client that is gone already needs no words.
                let _ = client.disconnect(Disconnect::ConnectionLost, words, String::new()).await;
            });
        }
        words
    }
}

/// A channel from its opening to its end.
pub(super) async fn serve(connection: &Arc<Connection>, id: &SandboxId, kind: Kind, opening: Opening, handle: Handle) {
    let session = matches!(kind, Kind::Session);
    let guest = match connection.guest(id).await {
        Ok(guest) => guest,
        Err(Unreached(words)) => {
            info!(sandbox = %id, peer = %connection.peer, "SSH: {words}");
            return opening.tell(connection, session, words).await;
        }
    };
    let (to_guest, from_guest) = match guest.open(kind).await {
        Ok(opened) => opened,
        Err(_) if guest.is_lost() => {
            let words = connection.lose(id, &handle);
            return opening.tell(connection, session, words).await;
        }
        Err(reason) => return opening.reply.reject(reason).await,
    };
    let link = Arc::new(Link::new(connection.valve.clone(), guest, to_guest.split().1, from_guest, session));
    // What arrives is taken by the handler: the channel's own queue would make the whole connection wait.
    let Opening { channel, reply, permit: _permit } = opening;
    let (_, to_client) = channel.split();
    let channel = to_client.id();
    connection.channels().insert(channel, Entry::Linked(link.clone()));
    reply.accept().await;
    if connection.ended.load(Ordering::Acquire) {
        link.close_by_client();
    }
    link.run(&connection.valve, &to_client, &handle, || {
        let words = connection.lose(id, &handle);
        session.then_some(words)
    })
    .await;
    connection.channels().remove(&channel);
}

/// A channel that the client waits for.
pub(super) struct Opening {
    pub channel: Channel<Msg>,
    pub reply: ChannelOpenHandle,
    pub permit: OwnedSemaphorePermit,
}

impl Opening {
    /// Says that there is no guest: whoever wants to run something is told when it asks for it, as only that is shown to
    /// a user.
    async fn tell(self, connection: &Connection, session: bool, words: String) {
        if session {
            let told = Arc::new(Told { words, _permit: self.permit });
            connection.channels().insert(self.channel.id(), Entry::Told(told));
            self.reply.accept().await;
        } else {
            self.reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason: words }).await;
        }
    }
}
