//! The store, for its operator.

use std::io::Read;

use actix_web::web::{self, Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use futures::stream;

use super::{State, error};
use crate::error::Failure;
use crate::store::Summary;

/// Bytes of a backup that are in memory at a time.
const PIECE: usize = 64 << 10;

/// How the store stands: records, size, what could not be read, its volume.
#[utoipa::path(get, path = "/store", responses((status = 200, body = Summary), (status = 500, body = error::ErrorBody)))]
pub async fn summary(request: HttpRequest, state: Data<State>) -> HttpResponse {
    match state.store.summary().await {
        Ok(summary) => HttpResponse::Ok().json(summary),
        Err(error) => error::answer(&request, &Failure::from(error)),
    }
}

/// A backup of the store, one JSON document per line (docs/store.md). It holds tokens.
#[utoipa::path(get, path = "/store/backup", responses(
    (status = 200, content_type = "application/x-ndjson", body = String), (status = 500, body = error::ErrorBody),
    (status = 507, body = error::ErrorBody)))]
pub async fn backup(request: HttpRequest, state: Data<State>) -> HttpResponse {
    let file = match state.store.backup().await {
        Ok(file) => file,
        Err(error) => return error::answer(&request, &Failure::from(error)),
    };
    let pieces = stream::try_unfold(file, |mut file| async move {
        let read = web::block(move || {
            let mut piece = vec![0; PIECE];
            let len = file.read(&mut piece)?;
            piece.truncate(len);
            std::io::Result::Ok((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
        });
        read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    });
    HttpResponse::Ok().content_type("application/x-ndjson").streaming(pieces)
}
