//! One run of the ledger: what counts, and how it is told.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Difference, Kind, What};

/// A part of the host that could not be looked at. Nothing is said about what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Blind {
    /// What was to be looked at.
    pub part: String,
    /// Why it could not be.
    pub reason: String,
}

/// A file that nobody uses at present and that may stay: it saves work, and the next start of the runner removes it if
/// it is still unused then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Cache {
    /// Where it is.
    pub path: String,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// What it is.
    pub what: String,
}

/// Number of differences of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tally {
    /// There, and should not be.
    pub leaked: u64,
    /// Not there, and should be.
    pub missing: u64,
    /// Not as it should be.
    pub wrong: u64,
}

/// Numbers of differences, by the names of their kinds. Every kind is there, so that a metric does not vanish when its
/// last difference does.
pub type Counts = BTreeMap<&'static str, Tally>;

/// What one run has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    /// How long it took, in microseconds, without the pause between two looks.
    pub duration_micros: u64,
    /// How long each part of the last look took, in microseconds; the surveys run side by side.
    #[schema(value_type = Object)]
    pub part_micros: BTreeMap<&'static str, u64>,
    /// How often the host was looked at: once, or twice when there was something to confirm.
    pub looks: u32,
    /// What counts.
    pub differences: Vec<Difference>,
    /// What nobody uses and may stay.
    pub caches: Vec<Cache>,
    /// What could not be looked at.
    pub blind: Vec<Blind>,
}

impl Audit {
    /// Numbers by kind.
    pub fn counts(&self) -> Counts {
        let mut counts: Counts = Kind::ALL.iter().map(|kind| (kind.name(), Tally::default())).collect();
        for difference in &self.differences {
            let tally = counts.entry(difference.kind.name()).or_default();
            match difference.what {
                What::Leaked => tally.leaked += 1,
                What::Missing => tally.missing += 1,
                What::Wrong => tally.wrong += 1,
            }
        }
        counts
    }

    /// What an earlier run has not found.
    pub fn new_since<'a>(&'a self, earlier: Option<&'a Self>) -> impl Iterator<Item = &'a Difference> {
        self.differences.iter().filter(move |difference| {
            earlier.is_none_or(|earlier| earlier.differences.iter().all(|known| known.key() != difference.key()))
        })
    }
}

/// What two looks have seen, as the second one saw it.
pub fn confirm(first: &[Difference], second: Vec<Difference>) -> Vec<Difference> {
    second.into_iter().filter(|seen| first.iter().any(|before| before.key() == seen.key())).collect()
}
