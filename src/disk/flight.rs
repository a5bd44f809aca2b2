//! Two small locks for blocking threads: one run of a piece of work for all who ask for it at the same
//! time, and one operation at a time per sandbox.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Error;
use crate::ids::SandboxId;

/// Locks even after a panic elsewhere: every critical section here leaves its data consistent.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer<T> = Result<T, Arc<Error>>;

struct Flight<T> {
    answer: Mutex<Option<Answer<T>>>,
    arrived: Condvar,
}

/// Work that is under way, by key.
pub(super) struct Flights<T> {
    under_way: Mutex<HashMap<String, Arc<Flight<T>>>>,
}

impl<T: Clone> Flights<T> {
    /// Nothing under way.
    pub(super) fn new() -> Self {
        Self { under_way: Mutex::new(HashMap::new()) }
    }

    /// Whether work for this key runs now.
    pub(super) fn is_under_way(&self, key: &str) -> bool {
        locked(&self.under_way).contains_key(key)
    }

    /// Runs `work`, unless the same key is under way: then waits for that run and shares its answer.
    pub(super) fn run(&self, key: &str, work: impl FnOnce() -> Result<T, Error>) -> Answer<T> {
        let mut under_way = locked(&self.under_way);
        if let Some(flight) = under_way.get(key).map(Arc::clone) {
            drop(under_way);
            return flight.wait();
        }
        let flight = Arc::new(Flight { answer: Mutex::new(None), arrived: Condvar::new() });
        under_way.insert(key.to_owned(), Arc::clone(&flight));
        drop(under_way);
        let landing = Landing { flights: self, key, flight: &flight };
        let answer = work().map_err(Arc::new);
        *locked(&flight.answer) = Some(answer.clone());
        drop(landing);
        answer
    }
}

impl<T: Clone> Flight<T> {
    fn wait(&self) -> Answer<T> {
        let mut answer = locked(&self.answer);
        loop {
            match answer.as_ref() {
                Some(answer) => return answer.clone(),
                None => answer = self.arrived.wait(answer).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Ends a flight on every way out, a panic of the work included.
struct Landing<'a, T: Clone> {
    flights: &'a Flights<T>,
    key: &'a str,
    flight: &'a Flight<T>,
}

impl<T: Clone> Drop for Landing<'_, T> {
    fn drop(&mut self) {
        locked(&self.flights.under_way).remove(self.key);
        let mut answer = locked(&self.flight.answer);
        answer.get_or_insert_with(|| Err(Arc::new(Error::Died { what: "shared work on a base image" })));
        self.flight.arrived.notify_all();
    }
}

/// One operation at a time per sandbox.
#[derive(Default)]
pub(super) struct Gate {
    busy: Mutex<HashSet<SandboxId>>,
    freed: Condvar,
}

impl Gate {
    /// Waits for the turn of this sandbox's operation; the turn ends when the value is dropped.
    pub(super) fn enter<'a>(&'a self, sandbox: &'a SandboxId) -> Turn<'a> {
        let mut busy = locked(&self.busy);
        while busy.contains(sandbox) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        busy.insert(sandbox.clone());
        Turn { gate: self, sandbox }
    }
}

/// The right to work on one sandbox's files.
pub(super) struct Turn<'a> {
    gate: &'a Gate,
    sandbox: &'a SandboxId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(&self.gate.busy).remove(self.sandbox);
        self.gate.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn those_who_ask_at_the_same_time_share_one_run() {
        let (flights, runs, (go, wait)) = (Flights::new(), AtomicU32::new(0), mpsc::channel::<()>());
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                flights.run("k", move || {
                    let waited = wait.recv();
                    waited.map_err(|_| Error::Died { what: "test" })?;
                    Ok(runs.fetch_add(1, Ordering::SeqCst))
                })
            });
            while locked(&flights.under_way).get("k").is_none() {
                thread::yield_now();
            }
            let flight = Arc::clone(&locked(&flights.under_way)["k"]);
            let others: Vec<_> =
                (0..4).map(|_| scope.spawn(|| flights.run("k", || Err(Error::Died { what: "second run" })))).collect();
            while Arc::strong_count(&flight) < 7 {
                thread::yield_now();
            }
            go.send(()).unwrap();
            assert_eq!(leader.join().unwrap().unwrap(), 0);
            for other in others {
                assert_eq!(other.join().unwrap().unwrap(), 0);
            }
        });
        assert!(locked(&flights.under_way).is_empty());
    }

    #[test]
    fn a_panic_of_the_work_wakes_the_next_one() {
        let flights = Flights::<u32>::new();
        let panicked = thread::scope(|scope| {
            scope.spawn(|| flights.run("k", || std::panic::resume_unwind(Box::new("on purpose")))).join().is_err()
        });
        assert!(panicked);
        assert_eq!(flights.run("k", || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_sandbox_has_one_turn_at_a_time() {
        let (gate, inside) = (Gate::default(), AtomicU32::new(0));
        let id: SandboxId = "one".parse().unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = gate.enter(&id);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(locked(&gate.busy).is_empty());
    }
}
