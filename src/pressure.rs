//! Whether a volume of this host is about to be full. Whoever measures a volume raises and lowers its flag;
//! admission asks. While a flag is up, work that needs space is refused ([`Pressure::refusal`]); sandboxes are
//! stopped and destroyed all the same, which is what gives space back.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{ErrorCode, Failure};

/// The flags of both volumes; cheap to clone, shared between the actors, the store and the HTTP workers.
#[derive(Debug, Clone, Default)]
pub struct Pressure(Arc<RwLock<Flags>>);

#[derive(Debug, Default)]
struct Flags {
    store: Option<String>,
    data: Option<String>,
}

impl Pressure {
    /// Raises or lowers the flag of the volume with the store (RUNNER_STATE_PATH). The reason is a sentence without
    /// its full stop: which volume, how many bytes are free, how many are needed.
    pub fn set_store(&self, reason: Option<String>) {
        self.write(|flags| flags.store = reason);
    }

    /// The same for the volume with the sandboxes (CH_SANDBOXES_PATH).
    pub fn set_data(&self, reason: Option<String>) {
        self.write(|flags| flags.data = reason);
    }

    /// Why there is no room for new work; none while there is.
    pub fn reason(&self) -> Option<String> {
        let flags = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match (&flags.store, &flags.data) {
            (Some(store), Some(data)) => Some(format!("{store}; {data}")),
            (one, other) => one.as_ref().or(other.as_ref()).cloned(),
        }
    }

    /// How work that makes something new is refused while a flag is up. The words "no space left on device" are what
    /// the API matches (PROTOCOL.md 2.6).
    pub fn refusal(&self) -> Option<Failure> {
        self.reason().map(refused)
    }

    /// The same for work on what is there already: it needs space on the data volume only, as the store has a reserve
    /// for its states.
    pub fn data_refusal(&self) -> Option<Failure> {
        let flags = self.0.read().unwrap_or_else(PoisonError::into_inner);
        flags.data.clone().map(refused)
    }

    fn write(&self, change: impl FnOnce(&mut Flags)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

fn refused(reason: String) -> Failure {
    let message = format!(
        "no space left on device: {reason}; free some space or destroy sandboxes, and the runner goes on by itself"
    );
    Failure::new(ErrorCode::NoSpace, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_has_a_flag_of_its_own() {
        let pressure = Pressure::default();
        let reader = pressure.clone();
        assert!(reader.reason().is_none() && reader.refusal().is_none());
        pressure.set_store(Some("the store's volume has 3 bytes free, 4 are needed".into()));
        assert!(reader.refusal().is_some() && reader.data_refusal().is_none());
        pressure.set_data(Some("the data volume has 1 byte free, 2 are needed".into()));
        let both = reader.reason().unwrap();
        assert!(both.contains("3 bytes") && both.contains("1 byte free"), "{both}");
        pressure.set_store(None);
        let refusal = reader.refusal().unwrap();
        assert_eq!(refusal.code, ErrorCode::NoSpace);
        assert!(refusal.recoverable() && refusal.message.contains("no space left on device"), "{refusal}");
        assert!(refusal.message.contains("1 byte free") && !refusal.message.contains("3 bytes"), "{refusal}");
        pressure.set_data(None);
        assert!(reader.reason().is_none());
    }
}
