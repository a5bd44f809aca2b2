//! Answers on the wire: no reason phrase, fixed header order.

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: u16,
    body: Vec<u8>,
    server: &'static str,
    media_type: &'static str,
}

impl Response {
    /// An answer of the API; 100 and 204 have neither Content-Type nor Content-Length.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), server: "Cloud Hypervisor API", media_type: "application/json" }
    }

    /// An answer of the HTTP layer itself, which names another server.
    pub fn from_library(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { server: "Firecracker API", ..Self::new(status, body) }
    }

    /// The bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} \r\nServer: {}\r\nConnection: keep-alive\r\n", self.status, self.server);
        if !matches!(self.status, 100 | 204) {
            let length = self.body.len();
            head += &format!("Content-Type: {}\r\n", self.media_type);
            head += &format!("Content-Length: {length}\r\n");
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Response;

    #[test]
    fn answers_have_no_reason_phrase() {
        let text = String::from_utf8(Response::new(200, "{}").to_bytes()).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        let text = String::from_utf8(Response::new(204, "").to_bytes()).unwrap();
        assert!(text.ends_with("keep-alive\r\n\r\n") && !text.contains("Content"));
    }
}
