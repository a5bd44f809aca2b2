//! What is kept of a sandbox's unasked ends.

use std::path::PathBuf;

use actix_web::web::{Data, Path, block};
use actix_web::{HttpRequest, HttpResponse};

use super::sandboxes::{find, respond, sandbox_id};
use super::{State, error};
use crate::error::{ErrorCode, Failure};
use crate::hypervisor::bundle::{self, Crash, NAMES};

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::hypervisor::Error> + Send + 'static,
) -> Result<T, Failure> {
    let failed = |_| Failure::new(ErrorCode::Internal, "the thread that reads the files ended; see the log");
    block(work).await.map_err(failed)?.map_err(Failure::from)
}

fn directory(state: &State, id: &str) -> Result<PathBuf, Failure> {
    let id = sandbox_id(id)?;
    find(state, &id)?;
    Ok(state.sandboxes.join(id.as_str()))
}

/// The last unasked ends and failed starts of a sandbox, the newest first; at most 5 are kept.
#[utoipa::path(get, path = "/sandboxes/{id}/crashes", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = Vec<Crash>), (status = 400, body = error::ErrorBody), (status = 404, body = error::ErrorBody)))]
pub async fn list(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    let listed = async {
        let dir = directory(&state, &id)?;
        Ok(HttpResponse::Ok().json(blocking(move || bundle::list(&dir)).await?))
    };
    respond(&request, listed.await)
}

/// A file of one of them: `cause.json`, or the last 64 KiB of `serial.log`, `vmm.log`, `vmm.out` or `events.json`.
#[utoipa::path(get, path = "/sandboxes/{id}/crashes/{time}/{file}",
    params(("id" = String, Path, description = "sandbox id"), ("time" = u64, Path, description = "its time in the list"),
        ("file" = String, Path, description = "name of the file")),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 400, body = error::ErrorBody),
        (status = 404, body = error::ErrorBody)))]
pub async fn read(request: HttpRequest, state: Data<State>, path: Path<(String, u64, String)>) -> HttpResponse {
    let read = async {
        let (id, time, file) = path.into_inner();
        let dir = directory(&state, &id)?;
        let name = file.clone();
        let bytes = blocking(move || bundle::read(&dir, time, &name)).await?.ok_or_else(|| {
            let names = NAMES.join(", ");
            let message = format!(
                "nothing is kept of sandbox {id} as {time}/{file}; there may be {names} for each time in its list"
            );
            Failure::new(ErrorCode::NotFound, message)
        })?;
        Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            // A browser must not take a guest's output for a page.
            .insert_header(("x-content-type-options", "nosniff"))
            .body(String::from_utf8_lossy(&bytes).into_owned()))
    };
    respond(&request, read.await)
}
