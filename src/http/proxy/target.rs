//! Where in which guest a request goes. Paths are read as they came: their encoding is the guest's.

use hyper::{Method, Uri};

use super::origin_form;
use crate::error::{ErrorCode, Failure};
use crate::http::error::Problem;
use crate::http::sandboxes::sandbox_id;
use crate::ids::SandboxId;

/// The port of noVNC in a guest (PROTOCOL.md 9).
const NOVNC: u16 = 6080;

/// Whether a path is one of a guest: `/sandboxes/{id}/toolbox` or `/sandboxes/{id}/proxy`, and below.
pub fn is_for_guest(path: &str) -> bool {
    let mut parts = path.strip_prefix("/sandboxes/").unwrap_or_default().splitn(3, '/');
    parts.next().is_some_and(|id| !id.is_empty()) && matches!(parts.next(), Some("toolbox" | "proxy"))
}

/// A place in a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The sandbox.
    pub id: SandboxId,
    /// Path, encoded as it came.
    pub path: String,
    /// Query without its question mark, encoded as it came.
    pub query: Option<String>,
}

impl Target {
    /// Reads it out of a request's URI.
    pub fn read(uri: &Uri) -> Result<Self, Failure> {
        let path = uri.path();
        let no_route = || Failure::new(ErrorCode::NotFound, format!("there is no {path} here"));
        let mut parts = path.splitn(5, '/').skip(2);
        let (id, kind, rest) = (parts.next().ok_or_else(no_route)?, parts.next().ok_or_else(no_route)?, parts.next());
        let rest = rest.unwrap_or_default();
        let inside = match kind {
            "toolbox" => format!("/{rest}"),
            "proxy" => {
                let (port, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let number = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
                let port: u16 = number.filter(|&port| port > 0).ok_or_else(|| {
                    Failure::new(ErrorCode::BadRequest, format!("port: expected 1 to 65535, got {port:?}"))
                })?;
                format!("/proxy/{port}/{rest}")
            }
            _ => return Err(no_route()),
        };
        Ok(Self { id: sandbox_id(id)?, path: inside, query: uri.query().map(str::to_owned) })
    }

    /// As the guest is asked for it.
    pub fn uri(&self) -> Result<Uri, Problem> {
        origin_form(match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        })
    }

    /// Where the page of noVNC is asked for without its settings: the relative address with them
    /// (PROTOCOL.md 7).
    pub fn novnc(&self, method: &Method) -> Option<String> {
        let page = self.path.strip_prefix(&format!("/proxy/{NOVNC}/"))?.rsplit('/').next()? == "vnc.html";
        let query = self.query.as_deref().unwrap_or_default();
        let set = query.split('&').any(|pair| pair.split('=').next() == Some("autoconnect"));
        let join = if query.is_empty() { "" } else { "&" };
        (method == Method::GET && page && !set).then(|| format!("vnc.html?{query}{join}autoconnect=true&resize=scale"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Result<String, ErrorCode> {
        let target = Target::read(&path.parse().unwrap()).map_err(|failure| failure.code)?;
        Ok(target.uri().unwrap().to_string())
    }

    #[test]
    fn paths_are_kept_as_they_came() {
        let table = [
            ("/sandboxes/b/toolbox", "/"),
            ("/sandboxes/b/toolbox/", "/"),
            ("/sandboxes/b/toolbox/files/a%2Fb%20c?x=%41&y", "/files/a%2Fb%20c?x=%41&y"),
            ("/sandboxes/b/toolbox/proxy/8080//x", "/proxy/8080//x"),
            ("/sandboxes/b/toolbox//evil.example/x", "//evil.example/x"),
            ("/sandboxes/b/toolbox/../../c/toolbox/x", "/../../c/toolbox/x"),
            ("/sandboxes/b/proxy/8080/a/b?", "/proxy/8080/a/b?"),
            ("/sandboxes/b/proxy/8080", "/proxy/8080/"),
        ];
        for (path, expected) in table {
            assert_eq!(asked(path), Ok(expected.to_owned()), "{path}");
        }
    }

    #[test]
    fn bad_targets() {
        for path in [
            "/sandboxes/..%2f/toolbox/x",
            "/sandboxes/b/proxy/0/x",
            "/sandboxes/b/proxy/65536/x",
            "/sandboxes/b/proxy/+80/x",
            "/sandboxes/b/proxy/x/",
        ] {
            assert_eq!(asked(path), Err(ErrorCode::BadRequest), "{path}");
        }
        assert_eq!(asked("/sandboxes/b/other/x"), Err(ErrorCode::NotFound));
    }

    #[test]
    fn what_is_a_guests() {
        for path in
            ["/sandboxes/b/toolbox", "/sandboxes/b/proxy/1", "/sandboxes/../toolbox/x", "/sandboxes/b/toolbox//"]
        {
            assert!(is_for_guest(path), "{path}");
        }
        for path in ["/sandboxes/b", "/sandboxes//toolbox/x", "/sandboxes/b/toolboxes", "/x/b/toolbox", "*", "/", ""] {
            assert!(!is_for_guest(path), "{path}");
        }
    }

    #[test]
    fn the_page_of_novnc_gets_its_settings() {
        let location = |path: &str| Target::read(&path.parse().unwrap()).unwrap().novnc(&Method::GET);
        let whole = "vnc.html?autoconnect=true&resize=scale";
        assert_eq!(location("/sandboxes/b/proxy/6080/vnc.html").as_deref(), Some(whole));
        assert_eq!(location("/sandboxes/b/toolbox/proxy/6080/vnc.html").as_deref(), Some(whole));
        let joined = "vnc.html?path=x&autoconnect=true&resize=scale";
        assert_eq!(location("/sandboxes/b/proxy/6080/a/vnc.html?path=x").as_deref(), Some(joined));
        for path in ["6080/vnc.html?autoconnect=false", "6080/vnc.html/x", "6080/x", "6081/vnc.html", "6080/evnc.html"]
        {
            assert_eq!(location(&format!("/sandboxes/b/proxy/{path}")), None, "{path}");
        }
        let posted = Target::read(&"/sandboxes/b/proxy/6080/vnc.html".parse().unwrap()).unwrap();
        assert_eq!(posted.novnc(&Method::POST), None);
    }
}
