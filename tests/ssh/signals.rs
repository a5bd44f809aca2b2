//! What OpenSSH's client does not do by itself: signals, and requests in an order of one's own.

use std::sync::Arc;

use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{ChannelMsg, Sig, client};

use crate::harness::{PORT, World};

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn connect(world: &World) -> client::Handle<Anyone> {
    let mut handle = client::connect(Arc::default(), ("127.0.0.1", PORT), Anyone).await.unwrap();
    let key = Arc::new(load_secret_key(world.host.path("client"), None).unwrap());
    let login = handle.authenticate_publickey("box", PrivateKeyWithHashAlg::new(key, None)).await.unwrap();
    assert!(login.success());
    handle
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(crate::common::SOON, work).await.expect("in time") })
}

#[test]
fn a_signal_reaches_the_program_and_its_end_is_told() {
    let world = World::new();
    block_on(async {
        let handle = connect(&world).await;
        let mut channel = handle.channel_open_session().await.unwrap();
        channel.exec(true, "echo up; exec sleep 1000").await.unwrap();
        let mut told = Vec::new();
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    assert_eq!(&data[..], b"up\n");
                    channel.signal(Sig::TERM).await.unwrap();
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, .. } => {
                    told.push(format!("{signal_name:?} {core_dumped}"));
                }
                ChannelMsg::Success => told.push("success".to_owned()),
                ChannelMsg::Eof => told.push("eof".to_owned()),
                ChannelMsg::Close => told.push("close".to_owned()),
                _ => {}
            }
        }
        assert_eq!(told, ["success", "TERM false", "eof", "close"]);
    });
}

#[test]
fn answers_come_to_those_who_want_them_and_in_order() {
    let world = World::new();
    block_on(async {
        let handle = connect(&world).await;
        let mut channel = handle.channel_open_session().await.unwrap();
        // All at once, some without an answer.
        channel.set_env(true, "ONE", "1").await.unwrap();
        channel.set_env(false, "TWO", "2").await.unwrap();
        channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
        channel.agent_forward(true).await.unwrap();
        channel.exec(true, "echo $ONE$TWO").await.unwrap();
        channel.exec(true, "echo not this one").await.unwrap();
        let (mut answers, mut output) = (Vec::new(), Vec::new());
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Success => answers.push(true),
                ChannelMsg::Failure => answers.push(false),
                ChannelMsg::Data { data } => output.extend_from_slice(&data),
                _ => {}
            }
        }
        assert_eq!(String::from_utf8_lossy(&output), "12\n");
        assert_eq!(answers, [true, false, false, true, false]);
    });
}

/// A keepalive is answered, as everything else that concerns the whole connection is refused.
#[test]
fn a_connection_is_kept_alive() {
    let world = World::bare();
    block_on(async {
        let handle = connect(&world).await;
        handle.send_ping().await.unwrap();
        assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err());
    });
}
