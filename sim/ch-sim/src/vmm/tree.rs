//! The device tree of `vm.info`: identifiers and PCI slots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Chain, Outcome};

/// Slots of the PCI segment; slot 0 is the root.
const SLOTS: u8 = 32;

/// One device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    pub resources: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    pub children: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// All devices of a VM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds a device that is not on the PCI bus.
    pub fn add(&mut self, id: &str) {
        self.insert(id, None, Vec::new(), None);
    }

    /// Adds a virtio device and its PCI parent; returns the address of the parent.
    pub fn add_pci(&mut self, id: &str, slot: Option<u8>) -> Outcome<String> {
        let bdf = self.free_bdf(slot)?;
        let parent = format!("_virtio-pci-{id}");
        self.insert(&parent, None, vec![id.to_owned()], Some(bdf.clone()));
        self.insert(id, Some(parent), Vec::new(), None);
        Ok(bdf)
    }

    /// Identifiers of all devices.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is a device with this identifier.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Removes a virtio device and its PCI parent.
    pub fn remove_pci(&mut self, id: &str) {
        self.0.remove(id);
        self.0.remove(&format!("_virtio-pci-{id}"));
    }

    fn insert(&mut self, id: &str, parent: Option<String>, children: Vec<String>, pci_bdf: Option<String>) {
        let node = Node { id: id.to_owned(), resources: Vec::new(), parent, children, pci_bdf };
        self.0.insert(id.to_owned(), node);
    }

    fn free_bdf(&self, slot: Option<u8>) -> Outcome<String> {
        let name = |slot: u8| format!("0000:00:{slot:02x}.0");
        let taken = |slot: u8| {
            let bdf = name(slot);
            self.0.values().any(|node| node.pci_bdf.as_deref() == Some(&bdf))
        };
        match slot {
            Some(slot) if !taken(slot) => Ok(name(slot)),
            Some(_) => Err(Chain::new("Could not reserve the PCI device ID")),
            None => (1..SLOTS)
                .find(|slot| !taken(*slot))
                .map(name)
                .ok_or_else(|| Chain::new("Failed to find an available PCI device ID")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tree;

    #[test]
    fn slots_are_given_in_order_and_freed() {
        let mut tree = Tree::default();
        assert_eq!(tree.add_pci("a", None).unwrap(), "0000:00:01.0");
        assert_eq!(tree.add_pci("b", Some(5)).unwrap(), "0000:00:05.0");
        assert_eq!(tree.add_pci("c", None).unwrap(), "0000:00:02.0");
        tree.remove_pci("a");
        assert!(!tree.contains("a"));
        assert_eq!(tree.add_pci("d", None).unwrap(), "0000:00:01.0");
    }
}
