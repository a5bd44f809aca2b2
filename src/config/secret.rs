//! A text that must not reach a log line.

use std::fmt;

/// The runner's token. `Debug` shows a mask only, and there is no `Display`, so that formatting it by
/// mistake does not compile or does not tell.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the header that is sent and for the comparison with one received.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_tell() {
        let secret = Secret::new("hunter2-hunter2-hunter2");
        assert!(!format!("{:?} {:#?}", secret, Some(&secret)).contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2-hunter2-hunter2");
    }
}
