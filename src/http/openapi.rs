//! The API's description, generated from the handlers.

use actix_web::HttpResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{copies, error, health, ledger, proxy, sandboxes, serial, snapshots};

#[derive(OpenApi)]
#[openapi(
    info(title = "runner-ch", description = "Runs Daytona sandboxes as Cloud Hypervisor microVMs on this host"),
    paths(
        health::root, document, health::info, sandboxes::create, sandboxes::list, sandboxes::get, sandboxes::remove,
        sandboxes::start, sandboxes::stop, sandboxes::destroy, copies::fork, copies::clone, copies::pause,
        copies::resume, copies::resize, snapshots::create, snapshots::exists, snapshots::info, snapshots::remove, ledger::show, ledger::repair, serial::read, proxy::toolbox, proxy::port
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
            "/sandboxes",
            "/sandboxes/{id}",
            "/sandboxes/{id}/start",
            "/sandboxes/{id}/stop",
            "/sandboxes/{id}/destroy",
            "/sandboxes/{id}/serial",
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
