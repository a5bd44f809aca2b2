//! Following a command's log (PROTOCOL.md 7): the guest sends it as messages of a WebSocket, the client reads a
//! plain body.

use std::io;

use bytes::Bytes;
use futures::future::{Either, FutureExt, select};
use futures::{SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::error::chain;

/// A message is held whole. The toolbox sends what a command has just written, in small pieces.
const MESSAGE_MAX: usize = 4 << 20;

/// The data messages of a WebSocket to the guest, on a connection that is upgraded already. Pings are answered.
///
/// It ends well only when the guest closes with code 1000: then the log is complete. Any other code, none (1005), an end
/// without a Close frame (1006), or the end of the sandbox's run (`over`) is an error, so that a log that was cut
/// off does not look like a whole one.
pub fn messages<S>(socket: S, over: impl Future<Output = ()>) -> impl Stream<Item = io::Result<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let begun = async move {
        let socket = WebSocketStream::from_raw_socket(socket, Role::Client, Some(config)).await;
        futures::stream::unfold(Some((socket, Box::pin(over.fuse()))), |state| async {
            let (mut socket, mut over) = state?;
            match next(&mut socket, &mut over).await {
                Ok(Some(data)) => Some((Ok(data), Some((socket, over)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    };
    begun.flatten_stream()
}

async fn next<S>(
    socket: &mut WebSocketStream<S>,
    over: &mut (impl Future<Output = ()> + Unpin),
) -> io::Result<Option<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        // What has arrived before the run's end is passed on: the first of the two is asked first.
        let message = match select(socket.next(), &mut *over).await {
            Either::Left((message, _)) => message,
            Either::Right(_) => {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox has stopped"));
            }
        };
        let ended = match message {
            Some(Ok(Message::Binary(data))) => return Ok(Some(data)),
            Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(frame))) => {
                // The answer lies ready. Whoever has closed may be gone already, and need not be waited for.
                let _ = socket.flush().now_or_never();
                match frame {
                    Some(frame) if frame.code == CloseCode::Normal => return Ok(None),
                    Some(frame) => format!("closed with code {} {}", u16::from(frame.code), frame.reason),
                    None => "closed without a code".to_owned(),
                }
            }
            Some(Err(error)) => chain(&error),
            None => "ended without being closed".to_owned(),
        };
        let message = format!("the log that the guest sent is not complete: its WebSocket {ended}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
}

#[cfg(test)]
mod tests;
