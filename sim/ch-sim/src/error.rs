//! Failures as Cloud Hypervisor reports them: a chain of texts, outermost first (cloud-hypervisor.md 2.2).
//!
//! The texts are the interface (a client decides on them), so a failure here *is* its list of texts and no
//! enum stands behind it.

use std::io;

/// A failure inside the VMM: texts from the outermost to the root cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    texts: Vec<String>,
    not_found: bool,
}

/// Shorthand for results of VMM operations.
pub type Outcome<T> = Result<T, Chain>;

impl Chain {
    /// A failure without a deeper cause.
    pub fn new(text: impl Into<String>) -> Self {
        Self { texts: vec![text.into()], not_found: false }
    }

    /// A failure whose cause is an operating system error.
    pub fn io(text: impl Into<String>, error: &io::Error) -> Self {
        Self { texts: vec![text.into(), error.to_string()], not_found: false }
    }

    /// A failure whose cause is an error number of a system call.
    pub fn errno(text: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self::io(text, &io::Error::from(errno))
    }

    /// Wraps the failure into an outer text.
    #[must_use]
    pub fn under(mut self, outer: impl Into<String>) -> Self {
        self.texts.insert(0, outer.into());
        self
    }

    /// The texts, outermost first.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The whole chain on one line, for the log.
    pub fn line(&self) -> String {
        self.texts.join(": ")
    }

    /// Whether v53 answers 404: the object asked for does not exist (cloud-hypervisor.md 2.2).
    pub fn is_not_found(&self) -> bool {
        self.not_found
    }

    fn missing(text: &str) -> Self {
        Self { texts: vec![text.to_owned()], not_found: true }
    }

    /// "VM is not created": there is no configuration.
    pub fn not_created() -> Self {
        Self::missing("VM is not created")
    }

    /// "VM config is missing": boot without a configuration.
    pub fn missing_config() -> Self {
        Self::missing("VM config is missing")
    }

    /// "VM is already created".
    pub fn already_created() -> Self {
        Self::new("VM is already created")
    }

    /// "VM is not running": there is no VM object.
    pub fn not_running() -> Self {
        Self::new("VM is not running")
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;

    #[test]
    fn outer_texts_come_first() {
        let chain = Chain::new("inner").under("middle").under("outer");
        assert_eq!(chain.texts(), ["outer", "middle", "inner"]);
        assert_eq!(chain.line(), "outer: middle: inner");
    }

    #[test]
    fn only_a_missing_vm_is_not_found() {
        assert!(Chain::not_created().under("x").is_not_found());
        assert!(Chain::missing_config().is_not_found());
        assert!(!Chain::not_running().is_not_found());
    }
}
