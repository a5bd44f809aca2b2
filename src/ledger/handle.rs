//! The last result, for readers: HTTP now, metrics as well. Cheap to clone, no mailbox.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Audit, Counts};

/// The ledger as readers see it.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<RwLock<Now>>);

#[derive(Debug, Default)]
struct Now {
    last: Option<Arc<Audit>>,
    runs: u64,
    repaired: u64,
    failed: u64,
}

impl Ledger {
    /// A run has ended; returns the result before it.
    pub(crate) fn set(&self, audit: Arc<Audit>) -> Option<Arc<Audit>> {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        now.runs += 1;
        now.last.replace(audit)
    }

    /// So many differences were repaired, and so many could not be.
    pub(crate) fn count_repairs(&self, repaired: u64, failed: u64) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        now.repaired += repaired;
        now.failed += failed;
    }

    /// The result of the last run; none before the first.
    pub fn last(&self) -> Option<Arc<Audit>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).last.clone()
    }

    /// Differences of the last run by kind.
    pub fn counts(&self) -> Option<Counts> {
        self.last().map(|audit| audit.counts())
    }

    /// Runs since the start.
    pub fn runs(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).runs
    }

    /// Differences that were repaired since the start, and attempts that failed.
    pub fn repairs(&self) -> (u64, u64) {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (now.repaired, now.failed)
    }
}
