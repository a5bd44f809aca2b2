//! The API's description, generated from the handlers.

use actix_web::HttpResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{copies, crashes, drain, error, health, ledger, proxy, sandboxes, serial, snapshots, store};

#[derive(OpenApi)]
#[openapi(
    info(title = "runner-ch", description = "Runs Daytona sandboxes as Cloud Hypervisor microVMs on this host"),
    paths(
        health::root, document, health::info, sandboxes::create, sandboxes::list, sandboxes::get, sandboxes::remove,
        sandboxes::start, sandboxes::stop, sandboxes::destroy, copies::fork, copies::clone, copies::pause,
        copies::resume, copies::resize, snapshots::create, snapshots::exists, snapshots::info, snapshots::remove, serial::read,
        crashes::list, crashes::read, proxy::toolbox, proxy::port,
        drain::get, drain::begin, drain::end,
        store::summary, store::backup,
        ledger::show, ledger::repair
    ),
    components(schemas(error::ErrorBody)),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// This document; needs no token, as it says nothing about this host.
#[utoipa::path(get, path = "/openapi.json", security(()), responses((status = 200, body = Object)))]
pub async fn document() -> HttpResponse {
    HttpResponse::Ok().json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_route() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for path in [
            "/",
            "/openapi.json",
            "/info",
            "/drain",
            "/store",
            "/store/backup",
            "/sandboxes",
            "/sandboxes/{id}",
            "/sandboxes/{id}/start",
            "/sandboxes/{id}/stop",
            "/sandboxes/{id}/destroy",
            "/sandboxes/{id}/serial",
            "/sandboxes/{id}/crashes",
            "/sandboxes/{id}/crashes/{time}/{file}",
            "/ledger",
            "/ledger/repair",
            "/sandboxes/{id}/toolbox/{path}",
            "/sandboxes/{id}/proxy/{port}/{path}",
        ] {
            assert!(paths.contains_key(path), "{path} is missing in {:?}", paths.keys());
        }
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
