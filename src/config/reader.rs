//! Takes settings out of [`Raw`] and gathers what is wrong with them, so that one look tells all.

use std::path::PathBuf;

use super::parse;
use super::problem::Problem;
use super::raw::Raw;

/// The settings under check and everything found so far.
pub(super) struct Reader {
    /// The texts.
    pub raw: Raw,
    /// Problems so far; any of them ends the start.
    pub problems: Vec<Problem>,
    /// Things worth a log line.
    pub warnings: Vec<String>,
    /// Variables that are set and have no effect, and why.
    pub ignored: Vec<(&'static str, &'static str)>,
}

impl Reader {
    /// Starts with what reading has found already.
    pub fn new(mut raw: Raw) -> Self {
        let problems = std::mem::take(&mut raw.problems);
        let warnings = std::mem::take(&mut raw.warnings);
        Self { raw, problems, warnings, ignored: Vec::new() }
    }

    /// The text of a setting; empty when it is not set.
    pub fn text(&self, name: &str) -> String {
        debug_assert!(self.raw.get(name).is_some(), "{name} is missing in config/default.toml");
        self.raw.get(name).map(|setting| setting.text.clone()).unwrap_or_default()
    }

    /// Notes that a setting's value is wrong. `expected` begins with what would be right.
    pub fn refuse(&mut self, name: &str, expected: impl AsRef<str>) {
        let problem = self.raw.problem(name, format!("expected {}", expected.as_ref()));
        let told = |other: &Problem| other.subject == problem.subject && other.value == problem.value;
        if !self.problems.iter().any(told) {
            self.problems.push(problem);
        }
    }

    /// The meaning of a setting; none after a problem was noted. `parse` fails with what it expected.
    pub fn parse<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(&self.text(name)) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.refuse(name, expected);
                None
            }
        }
    }

    /// As [`Reader::parse`], where not set is fine.
    pub fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<Option<T>> {
        if self.text(name).is_empty() { Some(None) } else { self.parse(name, parse).map(Some) }
    }

    /// An absolute path.
    pub fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.parse(name, parse::path)
    }
}
