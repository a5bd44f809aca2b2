//! Starting, interrupting and ending the HTTP server, which lives in a thread with its own runtime.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::faults::{DownMode, FaultPlan};
use crate::handle::Handle;
use crate::http;
use crate::http::conn::{Conn, Connections};
use crate::options::Options;
use crate::state::Core;

/// How often the age rules are looked at, in real time.
const TICK: Duration = Duration::from_millis(20);
/// How long the server tries to get its port back after an outage.
const REBIND_TRIES: u32 = 250;

/// Why a simulator could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// Address of the options.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The server's thread could not be made.
    #[error("cannot start the server thread")]
    Thread {
        /// Cause.
        source: std::io::Error,
    },
    /// The server did not take the listener.
    #[error("cannot serve on {address}")]
    Serve {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// Entry point of the library.
#[derive(Debug)]
pub struct Sim;

impl Sim {
    /// Starts a simulator; it serves when this returns, and stops when the handle is dropped.
    pub fn start(options: Options) -> Result<Handle, Error> {
        let address = options.listen;
        let listener = TcpListener::bind(address);
        let listener = listener.map_err(|source| Error::Bind { address, source })?;
        let address = listener.local_addr().map_err(|source| Error::Bind { address, source })?;
        let (sender, receiver) = unbounded_channel();
        let shared = Arc::new(Shared {
            core: Arc::new(Core::new(options)),
            connections: Connections::default(),
            address,
            control: sender,
            plan_number: AtomicU64::new(0),
        });
        let (ready, started) = std::sync::mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("daytona-sim".to_owned())
            .spawn(move || {
                let system = actix_web::rt::System::new();
                system.block_on(run(for_thread, listener, receiver, ready));
            })
            .map_err(|source| Error::Thread { source })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Handle::new(shared, thread)),
            Ok(Err(source)) => Err(Error::Serve { address, source }),
            Err(_) => Err(Error::Serve { address, source: std::io::Error::other("the server thread ended") }),
        }
    }
}

/// What the server's thread is told.
#[derive(Debug)]
pub(crate) enum Control {
    /// Close the listener and every connection.
    Refuse { back_after: Option<Duration>, done: Option<Sender<()>> },
    /// Listen again.
    Accept { done: Option<Sender<()>> },
    /// End the outage of the plan with this number after a while.
    LiftAfter { after: Duration, plan: u64 },
    /// End.
    Stop,
}

/// What requests, the handle and the server's thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub core: Arc<Core>,
    pub connections: Connections,
    pub address: SocketAddr,
    control: UnboundedSender<Control>,
    plan_number: AtomicU64,
}

impl Shared {
    /// Tells the server's thread something; ignored when it has ended.
    pub fn control(&self, control: Control) {
        let _ = self.control.send(control);
    }

    /// Replaces the ordered failures and starts or ends the outage of kind [`DownMode::Close`].
    pub fn set_faults(&self, plan: FaultPlan) {
        let number = self.plan_number.fetch_add(1, Ordering::Relaxed) + 1;
        let down = plan.down;
        self.core.change(|state| state.faults = plan);
        if let Some(down) = down.filter(|down| down.mode == DownMode::Close) {
            self.connections.cut_all();
            if let Some(ms) = down.for_ms {
                let after = Duration::from_millis(ms);
                self.control(Control::LiftAfter { after, plan: number });
            }
        }
    }

    fn lift(&self, plan: u64) {
        if self.plan_number.load(Ordering::Relaxed) == plan {
            self.core.change(|state| state.faults.down = None);
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut controls: UnboundedReceiver<Control>,
    ready: Sender<std::io::Result<()>>,
) {
    let mut server = match serve(&shared, listener) {
        Ok(server) => Some(server),
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let core = Arc::clone(&shared.core);
    actix_web::rt::spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            core.tick();
        }
    });
    while let Some(control) = controls.recv().await {
        match control {
            Control::Stop => break,
            Control::Refuse { back_after, done } => {
                stop(server.take()).await;
                answer(done);
                if let Some(after) = back_after {
                    later(&shared, after, |shared| {
                        shared.control(Control::Accept { done: None });
                    });
                }
            }
            Control::Accept { done } => {
                if server.is_none() {
                    server = back(&shared).await;
                }
                answer(done);
            }
            Control::LiftAfter { after, plan } => {
                later(&shared, after, move |shared| shared.lift(plan));
            }
        }
    }
    stop(server).await;
}

fn later(shared: &Arc<Shared>, after: Duration, act: impl FnOnce(&Shared) + 'static) {
    let shared = Arc::clone(shared);
    actix_web::rt::spawn(async move {
        tokio::time::sleep(after).await;
        act(&shared);
    });
}

fn answer(done: Option<Sender<()>>) {
    if let Some(done) = done {
        let _ = done.send(());
    }
}

async fn stop(server: Option<ServerHandle>) {
    if let Some(server) = server {
        server.stop(false).await;
    }
}

/// Listens on the old address again. The runners' grace period starts anew, as after a restart of the API.
async fn back(shared: &Arc<Shared>) -> Option<ServerHandle> {
    for _ in 0..REBIND_TRIES {
        let server = TcpListener::bind(shared.address).and_then(|socket| serve(shared, socket));
        if let Ok(server) = server {
            let now = shared.core.clock.now();
            shared.core.change(|state| {
                state.service_start = now;
                state.faults.down = None;
                state.event("the API listens again".to_owned());
            });
            return Some(server);
        }
        tokio::time::sleep(TICK).await;
    }
    let address = shared.address;
    let line = format!("cannot listen on {address} again: the port is taken");
    shared.core.change(|state| state.event(line));
    None
}

fn serve(shared: &Arc<Shared>, listener: TcpListener) -> std::io::Result<ServerHandle> {
    let data = web::Data::from(Arc::clone(shared));
    let for_connections = Arc::clone(shared);
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(http::dispatch)))
        .on_connect(move |stream, extensions| {
            let stream = stream.downcast_ref::<actix_web::rt::net::TcpStream>();
            let conn = stream.and_then(|stream| for_connections.connections.add(stream));
            if let Some(conn) = conn {
                extensions.insert::<Arc<Conn>>(conn);
            }
        })
        .workers(1)
        .disable_signals()
        .listen(listener)?
        .run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(handle)
}
