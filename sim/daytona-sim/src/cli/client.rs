//! HTTP client of the admin interface.

use std::time::Duration;

use anyhow::{Context, bail};
use awc::http::Method;
use serde_json::Value;

/// Longest time the server holds a request back.
pub(crate) const WAIT_STEP: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: usize = 256 * 1024 * 1024;

/// A client of one served simulator.
pub(crate) struct Client {
    http: awc::Client,
    base: String,
}

impl Client {
    pub fn new(base: &str) -> Self {
        let connector = awc::Connector::new().timeout(Duration::from_secs(5));
        let http = awc::Client::builder().connector(connector).timeout(WAIT_STEP + Duration::from_secs(15)).finish();
        Self { http, base: base.trim_end_matches('/').to_owned() }
    }

    /// Sends a request below `/sim`; an answer without a body is `null`.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("{}/sim/{path}", self.base);
        let request = self.http.request(method.clone(), &url);
        let sent = if body.is_null() { request.send().await } else { request.send_json(body).await };
        let mut answer = sent
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("{method} {url} (is `daytona-sim serve` running?)"))?;
        let bytes = answer.body().limit(ANSWER_LIMIT).await;
        let bytes = bytes.with_context(|| format!("reading the answer of {method} {url}"))?;
        let json: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).with_context(|| format!("{method} {url} answered no JSON"))?
        };
        if !answer.status().is_success() {
            let text = json["message"].as_str().unwrap_or("no message");
            bail!("{method} {url}: {}: {text}", answer.status());
        }
        Ok(json)
    }

    /// `GET` below `/sim`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, &Value::Null).await
    }
}
