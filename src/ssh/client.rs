//! The client's side: who it is, what it may ask for, and which channel is which.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty, Sig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::channel::{Link, Request, STDERR};
use super::guest::{Guest, Kind, Unreached};
use super::valve::Valve;
use super::{Shared, WINDOW, sandboxes};
use crate::ids::SandboxId;

/// Bytes from a client that may wait for the guest; above, its windows are hardly opened any more.
pub(super) const MOST_WAITING: i64 = 2 << 20;
/// What a window is opened by then: with none at all, nothing would ever ask for more.
const TRICKLE: u32 = 2;
/// Exit status of a session without a sandbox, as of ssh(1) itself.
const NO_SANDBOX: u32 = 255;
/// All channels of a connection have ended so long after their guest or client, or are given up.
const LAST_CHANNELS: Duration = Duration::from_secs(12);
/// RFC 4254, 5.1: SSH_OPEN_CONNECT_FAILED and SSH_OPEN_RESOURCE_SHORTAGE.
const CONNECT_FAILED: u32 = 2;
const SHORTAGE: u32 = 4;

/// One connection of a client.
pub(super) struct Connection {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// Holds up reading from the client, or ends the connection.
    pub valve: Arc<Valve>,
    /// True when somebody has logged in.
    pub login: watch::Sender<bool>,
    guest: tokio::sync::Mutex<Option<Arc<Guest>>>,
    channels: Mutex<HashMap<ChannelId, Entry>>,
    free: Arc<Semaphore>,
    /// Told once that the guest is gone.
    lost: AtomicBool,
    /// The client is gone: nothing is begun for it any more.
    ended: AtomicBool,
}

#[derive(Clone)]
enum Entry {
    /// Open on both sides.
    Linked(Arc<Link>),
    /// There is no guest; whatever is asked for is answered by this.
    Told(Arc<Told>),
}

/// What a channel without a guest has to say; it is counted as one until that is said.
struct Told {
    words: String,
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

    fn channels(&self) -> MutexGuard<'_, HashMap<ChannelId, Entry>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: ChannelId) -> Option<Entry> {
        self.channels().get(&id).cloned()
    }

    fn link(&self, id: ChannelId) -> Option<Arc<Link>> {
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

/// Answers the client's packets.
pub(super) struct Client {
    connection: Arc<Connection>,
    sandbox: Option<SandboxId>,
    /// One of the places for those who have not logged in.
    stranger: Option<OwnedSemaphorePermit>,
    place: Option<sandboxes::Place>,
}

impl Client {
    pub fn new(connection: Arc<Connection>, stranger: OwnedSemaphorePermit) -> Self {
        Self { connection, sandbox: None, stranger: Some(stranger), place: None }
    }

    fn shared(&self) -> &Shared {
        &self.connection.shared
    }

    async fn refuse(&self, why: &str) -> Auth {
        let peer = self.connection.peer;
        let pause = self.shared().logins().failed(peer.ip().into(), Instant::now());
        debug!(%peer, why, pause_ms = pause.as_millis(), "SSH: a login was refused");
        tokio::time::sleep(pause).await;
        Auth::reject()
    }

    /// The user is a sandbox and the key is ours; both are looked at, whichever is wrong.
    fn admits(&self, user: &str, key: &russh::keys::PublicKey) -> Result<SandboxId, &'static str> {
        let admitted = self.shared().admitted.is(key);
        match user.parse() {
            Ok(id) if admitted => Ok(id),
            Ok(_) => Err("the key is not SSH_PUBLIC_KEY"),
            Err(_) => Err("the user name is no sandbox id"),
        }
    }

    async fn open(
        &mut self,
        kind: Kind,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(id) = self.sandbox.clone() else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let Ok(permit) = self.connection.free.clone().try_acquire_owned() else {
            let most = self.shared().settings.max_channels;
            let reason =
                format!("this connection has {most} open channels, which is the limit (RUNNER_SSH_MAX_CHANNELS)");
            reply.reject(ChannelOpenFailure::Other { code: SHORTAGE, reason }).await;
            return Ok(());
        };
        let (connection, handle) = (self.connection.clone(), session.handle());
        tokio::spawn(async move {
            serve(&connection, &id, kind, Opening { channel, reply, permit }, handle).await;
        });
        Ok(())
    }

    async fn ask(&mut self, id: ChannelId, request: Request, session: &mut Session) -> Result<(), russh::Error> {
        match self.connection.entry(id) {
            None => session.channel_failure(id),
            Some(Entry::Linked(link)) => {
                let answer = link.ask(request).await;
                let told = if answer { session.channel_success(id) } else { session.channel_failure(id) };
                link.told();
                told
            }
            Some(Entry::Told(told)) => {
                session.channel_success(id)?;
                if request.starts() {
                    self.connection.channels().remove(&id);
                    session.extended_data(id, STDERR, format!("{}\r\n", told.words))?;
                    session.exit_status_request(id, NO_SANDBOX)?;
                    session.eof(id)?;
                    session.close(id)?;
                }
                Ok(())
            }
        }
    }
}

/// A channel from its opening to its end.
async fn serve(connection: &Arc<Connection>, id: &SandboxId, kind: Kind, opening: Opening, handle: Handle) {
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
struct Opening {
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    permit: OwnedSemaphorePermit,
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

impl server::Handler for Client {
    type Error = russh::Error;

    async fn auth_password(&mut self, _: &str, _: &str) -> Result<Auth, russh::Error> {
        Ok(self.refuse("passwords are not accepted").await)
    }

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        match self.admits(user, offer.public_key) {
            Ok(_) => Ok(Auth::Accept),
            Err(why) => Ok(self.refuse(why).await),
        }
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        match self.admits(user, key.public_key) {
            Ok(id) => {
                self.sandbox = Some(id);
                Ok(Auth::Accept)
            }
            Err(why) => Ok(self.refuse(why).await),
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let Some(id) = self.sandbox.clone() else { return Err(russh::Error::Inconsistent) };
        let peer = self.connection.peer;
        self.stranger = None;
        self.shared().logins().succeeded(peer.ip().into(), Instant::now());
        self.connection.login.send_replace(true);
        match self.shared().sandboxes.enter(&id) {
            Ok(place) => self.place = Some(place),
            Err(most) => {
                warn!(sandbox = %id, %peer, most, "SSH: a connection was refused, the sandbox has as many as it may");
                let words =
                    format!("sandbox {id} has {most} SSH connections, which is the limit (RUNNER_SSH_MAX_PER_SANDBOX)");
                self.sandbox = None;
                return session.disconnect(Disconnect::TooManyConnections, &words, "");
            }
        }
        info!(sandbox = %id, %peer, "SSH: logged in");
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.open(Kind::Session, channel, reply, session).await
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        from: &str,
        from_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let kind = Kind::Tcp { host: host.to_owned(), port, from: (from.to_owned(), from_port) };
        self.open(kind, channel, reply, session).await
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.open(Kind::Socket(path.to_owned()), channel, reply, session).await
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        if let Some(link) = self.connection.link(id) {
            link.from_client.data(None, data);
            if data.len() <= TRICKLE as usize && self.connection.valve.waiting() > MOST_WAITING {
                self.connection.valve.slow_down();
            }
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
        if let Some(link) = self.connection.link(id) {
            link.from_client.data(Some(stream), data);
        }
        Ok(())
    }

    /// Data is not taken back from the queue by being refused, so too much of it is answered by windows that hardly
    /// open: packets are still read, and the client's own windows with them.
    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        if self.connection.valve.waiting() > MOST_WAITING { TRICKLE } else { WINDOW }
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(link) = self.connection.link(id) {
            link.end_by_client();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        match self.connection.entry(id) {
            Some(Entry::Linked(link)) => link.close_by_client(),
            Some(Entry::Told(_)) => drop(self.connection.channels().remove(&id)),
            None => {}
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // A mode that russh does not know stands here as the end of the list.
        let modes = modes.iter().copied().filter(|(mode, _)| *mode != Pty::TTY_OP_END).collect();
        let request = Request::Pty { term: term.to_owned(), size: [columns, rows, width, height], modes };
        self.ask(id, request, session).await
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.ask(id, Request::Env(name.to_owned(), value.to_owned()), session).await
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.ask(id, Request::Shell, session).await
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        self.ask(id, Request::Exec(command.to_vec()), session).await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.ask(id, Request::Subsystem(name.to_owned()), session).await
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(link) = self.connection.link(id) {
            link.resize([columns, rows, width, height]).await;
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(link) = self.connection.link(id) {
            link.signal(signal).await;
        }
        Ok(())
    }
}
