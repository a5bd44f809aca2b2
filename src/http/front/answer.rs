//! The bodies of all answers.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;
use futures::stream::LocalBoxStream;
use futures::{Stream, StreamExt};
use hyper::body::{Body, Frame, SizeHint};

use super::io::Answering;
use crate::http::proxy::GuestBody;

/// Body of an answer.
pub struct Answer {
    kind: Kind,
    answering: Option<Answering>,
}

enum Kind {
    /// All at once; `None` when it was taken.
    Whole(Option<Bytes>),
    /// Of the actix application.
    Admin(BoxBody),
    /// Of a guest.
    Guest(Box<GuestBody>),
    /// Made while it is sent.
    Stream(LocalBoxStream<'static, std::io::Result<Bytes>>),
}

type Failure = Box<dyn Error + Send + Sync>;

impl Answer {
    /// A body that is known.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Kind::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())).into()
    }

    /// A guest's body.
    pub fn guest(body: GuestBody) -> Self {
        Kind::Guest(Box::new(body)).into()
    }

    pub(super) fn admin(body: BoxBody) -> Self {
        Kind::Admin(body).into()
    }

    /// The request counts as being answered until this body is sent or given up.
    pub(super) fn answering(mut self, answering: Answering) -> Self {
        self.answering = Some(answering);
        self
    }

    /// A body that comes bit by bit.
    pub fn stream(stream: impl Stream<Item = std::io::Result<Bytes>> + 'static) -> Self {
        Kind::Stream(stream.boxed_local()).into()
    }
}

impl From<Kind> for Answer {
    fn from(kind: Kind) -> Self {
        Self { kind, answering: None }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut self.get_mut().kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Guest(body) => Pin::new(&mut **body).poll_frame(cx).map_err(Into::into),
            Kind::Admin(body) => {
                let chunk = ready!(Pin::new(body).poll_next(cx));
                // actix's errors stay on their thread; their words need not.
                Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data).map_err(|error| error.to_string().into())))
            }
            Kind::Stream(stream) => {
                let chunk = ready!(stream.poll_next_unpin(cx));
                Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data).map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Guest(body) => body.is_end_stream(),
            Kind::Admin(body) => matches!(body.size(), BodySize::None | BodySize::Sized(0)),
            Kind::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Guest(body) => body.size_hint(),
            Kind::Admin(body) => match body.size() {
                BodySize::None => SizeHint::with_exact(0),
                BodySize::Sized(length) => SizeHint::with_exact(length),
                BodySize::Stream => SizeHint::default(),
            },
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}
