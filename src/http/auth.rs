//! Who may use the API: the bearer token, from `X-Daytona-Authorization` or else `Authorization`
//! (PROTOCOL.md 6).

use std::fmt;

use actix_web::HttpMessage;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
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

    /// Whether an authorization header carries this token.
    pub fn is_in(&self, value: &HeaderValue) -> bool {
        value.to_str().is_ok_and(|text| text.split(' ').any(|word| self.matches(word)))
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

fn check(headers: &HeaderMap, token: &Token) -> Result<Carrier, &'static str> {
    let (carrier, value) = match headers.get(DAYTONA_AUTHORIZATION) {
        Some(value) => (Carrier::Daytona, value),
        None => (Carrier::Standard, headers.get(AUTHORIZATION).ok_or("no token was sent")?),
    };
    let text = value.to_str().map_err(|_| "the authorization header is not plain text")?;
    let mut parts = text.split(' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("Bearer"), Some(offered), None) if token.matches(offered) => Ok(carrier),
        (Some("Bearer"), Some(_), None) => Err("the token is not this runner's"),
        _ => Err("the authorization header is not of the form 'Bearer <token>'"),
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
    match check(request.headers(), &state.token) {
        Ok(carrier) => {
            request.extensions_mut().insert(carrier);
            next.call(request).await.map(ServiceResponse::map_into_boxed_body)
        }
        Err(why) => {
            let failure = Failure::new(
                ErrorCode::Unauthorized,
                format!("{why}; send 'Authorization: Bearer <API_TOKEN>' or the same as X-Daytona-Authorization"),
            );
            let mut answer = error::answer(request.request(), &failure);
            let challenge = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            Ok(request.into_response(answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap()));
        pairs.collect()
    }

    #[test]
    fn accepted_and_refused() {
        let token = Token::new("secret");
        assert_eq!(check(&headers(&[("authorization", "Bearer secret")]), &token), Ok(Carrier::Standard));
        let both = [("authorization", "Bearer user"), (DAYTONA_AUTHORIZATION, "Bearer secret")];
        assert_eq!(check(&headers(&both), &token), Ok(Carrier::Daytona));
        let wrong_first = [("authorization", "Bearer secret"), (DAYTONA_AUTHORIZATION, "Bearer x")];
        assert!(check(&headers(&wrong_first), &token).is_err());
        for value in
            ["", "Bearer", "Bearer ", "bearer secret", "secret", "Bearer secret x", "Basic secret", "Bearer  secret"]
        {
            assert!(check(&headers(&[("authorization", value)]), &token).is_err(), "{value:?}");
        }
        assert!(check(&headers(&[]), &token).is_err());
    }
}
