//! The client's side: who it is, and what it may ask for.

use std::sync::Arc;
use std::time::Instant;

use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty, Sig};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info, warn};

use super::channel::{Request, STDERR};
use super::connection::{Connection, Entry, Opening, serve};
use super::guest::Kind;
use super::{Shared, WINDOW, sandboxes};
use crate::ids::SandboxId;

/// Bytes from a client that may wait for the guest; above, its windows are hardly opened any more.
const MOST_WAITING: i64 = 2 << 20;
/// What a window is opened by then: with none at all, nothing would ever ask for more.
const TRICKLE: u32 = 2;
/// Exit status of a session without a sandbox, as of ssh(1) itself.
const NO_SANDBOX: u32 = 255;
/// RFC 4254, 5.1: SSH_OPEN_RESOURCE_SHORTAGE.
const SHORTAGE: u32 = 4;

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
