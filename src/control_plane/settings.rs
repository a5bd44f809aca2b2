//! The settings that every call uses, checked once: base URL, key, and the program's name.

use actix_web::http::Uri;
use actix_web::http::header::HeaderValue;

use super::error::Error;

/// Checks the base URL and strips trailing slashes; true for https.
pub(super) fn base(url: &str) -> Result<(String, bool), Error> {
    let url = url.trim().trim_end_matches('/');
    let wrong = |what: String| Error::Setup {
        setting: "SERVER_URL",
        problem: format!("{url:?} {what}; expected http(s)://host[:port]/api"),
    };
    let uri: Uri = url.parse().map_err(|error| wrong(format!("is not a URL ({error})")))?;
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong("has no scheme http or https".to_owned())),
    };
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err(wrong("has a user name in it".to_owned())),
        Some(authority) if !authority.host().is_empty() && uri.query().is_none() => Ok((url.to_owned(), secure)),
        Some(_) => Err(wrong("has no host or has a query".to_owned())),
        None => Err(wrong("has no host".to_owned())),
    }
}

/// The header with the key.
pub(super) fn authorization(token: &str) -> Result<HeaderValue, Error> {
    // The text must not repeat the token.
    let wrong = |problem: &str| Error::Setup { setting: "API_TOKEN", problem: problem.to_owned() };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("is empty or has characters other than printable ASCII; expected the runner's key"));
    }
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.map_err(|_| wrong("cannot be sent in a header; expected the runner's key"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The header with the name of this program.
pub(super) fn user_agent(version: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(&format!("runner-ch/{version}")).map_err(|error| Error::Setup {
        setting: "version",
        problem: format!("{version:?} cannot be sent in a header ({error})"),
    })
}
