//! The runner's own HTTP API (PROTOCOL.md 6): what it offers, who may use it, and where requests go.
//! Reads come from shared tables; commands go to the supervisor; bytes for guests go straight there
//! ([`proxy`]) and never meet the actix application, which has all other routes.

use std::path::PathBuf;

use actix::Addr;
use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::middleware::{ErrorHandlerResponse, ErrorHandlers, from_fn};
use actix_web::{HttpRequest, HttpResponse, web};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::actors::reporter::Seen;
use crate::actors::{ForkActor, Routes, SupervisorActor, Work};
use crate::host::Identity;
use crate::sandbox::Views;
use crate::store::SledStore;

pub mod auth;
pub mod body;
pub mod copies;
pub mod crashes;
pub mod drain;
pub mod error;
pub mod front;
pub mod health;
pub mod ledger;
pub mod openapi;
pub mod proxy;
pub mod sandboxes;
pub mod serial;
pub mod snapshots;
pub mod store;
pub mod tunnel;

pub use auth::Token;
pub use ledger::LedgerAccess;

/// What the handlers share; cheap to clone, one per worker thread.
#[derive(Clone)]
pub struct State {
    /// Takes the commands.
    pub supervisor: Addr<SupervisorActor>,
    /// Makes copies and snapshots.
    pub forks: Addr<ForkActor>,
    /// What there is.
    pub views: Views,
    /// Ways into the guests.
    pub routes: Routes,
    /// Host and control plane as last seen.
    pub seen: Seen,
    /// The host against what should be on it.
    pub ledger: LedgerAccess,
    /// Who may use the API.
    pub token: Token,
    /// Version, address.
    pub identity: Identity,
    /// Directory of the sandboxes' files.
    pub sandboxes: PathBuf,
    /// The hypervisor, for its health.
    pub ch_binary: PathBuf,
    /// What is under way, and whether new work is taken.
    pub work: Work,
    /// False until stored sandboxes are recovered.
    pub recovered: Recovered,
    /// What is stored.
    pub store: SledStore,
}

/// Whether the stored sandboxes are recovered.
#[derive(Debug, Clone, Default)]
pub struct Recovered(Arc<AtomicBool>);

impl Recovered {
    /// They are.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they are.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Adds all routes to an application.
pub fn configure(state: State) -> impl FnOnce(&mut web::ServiceConfig) {
    move |app| {
        let auth = from_fn(auth::require);
        app.app_data(web::Data::new(state))
            .service(resource("/", web::get().to(health::root)))
            .service(resource("/openapi.json", web::get().to(openapi::document)))
            .default_service(web::to(no_such_route))
            .service(
                web::scope("")
                    .wrap(ErrorHandlers::new().default_handler(in_one_shape))
                    .wrap(auth)
                    .service(resource("/info", web::get().to(health::info)))
                    .service(resource("/store", web::get().to(store::summary)))
                    .service(resource("/store/backup", web::get().to(store::backup)))
                    .service(
                        web::resource("/drain")
                            .route(web::get().to(drain::get))
                            .route(web::post().to(drain::begin))
                            .route(web::delete().to(drain::end))
                            .default_service(web::to(wrong_method)),
                    )
                    .service(
                        web::resource("/sandboxes")
                            .route(web::post().to(sandboxes::create))
                            .route(web::get().to(sandboxes::list))
                            .default_service(web::to(wrong_method)),
                    )
                    .service(
                        web::resource("/sandboxes/{id}")
                            .route(web::get().to(sandboxes::get))
                            .route(web::delete().to(sandboxes::remove))
                            .default_service(web::to(wrong_method)),
                    )
                    .service(resource("/sandboxes/{id}/start", web::post().to(sandboxes::start)))
                    .service(resource("/sandboxes/{id}/stop", web::post().to(sandboxes::stop)))
                    .service(resource("/sandboxes/{id}/destroy", web::post().to(sandboxes::destroy)))
                    .service(resource("/sandboxes/{id}/fork", web::post().to(copies::fork)))
                    .service(resource("/sandboxes/{id}/clone", web::post().to(copies::clone)))
                    .service(resource("/sandboxes/{id}/pause", web::post().to(copies::pause)))
                    .service(resource("/sandboxes/{id}/resume", web::post().to(copies::resume)))
                    .service(resource("/sandboxes/{id}/resize", web::post().to(copies::resize)))
                    .service(resource("/snapshots/create", web::post().to(snapshots::create)))
                    .service(resource("/snapshots/exists", web::get().to(snapshots::exists)))
                    .service(resource("/snapshots/info", web::get().to(snapshots::info)))
                    .service(resource("/snapshots/remove", web::post().to(snapshots::remove)))
                    .service(resource("/ledger", web::get().to(ledger::show)))
                    .service(resource("/ledger/repair", web::post().to(ledger::repair)))
                    .service(resource("/sandboxes/{id}/serial", web::get().to(serial::read)))
                    .service(resource("/sandboxes/{id}/crashes", web::get().to(crashes::list)))
                    .service(resource("/sandboxes/{id}/crashes/{time}/{file}", web::get().to(crashes::read)))
                    .default_service(web::to(no_such_route)),
            );
    }
}

fn resource(path: &str, route: actix_web::Route) -> actix_web::Resource {
    web::resource(path.to_owned()).route(route).default_service(web::to(wrong_method))
}

async fn no_such_route(request: HttpRequest) -> HttpResponse {
    let message = format!("there is no {} here; GET /openapi.json lists what there is", request.path());
    error::with_status(&request, StatusCode::NOT_FOUND, "NOT_FOUND", message)
}

async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let message = format!("{} is not offered with method {}", request.path(), request.method());
    error::with_status(&request, StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

/// Errors that actix itself answers (a path or query that cannot be read) get our shape too.
fn in_one_shape<B>(response: ServiceResponse<B>) -> actix_web::Result<ErrorHandlerResponse<B>> {
    let kind = response.headers().get(CONTENT_TYPE);
    let shaped = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if shaped {
        return Ok(ErrorHandlerResponse::Response(response.map_into_left_body()));
    }
    let (request, original) = response.into_parts();
    let status = original.status();
    let reason = status.canonical_reason().unwrap_or("error");
    let message = original.error().map_or_else(|| reason.to_owned(), ToString::to_string);
    let answer = error::with_status(&request, status, &reason.to_ascii_uppercase().replace(' ', "_"), message);
    Ok(ErrorHandlerResponse::Response(ServiceResponse::new(request, answer).map_into_right_body()))
}
