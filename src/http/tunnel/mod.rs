//! The bytes after a 101 answer: both ways, with back-pressure and half-close, until both sides have ended,
//! one breaks, or the sandbox's run is over. WebSockets are pinged on both legs, so that nothing between
//! takes them for idle and a peer that is gone is noticed.
//!
//! Many tunnels are open and idle, so one holds no buffer while nothing is under way.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use direction::{Broken, Direction, Pause, Seen};
use frames::Frames;
use pings::{Due, Pinger};

mod direction;
mod frames;
pub mod logs;
mod pings;

/// A client reads this in the Close frame.
const GOING_AWAY: &str = "the sandbox has stopped";

/// One end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// Who made the request: the client of the WebSocket.
    Client,
    /// The sandbox's guest: the server of the WebSocket.
    Guest,
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Guest => "guest",
        })
    }
}

/// How a tunnel ended.
#[derive(Debug)]
pub struct Ended {
    /// Bytes of the client that were passed to the guest.
    pub to_guest: u64,
    /// Bytes of the guest that were passed to the client.
    pub to_client: u64,
    /// Why it ended.
    pub reason: Reason,
}

impl Ended {
    /// Whether a leg is gone without having said so. The other one should learn it by a reset; to do that, lend
    /// [`run`] both legs (`&mut`) and set their linger time to zero before they are dropped.
    pub fn aborted(&self) -> bool {
        matches!(self.reason, Reason::Broken(..) | Reason::Dead(_))
    }
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum Reason {
    /// Both sides have ended.
    Closed,
    /// The sandbox's run is over.
    Over,
    /// This leg broke.
    Broken(Leg, io::Error),
    /// This leg answered no ping.
    Dead(Leg),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "closed by both sides"),
            Self::Over => write!(f, "the sandbox has stopped"),
            Self::Broken(leg, error) => write!(f, "the {leg}'s connection broke: {error}"),
            Self::Dead(leg) => write!(f, "the {leg} answered no ping"),
        }
    }
}

/// Passes bytes between the legs until the tunnel ends; when `over` resolves it ends at once, and the client
/// is told by a Close frame (1001) if that can be sent without waiting. `pings` is for WebSockets: a leg to which
/// nothing was sent for so long gets a Ping whenever no frame is under way; its answer is not passed on.
pub async fn run<C, G>(mut client: C, mut guest: G, over: impl Future<Output = ()>, pings: Option<Duration>) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let mut tunnel = Tunnel::new(pings);
    let mut over = pin!(over);
    let mut timer = pin!(pings.map(tokio::time::sleep));
    let reason = poll_fn(|cx| {
        loop {
            // What has arrived before the run's end is passed on.
            if let Err(reason) = tunnel.advance(cx, &mut client, &mut guest) {
                return Poll::Ready(reason);
            }
            if over.as_mut().poll(cx).is_ready() {
                tunnel.farewell(cx, &mut client);
                return Poll::Ready(Reason::Over);
            }
            // Without pings, or when they are not possible any more, only the legs wake this.
            let (Some(mut timer), Some(interval), true) = (timer.as_mut().as_pin_mut(), pings, tunnel.follows()) else {
                return Poll::Pending;
            };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match tunnel.look(interval) {
                Ok(next) => timer.reset(next),
                Err(dead) => return Poll::Ready(Reason::Dead(dead)),
            }
        }
    })
    .await;
    Ended { to_guest: tunnel.to_guest.seen().passed, to_client: tunnel.to_client.seen().passed, reason }
}

#[derive(Debug)]
struct Tunnel {
    to_guest: Direction,
    to_client: Direction,
    /// Client, guest.
    pingers: Option<(Pinger, Pinger)>,
    /// A leg that takes no more; what it has sent before is still passed on.
    broken: Option<(Leg, io::Error)>,
}

impl Tunnel {
    fn new(pings: Option<Duration>) -> Self {
        let frames = |from| pings.is_some().then(|| Frames::new(from));
        let pinger = |interval| Pinger::new(interval, Instant::now());
        Self {
            to_guest: Direction::new(frames(Leg::Client)),
            to_client: Direction::new(frames(Leg::Guest)),
            pingers: pings.map(|interval| (pinger(interval), pinger(interval))),
            broken: None,
        }
    }

    /// Whether pings may be sent, now or later.
    fn follows(&self) -> bool {
        let follows = |direction: &Direction| direction.frames.is_some_and(|frames| frames.follows());
        follows(&self.to_guest) && follows(&self.to_client)
    }

    /// Both directions as far as they can; a reason when that was the end.
    fn advance<C, G>(&mut self, cx: &mut Context<'_>, client: &mut C, guest: &mut G) -> Result<(), Reason>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        G: AsyncRead + AsyncWrite + Unpin,
    {
        let before = (self.to_guest.seen(), self.to_client.seen());
        let up = half(&mut self.to_guest, cx, (Leg::Client, client), (Leg::Guest, guest), &mut self.broken)?;
        let down = half(&mut self.to_client, cx, (Leg::Guest, guest), (Leg::Client, client), &mut self.broken)?;
        if let Some((of_client, of_guest)) = &mut self.pingers {
            note(&before.0, &self.to_guest.seen(), of_client, of_guest);
            note(&before.1, &self.to_client.seen(), of_guest, of_client);
        }
        if matches!((&up, &down), (Some(Pause::Ended), Some(Pause::Ended))) {
            return Err(Reason::Closed);
        }
        // What a leg has sent before it broke is passed on, but nothing more is waited for.
        let left = match &self.broken {
            None => return Ok(()),
            Some((Leg::Client, _)) => up,
            Some((Leg::Guest, _)) => down,
        };
        match (left, self.broken.take()) {
            (Some(Pause::Writing | Pause::Turn), broken) => self.broken = broken,
            (_, Some((leg, error))) => return Err(Reason::Broken(leg, error)),
            (_, None) => {}
        }
        Ok(())
    }

    /// Prepares the pings that are due. When to look again, or which leg is dead.
    fn look(&mut self, interval: Duration) -> Result<Instant, Leg> {
        let now = Instant::now();
        let Some((of_client, of_guest)) = &mut self.pingers else { return Ok(now + interval) };
        // Who has sent more than the other side takes is not listened to meanwhile. Asked before pings are put in.
        if self.to_guest.waits() {
            of_client.heard();
        }
        if self.to_client.waits() {
            of_guest.heard();
        }
        let next = attend(Leg::Client, of_client, &mut self.to_guest, &mut self.to_client, now)?;
        Ok(next.min(attend(Leg::Guest, of_guest, &mut self.to_client, &mut self.to_guest, now)?))
    }

    /// Tells the client that the run is over, as far as that is possible at once.
    fn farewell(&mut self, cx: &mut Context<'_>, client: &mut (impl AsyncWrite + Unpin)) {
        let mut client = Pin::new(client);
        if self.to_client.between() {
            // Whether it can be told or not: the connection is closed now.
            let _ = client.as_mut().poll_write(cx, &frames::going_away(GOING_AWAY));
            let _ = client.as_mut().poll_flush(cx);
        }
        let _ = client.poll_shutdown(cx);
    }
}

/// One direction as far as it can; nothing when its target is broken.
fn half<R, W>(
    direction: &mut Direction,
    cx: &mut Context<'_>,
    (from, source): (Leg, &mut R),
    (to, target): (Leg, &mut W),
    broken: &mut Option<(Leg, io::Error)>,
) -> Result<Option<Pause>, Reason>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if broken.as_ref().is_some_and(|(leg, _)| *leg == to) {
        return Ok(None);
    }
    match direction.advance(cx, source, target) {
        Ok(pause) => Ok(Some(pause)),
        Err(Broken::Source(error)) => Err(Reason::Broken(from, error)),
        Err(Broken::Target(error)) => {
            broken.get_or_insert((to, error));
            Ok(None)
        }
    }
}

/// Tells the pingers what has happened in a direction.
fn note(before: &Seen, after: &Seen, source: &mut Pinger, target: &mut Pinger) {
    if (before.received, before.ended) != (after.received, after.ended) {
        source.heard();
    }
    if before.passed != after.passed {
        target.sent(Instant::now());
    }
}

/// Looks after one leg; `from` is what it sends, `to` what is sent to it.
fn attend(
    leg: Leg,
    pinger: &mut Pinger,
    from: &mut Direction,
    to: &mut Direction,
    now: Instant,
) -> Result<Instant, Leg> {
    match pinger.due(now, to.between()) {
        Due::Wait(next) => Ok(next),
        Due::Dead => Err(leg),
        Due::Ping => {
            let frames = from.frames.as_mut().filter(|frames| frames.follows());
            let Some(frames) = frames else { return Ok(now + pinger.interval()) };
            let random = uuid::Uuid::new_v4().as_u128();
            let payload = frames.payload((random as u64).to_be_bytes());
            let (frame, length) = frames::ping(leg, payload, ((random >> 96) as u32).to_be_bytes());
            to.insert(&frame[..length]);
            pinger.pinged(now, from.seen().ended);
            Ok(now + pinger.interval())
        }
    }
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
