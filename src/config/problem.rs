//! What is wrong with a configuration or with the host, told all at once.

use std::fmt;

/// Longest part of a value that is shown, in characters.
const SHOWN: usize = 120;

/// One thing that keeps the runner from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable, or the object on the host.
    pub subject: String,
    /// The value found, as it may be shown: secrets are masked already. None when nothing is set.
    pub value: Option<String>,
    /// The file that the value stands in; none for the environment.
    pub file: Option<String>,
    /// What is wrong and what would be right.
    pub expected: String,
}

impl Problem {
    /// A problem of the host or of several settings together.
    pub fn new(subject: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { subject: subject.into(), value: None, file: None, expected: expected.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.subject)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(file) = &self.file {
            write!(f, " (in {file})")?;
        }
        write!(f, ": {}", self.expected)
    }
}

/// Every problem that was found; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Ok` when there are none.
    pub(super) fn none_of(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// The problems in the order of the checks.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A value as it may be shown: quoted, escaped, cut to a readable length.
pub(super) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}… ({} characters)", &value[..end], value.chars().count()),
        None => format!("{value:?}"),
    }
}

/// A secret as it may be shown: by its length alone.
pub(super) fn masked(value: &str) -> String {
    format!("*** ({} characters)", value.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_problem() {
        let first = Problem {
            subject: "API_PORT".into(),
            value: Some(shown("x\ny")),
            file: Some("/etc/r.toml".into()),
            expected: "expected a port".into(),
        };
        let problems = Problems(vec![first, Problem::new("/dev/kvm", "is missing")]);
        assert_eq!(
            problems.to_string(),
            "API_PORT = \"x\\ny\" (in /etc/r.toml): expected a port\n/dev/kvm: is missing"
        );
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let text = shown(&"ä".repeat(500));
        assert!(text.chars().count() < 160 && text.ends_with("(500 characters)"), "{text}");
    }
}
