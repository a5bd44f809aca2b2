//! Looking at the host, part by part, side by side, none longer than it may.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Core;
use crate::error::Failure;
use crate::ledger::{Blind, Cache, Inventory, Observed};

/// Longest look at one part. A look takes milliseconds, or a moment with thousands of sandboxes; a disk that hangs
/// must not hold the rest up.
const LONGEST: Duration = Duration::from_secs(20);

impl Core {
    /// All parts; those that could not be looked at are named.
    pub(super) async fn observe(&self) -> (Observed, Vec<Blind>) {
        let ports = &self.ports;
        let (network, hypervisor, disks, snapshots) =
            (ports.network.clone(), ports.hypervisor.clone(), ports.disks.clone(), ports.snapshots.clone());
        let sockets = self.settings.sockets.clone();
        let (network, vmms, disks, snapshots) = futures::join!(
            self.part("networks", async move { Ok(network.survey().await?) }),
            self.part("VMMs", async move { Ok(hypervisor.survey(&sockets).await?) }),
            self.part("sandboxes' directories", async move { Ok(disks.survey().await?) }),
            self.part("snapshots", async move { Ok(snapshots.survey().await?) }),
        );
        let mut blind = Vec::new();
        let observed = Observed {
            network: seen(network, &mut blind),
            vmms: seen(vmms, &mut blind),
            disks: seen(disks, &mut blind),
            snapshots: seen(snapshots, &mut blind),
            routes: Some(self.routes.ids()),
        };
        let unread = [
            ("networks", observed.network.as_ref().map(|survey| &survey.unread)),
            ("VMMs", observed.vmms.as_ref().map(|survey| &survey.unread)),
            ("sandboxes' directories", observed.disks.as_ref().map(|survey| &survey.unread)),
        ];
        for (part, lines) in unread {
            let lines = lines.into_iter().flatten();
            blind.extend(lines.map(|line| Blind { part: part.to_owned(), reason: line.clone() }));
        }
        (observed, blind)
    }

    /// One part. A look that has been given up goes on by itself, and until it has ended there is no second one: a
    /// disk that hangs takes one thread, not one more with every run.
    async fn part<T: 'static>(
        &self,
        name: &'static str,
        look: impl Future<Output = Result<T, Failure>> + 'static,
    ) -> Result<T, Blind> {
        let blind = |reason: String| Blind { part: name.to_owned(), reason };
        if !self.looking.borrow_mut().insert(name) {
            return Err(blind("an earlier look at it has not ended yet; look for a hanging disk or kernel".to_owned()));
        }
        let ended = Ended { looking: Rc::clone(&self.looking), name };
        let (answer, seen) = oneshot::channel();
        actix::spawn(async move {
            let result = look.await;
            drop(ended);
            // Nobody waits any more for a look that took too long.
            let _ = answer.send(result);
        });
        let began = Instant::now();
        let seen = timeout(LONGEST, seen).await;
        self.took(name, began);
        match seen {
            Ok(Ok(result)) => result.map_err(|failure| blind(failure.message)),
            Ok(Err(_)) => Err(blind("the look at it ended without a result; see the log for its panic".to_owned())),
            Err(_) => Err(blind(format!("the look at it did not end within {} s", LONGEST.as_secs()))),
        }
    }
}

/// Ends a look on every way out.
struct Ended {
    looking: Rc<std::cell::RefCell<std::collections::HashSet<&'static str>>>,
    name: &'static str,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.looking.borrow_mut().remove(self.name);
    }
}

fn seen<T>(part: Result<T, Blind>, blind: &mut Vec<Blind>) -> Option<T> {
    part.map_err(|reason| blind.push(reason)).ok()
}

/// VMMs that did not say how their VMs are.
pub(super) fn silent(inventory: &Inventory) -> impl Iterator<Item = Blind> + '_ {
    inventory.stocks.iter().filter_map(|stock| match &stock.vm {
        Some(Err(reason)) => Some(Blind { part: format!("the VM of {}", stock.record.id), reason: reason.clone() }),
        _ => None,
    })
}

pub(super) fn caches(observed: &Observed) -> Vec<Cache> {
    let caches = observed.disks.iter().flat_map(|survey| &survey.caches);
    let told = |path: &std::path::Path| path.display().to_string();
    caches.map(|cache| Cache { path: told(&cache.path), bytes: cache.bytes, what: cache.what.to_owned() }).collect()
}
