use proptest::collection::vec;
use proptest::prelude::*;
use std::future::pending;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::direction::BUFFER;
use super::samples::{Frame, frames};
use super::*;

const INTERVAL: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);

/// A tunnel that runs until its run is over; its two ends as client and guest see them.
fn start(room: usize, pings: Option<Duration>) -> (DuplexStream, DuplexStream, oneshot::Sender<()>, JoinHandle<Ended>) {
    let ((client, client_leg), (guest, guest_leg)) = (duplex(room), duplex(room));
    let (stop, over) = oneshot::channel::<()>();
    let over = async move {
        if over.await.is_err() {
            pending::<()>().await;
        }
    };
    (client, guest, stop, tokio::spawn(run(client_leg, guest_leg, over, pings)))
}

async fn frame(from: &mut DuplexStream) -> Frame {
    frame_or_end(from).await.unwrap()
}

async fn frame_or_end(from: &mut DuplexStream) -> io::Result<Frame> {
    let mut bytes = Vec::new();
    loop {
        bytes.push(from.read_u8().await?);
        if let (mut frames, 1..) = Frame::read(&bytes) {
            return Ok(frames.remove(0));
        }
    }
}

/// Nothing arrives for so long.
async fn silent(from: &mut DuplexStream, time: Duration) {
    let read = timeout(time, from.read_u8()).await;
    assert!(read.is_err(), "{read:?} arrived");
}

#[tokio::test(start_paused = true)]
async fn each_side_ends_for_itself() {
    let (mut client, mut guest, _stop, tunnel) = start(64, None);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    guest.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    sleep(LONG).await;
    guest.write_all(b"a late answer").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "a late answer");
    let ended = tunnel.await.unwrap();
    assert!(matches!(ended.reason, Reason::Closed), "{ended:?}");
    assert_eq!((ended.to_guest, ended.to_client), (8, 13));
    assert!(!ended.aborted());
}

#[tokio::test(start_paused = true)]
async fn a_slow_side_bounds_what_waits() {
    for pings in [None, Some(INTERVAL)] {
        let room = 1000;
        let (mut client, mut guest, _stop, tunnel) = start(room, pings);
        let bytes: Vec<u8> = (0..3_u32 << 20).map(|at| (at % 251) as u8).collect();
        let mut written = 0;
        while let Ok(count) = timeout(LONG, guest.write(&bytes[written..])).await {
            written += count.unwrap();
        }
        assert!(written <= BUFFER + 2 * room, "{written} bytes wait");
        let mut received = vec![0; bytes.len()];
        let (sent, read) = tokio::join!(guest.write_all(&bytes[written..]), client.read_exact(&mut received));
        sent.unwrap();
        read.unwrap();
        assert!(received == bytes);
        assert!(!tunnel.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_run_is_told_to_a_websocket() {
    let (mut client, mut guest, stop, tunnel) = start(4096, Some(LONG));
    let message = Frame { last: true, opcode: 1, payload: b"last words".to_vec() };
    guest.write_all(&message.bytes(Leg::Guest, [0; 4])).await.unwrap();
    stop.send(()).unwrap();
    assert_eq!(frame(&mut client).await, message);
    let close = frame(&mut client).await;
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1001_u16.to_be_bytes()[..]));
    assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
    let ended = tunnel.await.unwrap();
    assert!(matches!(ended.reason, Reason::Over) && !ended.aborted(), "{ended:?}");
    assert_eq!(ended.to_client, 12, "the Close frame is ours");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_run_puts_nothing_into_a_frame() {
    let half = &Frame { last: true, opcode: 1, payload: vec![b'x'; 20] }.bytes(Leg::Guest, [0; 4])[..9];
    for (pings, sent) in [(Some(LONG), half), (None, &b""[..]), (Some(LONG), b"no frames")] {
        let (mut client, mut guest, stop, tunnel) = start(4096, pings);
        guest.write_all(sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        client.read_exact(&mut received).await.unwrap();
        stop.send(()).unwrap();
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
        assert!(matches!(tunnel.await.unwrap().reason, Reason::Over));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_run_does_not_wait_for_a_full_client() {
    let (_client, mut guest, stop, tunnel) = start(16, Some(LONG));
    assert!(timeout(INTERVAL, guest.write_all(&[0x82; 1 << 20])).await.is_err());
    stop.send(()).unwrap();
    assert!(matches!(tunnel.await.unwrap().reason, Reason::Over));
}

#[tokio::test(start_paused = true)]
async fn idle_legs_are_pinged_and_the_answers_stay_here() {
    let (mut client, mut guest, _stop, tunnel) = start(4096, Some(INTERVAL));
    silent(&mut client, INTERVAL - Duration::from_millis(1)).await;
    for _ in 0..5 {
        let began = Instant::now();
        let to_client = frame(&mut client).await;
        assert_eq!((to_client.opcode, to_client.payload.len()), (9, 8));
        client.write_all(&Frame::pong(to_client.payload.clone()).bytes(Leg::Client, [3, 1, 4, 1])).await.unwrap();
        let to_guest = frame(&mut guest).await;
        assert_eq!((to_guest.opcode, to_guest.payload.len()), (9, 8));
        assert_ne!(to_guest.payload, to_client.payload);
        guest.write_all(&Frame::pong(to_guest.payload).bytes(Leg::Guest, [0; 4])).await.unwrap();
        assert!(began.elapsed() <= INTERVAL + Duration::from_millis(2), "{:?}", began.elapsed());
    }
    drop((client, guest));
    let ended = tunnel.await.unwrap();
    assert_eq!((ended.to_guest, ended.to_client), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn pongs_of_others_pass() {
    let (mut client, mut guest, _stop, _tunnel) = start(4096, Some(INTERVAL));
    let ping = frame(&mut client).await;
    let mut other = ping.payload;
    other[7] ^= 1;
    let other = Frame::pong(other);
    client.write_all(&other.bytes(Leg::Client, [1, 2, 3, 4])).await.unwrap();
    let first = frame(&mut guest).await;
    let second = if first.opcode == 9 { frame(&mut guest).await } else { first };
    assert_eq!(second, other);
}

#[tokio::test(start_paused = true)]
async fn traffic_puts_a_ping_off() {
    let (mut client, mut guest, _stop, _tunnel) = start(4096, Some(INTERVAL));
    let message = Frame { last: true, opcode: 2, payload: vec![1] };
    for _ in 0..10 {
        sleep(INTERVAL - Duration::from_millis(10)).await;
        for (from, to, leg) in [(&mut guest, &mut client, Leg::Guest)] {
            from.write_all(&message.bytes(leg, [0; 4])).await.unwrap();
            assert_eq!(frame(to).await, message);
        }
        // This one has nothing to do with the other leg, and answers its pings.
        if let Ok(ping) = timeout(Duration::ZERO, frame(&mut guest)).await {
            guest.write_all(&Frame::pong(ping.payload).bytes(Leg::Guest, [0; 4])).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_two_intervals_after_the_ping() {
    for dead in [Leg::Client, Leg::Guest] {
        let (mut client, mut guest, _stop, tunnel) = start(4096, Some(INTERVAL));
        let began = Instant::now();
        let (alive, leg) = if dead == Leg::Client { (&mut guest, Leg::Guest) } else { (&mut client, Leg::Client) };
        let answers = async {
            while let Ok(ping) = frame_or_end(alive).await {
                alive.write_all(&Frame::pong(ping.payload).bytes(leg, [5; 4])).await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(tunnel, answers);
        let ended = ended.unwrap();
        assert!(matches!(ended.reason, Reason::Dead(leg) if leg == dead), "{ended:?}");
        assert!(ended.aborted());
        let took = began.elapsed();
        assert!(took >= 3 * INTERVAL && took < 3 * INTERVAL + Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_listened_to_is_not_dead() {
    let (mut client, mut guest, _stop, tunnel) = start(64, Some(INTERVAL));
    // The guest does not read, so that nothing more of the client is read, not even its answers.
    let big = Frame { last: true, opcode: 2, payload: vec![0; 2 * BUFFER] }.bytes(Leg::Client, [0; 4]);
    let (mut reader, mut writer) = split(&mut client);
    let sending = async {
        writer.write_all(&big).await.unwrap();
        pending::<()>().await
    };
    let reading = async { while reader.read_u8().await.is_ok() {} };
    let others = async { tokio::join!(sending, reading) };
    let guest_speaks = async {
        // The guest is alive all the time.
        for _ in 0..20 {
            sleep(INTERVAL).await;
            guest.write_all(&Frame { last: true, opcode: 1, payload: vec![] }.bytes(Leg::Guest, [0; 4])).await.unwrap();
        }
    };
    tokio::select! {
        _ = others => unreachable!(),
        () = guest_speaks => {}
    }
    assert!(!tunnel.is_finished());
}

#[tokio::test(start_paused = true)]
async fn no_ping_into_a_frame_nor_behind_a_close_frame_nor_into_other_protocols() {
    let half = &Frame { last: true, opcode: 1, payload: vec![b'x'; 20] }.bytes(Leg::Guest, [0; 4])[..9];
    let close = &Frame { last: true, opcode: 8, payload: vec![] }.bytes(Leg::Guest, [0; 4])[..];
    for (sent, none_to_guest) in [(half, false), (close, true), (b"SSH-2.0-x", true)] {
        let (mut client, mut guest, _stop, tunnel) = start(4096, Some(INTERVAL));
        guest.write_all(sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(received, sent);
        if none_to_guest {
            silent(&mut guest, LONG).await;
        } else {
            assert_eq!(frame(&mut guest).await.opcode, 9);
            guest.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
        silent(&mut client, INTERVAL + INTERVAL / 2).await;
        assert!(!tunnel.is_finished());
    }
    let (mut client, mut guest, _stop, _tunnel) = start(4096, None);
    silent(&mut client, LONG).await;
    silent(&mut guest, LONG).await;
}

#[tokio::test(start_paused = true)]
async fn half_closed_websockets_stay_open() {
    let (mut client, mut guest, _stop, tunnel) = start(4096, Some(INTERVAL));
    client.shutdown().await.unwrap();
    assert_eq!(guest.read(&mut [0; 9]).await.unwrap(), 0);
    for _ in 0..10 {
        sleep(3 * INTERVAL).await;
        let message = Frame { last: true, opcode: 1, payload: b"still here".to_vec() };
        guest.write_all(&message.bytes(Leg::Guest, [0; 4])).await.unwrap();
        let mut received = frame(&mut client).await;
        while received.opcode == 9 {
            received = frame(&mut client).await;
        }
        assert_eq!(received, message);
    }
    drop((client, guest));
    assert!(!matches!(tunnel.await.unwrap().reason, Reason::Dead(_)));
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_sent_before_it_went_arrives() {
    let (mut client, mut guest, _stop, tunnel) = start(1 << 20, None);
    let words = vec![b'w'; 300_000];
    guest.write_all(&words).await.unwrap();
    drop(guest);
    client.write_all(b"into the void").await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert!(received == words, "{} bytes arrived", received.len());
    let ended = tunnel.await.unwrap();
    assert!(matches!(ended.reason, Reason::Broken(Leg::Guest, _)), "{ended:?}");
}

async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn a_reset_ends_both_and_can_be_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut client, client_leg) = pair(&listener).await;
    let (guest, guest_leg) = pair(&listener).await;
    let tunnel = tokio::spawn(async move {
        let (mut client_leg, mut guest_leg) = (client_leg, guest_leg);
        let ended = run(&mut client_leg, &mut guest_leg, pending(), None).await;
        if ended.aborted() {
            client_leg.set_zero_linger().unwrap();
        }
        ended
    });
    guest.set_zero_linger().unwrap();
    drop(guest);
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let ended = tunnel.await.unwrap();
    assert!(matches!(ended.reason, Reason::Broken(Leg::Guest, _)), "{ended:?}");
    assert!(ended.reason.to_string().starts_with("the guest's connection broke: "), "{}", ended.reason);
}

#[test]
fn an_idle_tunnel_is_small() {
    let (client, guest) = (duplex(1).0, duplex(1).0);
    let ends = size_of_val(&client) + size_of_val(&guest);
    let size = size_of_val(&run(client, guest, pending(), Some(INTERVAL)));
    // The legs are there twice: as arguments and in use.
    assert!(size <= 2 * ends + 640, "{size} bytes, of which {ends} are the legs");
}

/// What a side does: frames, each in pieces with a pause before each.
type Script = Vec<(Frame, Vec<(usize, u64)>)>;

fn script() -> impl Strategy<Value = Script> {
    // A pause may be one and a half intervals: long enough for a ping, too short for death.
    let piece = (0..5000_usize, prop_oneof![3 => Just(0), 1 => 0..45_000_u64]);
    (frames(), vec(vec(piece, 1..3), 40)).prop_map(|(frames, pieces)| frames.into_iter().zip(pieces).collect())
}

async fn perform(mut to: WriteHalf<DuplexStream>, from: Leg, script: Script, pings: Arc<Mutex<Vec<Frame>>>) {
    for (frame, pieces) in script {
        let answers = std::mem::take(&mut *pings.lock().unwrap());
        for ping in answers {
            to.write_all(&Frame::pong(ping.payload).bytes(from, [2, 7, 1, 8])).await.unwrap();
        }
        let bytes = frame.bytes(from, [1, 6, 1, 8]);
        let mut rest = &bytes[..];
        for (length, pause) in pieces {
            sleep(Duration::from_millis(pause)).await;
            let piece = rest.split_off(..length.min(rest.len())).unwrap_or_default();
            to.write_all(piece).await.unwrap();
        }
        to.write_all(rest).await.unwrap();
    }
    to.shutdown().await.unwrap();
}

/// All frames that arrive but our pings, which are put aside to be answered.
async fn listen(mut from: ReadHalf<DuplexStream>, pings: Arc<Mutex<Vec<Frame>>>) -> Vec<Frame> {
    let (mut frames, mut bytes, mut chunk) = (Vec::new(), Vec::new(), vec![0; 3000]);
    loop {
        let length = from.read(&mut chunk).await.unwrap();
        if length == 0 {
            assert!(bytes.is_empty(), "ends inside a frame: {bytes:?}");
            return frames;
        }
        bytes.extend(&chunk[..length]);
        let (read, length) = Frame::read(&bytes);
        bytes.drain(..length);
        let (ours, others): (Vec<_>, Vec<_>) =
            read.into_iter().partition(|frame| frame.opcode == 9 && frame.payload.len() == 8);
        frames.extend(others);
        pings.lock().unwrap().extend(ours);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn conversations_arrive_as_they_were_held(up in script(), down in script(), room in 1..9000_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (to_guest, to_client, ended) = runtime.block_on(async {
            let (client, guest, _stop, tunnel) = start(room, Some(INTERVAL));
            let ((client_read, client_write), (guest_read, guest_write)) = (split(client), split(guest));
            let (of_client, of_guest) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
            let (_, _, to_client, to_guest, ended) = tokio::join!(
                perform(client_write, Leg::Client, up.clone(), Arc::clone(&of_client)),
                perform(guest_write, Leg::Guest, down.clone(), Arc::clone(&of_guest)),
                listen(client_read, of_client),
                listen(guest_read, of_guest),
                tunnel,
            );
            (to_guest, to_client, ended.unwrap())
        });
        let sent = |script: Script| script.into_iter().map(|(frame, _)| frame).collect::<Vec<_>>();
        prop_assert!(matches!(ended.reason, Reason::Closed), "{:?}", ended);
        prop_assert!(to_guest == sent(up), "the guest got something else");
        prop_assert!(to_client == sent(down), "the client got something else");
    }
}
