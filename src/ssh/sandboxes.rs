//! How many connections each sandbox has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::SandboxId;

/// Connections by sandbox; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sandboxes {
    most: usize,
    connections: Arc<Mutex<HashMap<SandboxId, usize>>>,
}

/// One connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    sandboxes: Sandboxes,
    id: SandboxId,
}

impl Sandboxes {
    /// So many for each.
    pub fn new(most: usize) -> Self {
        Self { most, connections: Arc::default() }
    }

    /// One more, or the limit.
    pub fn enter(&self, id: &SandboxId) -> Result<Place, usize> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(id.clone()).or_default();
        if *count >= self.most {
            return Err(self.most);
        }
        *count += 1;
        Ok(Place { sandboxes: self.clone(), id: id.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.sandboxes.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sandbox_has_its_own_places() {
        let sandboxes = Sandboxes::new(2);
        let (a, b): (SandboxId, SandboxId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = sandboxes.enter(&a).unwrap();
        let _second = sandboxes.enter(&a).unwrap();
        assert_eq!(sandboxes.enter(&a).unwrap_err(), 2);
        let other = sandboxes.enter(&b).unwrap();
        drop(first);
        assert!(sandboxes.enter(&a).is_ok());
        drop(other);
        assert_eq!(sandboxes.connections.lock().unwrap().len(), 1, "what is not used is not remembered");
    }
}
