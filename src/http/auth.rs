//! Who may use the API: the bearer token, from `X-Daytona-Authorization` or else `Authorization`
//! (PROTOCOL.md 6).

use std::fmt;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderValue, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::web;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{State, error};
use crate::error::{ErrorCode, Failure};

/// The header that Daytona's proxy uses, so that users keep `Authorization` for their own apps.
pub const DAYTONA_AUTHORIZATION: &str = "x-daytona-authorization";

/// The token's digest: digests are compared, so neither content nor length shows in the time taken.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// From the token's text.
    pub fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    fn matches(&self, offered: &str) -> bool {
        let offered: [u8; 32] = Sha256::digest(offered.as_bytes()).into();
        self.0.ct_eq(&offered).into()
    }

    /// Whether an authorization header carries this token, in whatever form.
    pub fn is_in(&self, value: &[u8]) -> bool {
        let bare = |word: &str| self.matches(word.trim_matches('"'));
        let word = |word: &str| bare(word) || word.split_once('=').is_some_and(|(_, parameter)| bare(parameter));
        std::str::from_utf8(value).is_ok_and(|text| text.split([' ', ',', ';', '\t']).any(word))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Which header carried our token; that header never reaches a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// `X-Daytona-Authorization`: `Authorization` belongs to the user.
    Daytona,
    /// `Authorization`.
    Standard,
}

/// Checks the two headers that may carry the token.
///
/// # Errors
/// A message that says what is wrong and what to send.
pub fn check(daytona: Option<&[u8]>, standard: Option<&[u8]>, token: &Token) -> Result<Carrier, Failure> {
    let refuse = |why: &str| {
        Failure::new(
            ErrorCode::Unauthorized,
            format!("{why}; send 'Authorization: Bearer <API_TOKEN>' or the same as X-Daytona-Authorization"),
        )
    };
    let (carrier, value) = match (daytona, standard) {
        (Some(value), _) => (Carrier::Daytona, value),
        (None, Some(value)) => (Carrier::Standard, value),
        (None, None) => return Err(refuse("no token was sent")),
    };
    let text = std::str::from_utf8(value).map_err(|_| refuse("the authorization header is not plain text"))?;
    let mut parts = text.split(' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("Bearer"), Some(offered), None) if token.matches(offered) => Ok(carrier),
        (Some("Bearer"), Some(_), None) => Err(refuse("the token is not this runner's")),
        _ => Err(refuse("the authorization header is not of the form 'Bearer <token>'")),
    }
}

/// Middleware: lets a request with the token pass and notes which header carried it.
pub async fn require(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<BoxBody>> {
    let Some(state) = request.app_data::<web::Data<State>>() else {
        return Err(actix_web::error::ErrorInternalServerError("no state"));
    };
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    match check(header(DAYTONA_AUTHORIZATION), header("authorization"), &state.token) {
        Ok(_) => next.call(request).await.map(ServiceResponse::map_into_boxed_body),
        Err(failure) => {
            let mut answer = error::answer(request.request(), &failure);
            let challenge = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            Ok(request.into_response(answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_refused() {
        let token = Token::new("secret");
        let accepted = |daytona: Option<&str>, standard: Option<&str>| {
            check(daytona.map(str::as_bytes), standard.map(str::as_bytes), &token).map_err(|failure| failure.code)
        };
        assert_eq!(accepted(None, Some("Bearer secret")), Ok(Carrier::Standard));
        assert_eq!(accepted(Some("Bearer secret"), Some("Bearer user")), Ok(Carrier::Daytona));
        let refused = Err(ErrorCode::Unauthorized);
        assert_eq!(accepted(Some("Bearer x"), Some("Bearer secret")), refused);
        for value in
            ["", "Bearer", "Bearer ", "bearer secret", "secret", "Bearer secret x", "Basic secret", "Bearer  secret"]
        {
            assert_eq!(accepted(None, Some(value)), refused, "{value:?}");
        }
        assert_eq!(accepted(None, None), refused);
    }
}
