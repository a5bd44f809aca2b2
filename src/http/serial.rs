//! What the guest wrote to its serial console.

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};

use super::sandboxes::{find, sandbox_id};
use super::{State, error};
use crate::error::Failure;
use crate::hypervisor::launch::Files;
use crate::hypervisor::tail;

/// The last 64 KiB of the guest's serial console.
#[utoipa::path(get, path = "/sandboxes/{id}/serial", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = error::ErrorBody)))]
pub async fn read(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    let text = async {
        let id = sandbox_id(&id)?;
        find(&state, &id)?;
        let path = Files::new(state.sandboxes.join(id.as_str())).serial();
        // Before the first start there is no such file.
        if !path.exists() {
            return Ok(Vec::new());
        }
        tail::tail_of(path, tail::SERVED).await.map_err(Failure::from)
    };
    match text.await {
        Ok(bytes) => HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            // A browser must not take a guest's output for a page.
            .insert_header(("x-content-type-options", "nosniff"))
            .body(String::from_utf8_lossy(&bytes).into_owned()),
        Err(failure) => error::answer(&request, &failure),
    }
}
