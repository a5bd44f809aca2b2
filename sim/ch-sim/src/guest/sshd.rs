//! The SSH server itself, on a thread of its own: who is let in, sessions with commands or a shell. Everything else is
//! refused; tests that need more put a real server in front of the guest.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Pty, SshId};
use tokio::sync::{mpsc, oneshot};

use super::ssh::Variables;

const USER: &str = "daytona";
const PASSWORD: &str = "sandbox-ssh";

/// A script for the guest's shell.
pub struct Exec {
    pub script: String,
    pub env: Variables,
    done: Option<oneshot::Sender<(i32, String)>>,
}

impl Exec {
    /// True when nobody waits for its end any more.
    pub fn is_abandoned(&self) -> bool {
        self.done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Tells how it ended.
    pub fn done(&mut self, code: i32, output: String) {
        // Whoever waited may be gone.
        let _ = self.done.take().map(|done| done.send((code, output)));
    }
}

/// Where new connections go.
pub struct Connections(mpsc::UnboundedSender<UnixStream>);

impl Connections {
    /// Hands a connection to the server.
    pub fn open(&self, stream: UnixStream) -> io::Result<()> {
        self.0.send(stream).map_err(|_| io::Error::other("the SSH server has ended"))
    }
}

type Run = Arc<dyn Fn(Exec) + Send + Sync>;

/// Starts the server's thread, which ends with the guest.
pub fn start(run: impl Fn(Exec) + Send + Sync + 'static) -> io::Result<Connections> {
    let (sender, mut streams) = mpsc::unbounded_channel::<UnixStream>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
    let config = Arc::new(server::Config {
        server_id: SshId::Standard("SSH-2.0-ch-sim".into()),
        auth_rejection_time: Duration::from_millis(10),
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        keys: vec![key],
        ..server::Config::default()
    });
    let run: Run = Arc::new(run);
    std::thread::Builder::new().name("sshd".to_owned()).spawn(move || {
        runtime.block_on(async move {
            while let Some(stream) = streams.recv().await {
                let (config, handler) = (config.clone(), Server { run: run.clone(), sessions: HashMap::new() });
                tokio::spawn(async move {
                    if let Ok(stream) = tokio::net::UnixStream::from_std(stream)
                        && let Ok(session) = server::run_stream(config, stream, handler).await
                    {
                        // How a connection ends is its client's business.
                        let _ = session.await;
                    }
                });
            }
        });
    })?;
    Ok(Connections(sender))
}

struct Server {
    run: Run,
    sessions: HashMap<ChannelId, Open>,
}

#[derive(Default)]
struct Open {
    env: Variables,
    /// Lines for a shell; none while there is no shell.
    lines: Option<mpsc::UnboundedSender<String>>,
    rest: Vec<u8>,
}

impl Server {
    fn run(run: &Run, script: String, env: Variables) -> oneshot::Receiver<(i32, String)> {
        let (done, ended) = oneshot::channel();
        run(Exec { script, env, done: Some(done) });
        ended
    }
}

async fn end(handle: &server::Handle, id: ChannelId, code: i32) {
    // A client that is gone needs to be told nothing.
    let _ = handle.exit_status_request(id, u32::try_from(code).unwrap_or(255)).await;
    let _ = handle.eof(id).await;
    let _ = handle.close(id).await;
}

impl server::Handler for Server {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        Ok(if (user, password) == (USER, PASSWORD) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(if user == USER { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.sessions.insert(channel.id(), Open::default());
        reply.accept().await;
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(open) = self.sessions.get_mut(&id) {
            open.env.insert(name.to_owned(), value.to_owned());
        }
        session.channel_success(id)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        let env = self.sessions.get(&id).map(|open| open.env.clone()).unwrap_or_default();
        session.channel_success(id)?;
        let ended = Self::run(&self.run, String::from_utf8_lossy(command).into_owned(), env);
        let handle = session.handle();
        tokio::spawn(async move {
            let (code, output) = ended.await.unwrap_or((255, String::new()));
            let _ = handle.data(id, output).await;
            end(&handle, id, code).await;
        });
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, _: &str, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    /// One script per line, until its input ends or a line says `exit`.
    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let Some(open) = self.sessions.get_mut(&id) else { return session.channel_failure(id) };
        session.channel_success(id)?;
        let (lines, mut script) = mpsc::unbounded_channel::<String>();
        open.lines = Some(lines);
        let (run, env, handle) = (self.run.clone(), open.env.clone(), session.handle());
        tokio::spawn(async move {
            let mut last = 0;
            while let Some(line) = script.recv().await {
                let mut words = line.split_whitespace();
                if words.next() == Some("exit") {
                    last = words.next().and_then(|code| code.parse().ok()).unwrap_or(last);
                    break;
                }
                let (code, output) = Self::run(&run, line, env.clone()).await.unwrap_or((255, String::new()));
                last = code;
                let _ = handle.data(id, output).await;
            }
            end(&handle, id, last).await;
        });
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), russh::Error> {
        let Some(open) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some(lines) = &open.lines else { return Ok(()) };
        open.rest.extend_from_slice(data);
        while let Some(end) = open.rest.iter().position(|byte| b"\r\n".contains(byte)) {
            let line: Vec<u8> = open.rest.drain(..=end).collect();
            // A shell that has ended reads no more.
            let _ = lines.send(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        if let Some(open) = self.sessions.get_mut(&id) {
            open.lines = None;
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.sessions.remove(&id);
        Ok(())
    }
}
