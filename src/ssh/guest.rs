//! The connection to a guest's SSH server: one for each connection of a client, shared by its channels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::client::{self, Handle, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure, Sig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use super::queue::{Item, Queue};
use super::valve::{Held, Valve};
use super::{Shared, WINDOW, algorithms};
use crate::error::chain;
use crate::ids::SandboxId;
use crate::net;

/// What every guest takes (PROTOCOL.md 8); no secret, it opens nothing that is not reached through the namespace.
const PASSWORD: &str = "sandbox-ssh";
/// A guest that runs accepts at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);
/// Key exchange and login, once connected.
const LOGIN: Duration = Duration::from_secs(15);
/// Opening one channel: for `direct-tcpip` the guest connects somewhere meanwhile.
const OPEN: Duration = Duration::from_secs(150);
/// Answer to a request, such as to start a program.
const ANSWER: Duration = Duration::from_secs(30);
/// The last look whether the guest has read all.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes from the guest that may wait for the client; the guest's windows come on top.
const MOST_WAITING: i64 = 2 << 20;

/// Why there is no connection, in words for the client's user.
#[derive(Debug)]
pub(super) struct Unreached(pub String);

/// What a client wants to be connected to.
#[derive(Debug)]
pub(super) enum Kind {
    /// A program.
    Session,
    /// `direct-tcpip`: a TCP address as the guest sees it, and who asked.
    Tcp { host: String, port: u32, from: (String, u32) },
    /// `direct-streamlocal@openssh.com`: a socket's path in the guest.
    Socket(String),
}

/// The guest's side of one channel.
#[derive(Debug)]
pub(super) struct Incoming {
    /// What the guest has said.
    pub queue: Queue,
    /// Who waits for answers to requests, in order.
    answers: Mutex<std::collections::VecDeque<oneshot::Sender<bool>>>,
}

impl Incoming {
    fn new(valve: Arc<Valve>) -> Self {
        Self { queue: Queue::new(valve), answers: Mutex::default() }
    }

    /// The answer to the request that is sent next; false when none comes.
    pub fn answer(&self) -> impl Future<Output = bool> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back(sender);
        async move { matches!(timeout(ANSWER, receiver).await, Ok(Ok(true))) }
    }

    fn answered(&self, answer: bool) {
        let next = self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        // Whoever asked may have given up.
        let _ = next.map(|waiting| waiting.send(answer));
    }

    fn lost(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.queue.push(Item::Lost);
    }
}

/// The open channels.
#[derive(Debug)]
struct Channels {
    open: Mutex<HashMap<ChannelId, Arc<Incoming>>>,
    /// The connection has ended.
    lost: AtomicBool,
    valve: Arc<Valve>,
}

impl Channels {
    fn open(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Incoming>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: ChannelId) -> Option<Arc<Incoming>> {
        self.open().get(&id).cloned()
    }

    /// The channel, which is new to whoever of its two sides comes first: who opened it and who hears of it run side by
    /// side.
    fn entry(&self, id: ChannelId) -> Arc<Incoming> {
        let mut open = self.open();
        // Looked at under the lock, as the end of the connection does.
        if self.lost.load(Ordering::Acquire) {
            let incoming = Arc::new(Incoming::new(self.valve.clone()));
            incoming.lost();
            return incoming;
        }
        open.entry(id).or_insert_with(|| Arc::new(Incoming::new(self.valve.clone()))).clone()
    }

    fn lose(&self) {
        let mut open = self.open();
        self.lost.store(true, Ordering::Release);
        for (_, channel) in open.drain() {
            channel.lost();
        }
    }

    fn push(&self, id: ChannelId, item: Item) {
        if let Some(channel) = self.get(id) {
            channel.queue.push(item);
        }
    }
}

/// A connection that is logged in.
pub(super) struct Guest {
    handle: Handle<Events>,
    channels: Arc<Channels>,
    /// Holds up reading from the guest, or ends the connection.
    pub valve: Arc<Valve>,
    over: JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.over.abort();
        self.valve.cut();
    }
}

/// Ends a connection that did not come about.
struct Unfinished(Option<Arc<Valve>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(valve) = self.0.take() {
            valve.cut();
        }
    }
}

impl Guest {
    /// Connects to the SSH server of a sandbox that runs, in its namespace, and logs in.
    pub async fn connect(shared: &Shared, id: &SandboxId) -> Result<Self, Unreached> {
        let settings = &shared.settings;
        let failed = |why: String| {
            Unreached(format!("the SSH server of sandbox {id} cannot be reached: {why}; is it running in the guest?"))
        };
        // The route is held no longer than it takes to connect.
        let (stream, over) = {
            let Some(route) = shared.routes.get(id) else { return Err(Unreached(shared.why_not(id))) };
            let over = route.closed();
            let stream = tokio::select! {
                stream = route.netns.connect(net::guest(settings.guest_port), CONNECT) => stream,
                () = route.closed() => return Err(Unreached(shared.why_not(id))),
            };
            (stream.map_err(|error| failed(chain(&error)))?, over)
        };
        // Closed by a reset: a farewell that the guest does not live to answer would hold the namespace.
        stream.set_zero_linger().map_err(|error| failed(error.to_string()))?;
        let valve = Valve::new(MOST_WAITING);
        let mut unfinished = Unfinished(Some(valve.clone()));
        let channels =
            Arc::new(Channels { open: Mutex::default(), lost: AtomicBool::new(false), valve: valve.clone() });
        let events = Events(channels.clone());
        let cut = valve.clone();
        let over = tokio::spawn(async move {
            over.await;
            cut.cut();
        });
        let login = async {
            let held = Held::new(stream, valve.clone());
            let mut handle = client::connect_stream(shared.client.clone(), held, events).await?;
            let login = handle.authenticate_password(&settings.guest_user, PASSWORD).await?;
            Ok::<_, russh::Error>((handle, login.success()))
        };
        let handle = match timeout(LOGIN, login).await {
            Ok(Ok((handle, true))) => handle,
            Ok(Ok((_, false))) => return Err(failed(format!("it does not let in the user {}", settings.guest_user))),
            Ok(Err(error)) => return Err(failed(chain(&error))),
            Err(_) => return Err(failed(format!("it does not answer within {} s", LOGIN.as_secs()))),
        };
        unfinished.0 = None;
        Ok(Self { handle, channels, valve, over })
    }

    /// Opens a channel.
    pub async fn open(&self, kind: Kind) -> Result<(Channel<Msg>, Arc<Incoming>), ChannelOpenFailure> {
        let broken = |why: &str| ChannelOpenFailure::Other { code: 2, reason: why.to_owned() };
        let opening = async {
            match kind {
                Kind::Session => self.handle.channel_open_session().await,
                Kind::Tcp { host, port, from } => {
                    self.handle.channel_open_direct_tcpip(host, port, from.0, from.1).await
                }
                Kind::Socket(path) => self.handle.channel_open_direct_streamlocal(path).await,
            }
        };
        let channel = match timeout(OPEN, opening).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => return Err(reason),
            Ok(Err(_)) => return Err(broken("the connection to the sandbox was lost")),
            Err(_) => {
                // It may still be opened, and nobody would take what comes.
                self.valve.cut();
                return Err(broken("the sandbox does not answer"));
            }
        };
        let incoming = self.channels.entry(channel.id());
        Ok((channel, incoming))
    }

    /// Nobody takes any more what comes on this channel.
    pub fn forget(&self, id: ChannelId) {
        self.channels.open().remove(&id);
    }

    /// Returns when the guest has read all that was sent, or does not answer.
    pub async fn farewell(&self) {
        if !self.valve.is_cut() && timeout(FAREWELL, self.handle.send_ping()).await.is_err() {
            debug!("a guest's SSH server did not answer the last ping");
        }
    }

    /// True when the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.valve.is_cut() || self.handle.is_closed()
    }
}

/// How the guest is spoken to.
pub(super) fn config() -> client::Config {
    client::Config {
        client_id: russh::SshId::Standard("SSH-2.0-runner-ch".into()),
        window_size: WINDOW,
        preferred: algorithms(),
        // That the guest lives is known from elsewhere, and answers may wait behind what a slow client does not take.
        keepalive_interval: None,
        inactivity_timeout: None,
        ..client::Config::default()
    }
}

/// Takes what the guest says. Never waits: the valve keeps it from being too much.
struct Events(Arc<Channels>);

impl Drop for Events {
    fn drop(&mut self) {
        self.0.valve.cut();
        self.0.lose();
    }
}

impl client::Handler for Events {
    type Error = russh::Error;

    /// Not checked (PROTOCOL.md 8): the way leads through the sandbox's own namespace, and ends there in any case.
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        drop(self.0.entry(id));
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        if let Some(channel) = self.0.get(id) {
            channel.queue.data(None, data);
        }
        Ok(())
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        stream: u32,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(channel) = self.0.get(id) {
            channel.queue.data(Some(stream), data);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.0.push(id, Item::Eof);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        // It stays until it is forgotten: whoever opened it may not have come to look for it yet.
        if let Some(channel) = self.0.get(id) {
            channel.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
            channel.queue.push(Item::Close);
        }
        Ok(())
    }

    async fn channel_success(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(channel) = self.0.get(id) {
            channel.answered(true);
        }
        Ok(())
    }

    async fn channel_failure(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(channel) = self.0.get(id) {
            channel.answered(false);
        }
        Ok(())
    }

    async fn exit_status(&mut self, id: ChannelId, status: u32, _: &mut Session) -> Result<(), russh::Error> {
        self.0.push(id, Item::Status(status));
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        id: ChannelId,
        name: Sig,
        core_dumped: bool,
        message: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.0.push(id, Item::Signal { name, core_dumped, message: message.to_owned() });
        Ok(())
    }
}
