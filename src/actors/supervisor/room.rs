//! Room on the host: gathers the facts for [`capacity`], and keeps what is promised from the moment of the admission.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tracing::warn;

use super::Core;
use crate::error::{Failure, chain};
use crate::host::FreeMemory;
use crate::ids::SandboxId;
use crate::pressure::Pressure;
use crate::sandbox::capacity::{self, Host, Limits, Promised};
use crate::sandbox::{Ask, Size, StopMode, WireState};

/// What admission by room needs.
pub(super) struct Room {
    free: Rc<dyn FreeMemory>,
    limits: Limits,
    pressure: Pressure,
    /// Sandboxes that were admitted and whose start has not ended yet.
    reserved: Rc<RefCell<HashMap<SandboxId, Size>>>,
}

/// Room that was promised; given back when dropped, also by a panic.
pub(super) struct Held {
    id: SandboxId,
    reserved: Rc<RefCell<HashMap<SandboxId, Size>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reserved.borrow_mut().remove(&self.id);
    }
}

impl Room {
    pub fn new(free: Rc<dyn FreeMemory>, limits: Limits, pressure: Pressure) -> Self {
        Self { free, limits, pressure, reserved: Rc::default() }
    }
}

impl Core {
    /// Admits by room, and reserves it at once: between two requests nothing is promised twice.
    pub(super) fn admit(&self, id: &SandboxId, ask: Ask, size: Option<Size>) -> Result<Option<Held>, Failure> {
        let room = &self.room;
        let present = self.tools.views.get(id);
        let refusal = match ask {
            // What is new needs records of its own; for those that exist the store has a reserve.
            Ask::Create(_) if present.is_none() => room.pressure.refusal(),
            Ask::Capture => room.pressure.refusal(),
            _ => room.pressure.data_refusal(),
        };
        if let Some(refusal) = refusal.filter(|_| capacity::writes(ask, present.as_deref())) {
            return Err(refusal);
        }
        let Some(size) = capacity::needs(ask, present.as_deref(), size) else { return Ok(None) };
        // It joins a start that has been admitted.
        if room.reserved.borrow().contains_key(id) {
            return Ok(None);
        }
        capacity::room(size, self.promised(id), self.on_host()?, room.limits)?;
        room.reserved.borrow_mut().insert(id.clone(), size);
        Ok(Some(Held { id: id.clone(), reserved: room.reserved.clone() }))
    }

    /// A stop that would keep the memory has no place for it on a full volume. Where nobody asked for the memory by
    /// name, the guest is shut down in order, and the record says why; to refuse would keep the volume full.
    pub(super) fn stop_mode(&self, id: &SandboxId, ask: Ask) -> Result<(Ask, Option<String>), Failure> {
        let usual = match ask {
            Ask::Stop(StopMode::Usual) => self.tools.settings.stop_mode,
            Ask::Stop(mode) => mode,
            _ => return Ok((ask, None)),
        };
        let lives = |state| matches!(state, WireState::Started | WireState::Paused);
        let needs_space =
            usual == StopMode::Checkpoint && self.tools.views.get(id).is_some_and(|view| lives(view.state));
        match self.room.pressure.data_refusal() {
            Some(refusal) if needs_space && ask == Ask::Stop(StopMode::Checkpoint) => {
                Err(refusal.during("its memory cannot be kept (stop it with mode shutdown to go on without)"))
            }
            Some(refusal) if needs_space => {
                warn!(sandbox = %id, reason = refusal.message, "stopped without keeping its memory");
                Ok((Ask::Stop(StopMode::Shutdown), Some(format!("stopped without its memory: {refusal}"))))
            }
            _ => Ok((ask, None)),
        }
    }

    /// Sums over all sandboxes but this one, whose present VM, if it has one, is gone before it starts again.
    fn promised(&self, but: &SandboxId) -> Promised {
        let reserved = self.room.reserved.borrow();
        let mut promised = Promised { slots: self.tools.slots.borrow().in_use().into(), ..Promised::default() };
        for (id, size) in reserved.iter() {
            let slot = self.tools.views.get(id).is_some_and(|view| view.address.is_some());
            promised.add(*size, true, !slot);
        }
        for view in self.tools.views.list() {
            if view.id != *but && !reserved.contains_key(&view.id) && capacity::holds(&view) {
                let starting = matches!(view.state, WireState::Creating | WireState::Starting);
                promised.add(capacity::held(&view), starting, false);
            }
        }
        // Its own slot is used again.
        if self.tools.views.get(but).is_some_and(|view| view.address.is_some()) {
            promised.slots = promised.slots.saturating_sub(1);
        }
        promised
    }

    fn on_host(&self) -> Result<Host, Failure> {
        let (cpus, memory) = self.host;
        let available = match self.room.limits.min_free_memory {
            0 => u64::MAX,
            _ => self
                .room
                .free
                .available()
                .inspect_err(|error| warn!(error = %chain(error), "cannot tell the free memory"))?,
        };
        Ok(Host { cpus, memory, available, slots: self.tools.slots.borrow().capacity() })
    }
}
