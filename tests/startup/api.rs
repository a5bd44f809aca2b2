//! The Daytona API in trouble: the runner keeps serving its own, says what is wrong, and works again
//! when the API does.

use std::time::Duration;

use daytona_sim::{Action, Fault, Route};
use serde_json::json;

use super::common::{Host, eventually, leftovers};

const HEALTHCHECK: &str = "the healthcheck did not reach the API";
const POLL: &str = "cannot poll for jobs";

/// The API is like this from the start, then well again. `line` begins the line of the log that must
/// hold the words.
fn survives(action: &Action, line: &str, words: &str) {
    let mut host = Host::new();
    host.set("HEALTHCHECK_TIMEOUT", "1s");
    host.api.faults().add(Fault::always(Route::Any, action.clone()));
    let runner = host.runner();
    eventually("a clear line is in the log", || {
        let log = runner.log();
        let mut warnings = log.lines().filter(|found| found.contains("WARN"));
        warnings.find(|found| found.contains(line) && found.contains(words)).map(drop)
    });
    // Its own API works meanwhile, with sandboxes and all.
    let http = host.http();
    let info = eventually("GET /info tells", || Some(http.get("/info").json()).filter(|info| info["api"].is_object()));
    if line == HEALTHCHECK {
        assert_eq!(info["api"]["reachable"], false, "{info}");
        assert!(info["api"]["error"].as_str().unwrap().contains(words), "{info}");
    }
    let body = json!({ "id": "box", "memoryQuota": 1, "storageQuota": 1 }).to_string();
    assert_eq!(http.post("/sandboxes", &body).status, 201);
    assert_eq!(host.in_guest("box", "echo works"), "works");

    host.api.faults().clear();
    if *action == Action::Hang {
        // What hangs is given up late, so as not to lose jobs; here the tunnel is restarted.
        host.api.faults().down();
        host.api.faults().up();
    }
    let job = host.api.destroy_sandbox("box").unwrap();
    let job = host.api.wait_job(&job, Duration::from_secs(90)).unwrap_or_else(|| panic!("{}", host.log()));
    assert_eq!(job.status, daytona_sim::JobStatus::Completed, "{:?}", job.error_message);
    leftovers::none(&host);
    assert!(!host.log().contains("panicked"));
}

#[test]
fn an_api_that_answers_html() {
    survives(&Action::Html, HEALTHCHECK, "SERVER_URL must contain /api");
}

/// Takes a minute: a key that was refused is not tried again sooner, as failed logins are counted.
#[test]
fn an_api_that_answers_401() {
    survives(&Action::Status { code: 401, retry_after: None }, HEALTHCHECK, "API_TOKEN must be the key of this runner");
}

#[test]
fn an_api_that_answers_429() {
    let action = Action::Status { code: 429, retry_after: Some(1) };
    survives(&action, HEALTHCHECK, "takes no calls from this address");
}

#[test]
fn an_api_that_answers_500() {
    survives(&Action::Status { code: 500, retry_after: None }, HEALTHCHECK, "failed with status 500");
}

#[test]
fn an_api_that_answers_garbage() {
    survives(&Action::Garbage, POLL, "cannot read the API's answer");
}

#[test]
fn an_api_that_closes_every_connection() {
    survives(&Action::CloseBefore, HEALTHCHECK, "the connection ended before an answer");
}

#[test]
fn an_api_that_never_answers() {
    survives(&Action::Hang, HEALTHCHECK, "no complete answer within 1000 ms");
}
