//! Repair. The list of a run is only where it begins: each difference is looked for again while its sandbox is held
//! still, so that nothing comes to life under the hands of the repair, and each port proves once more what it removes.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::{Core, gone, tell_repair};
use crate::disk::DiskLeak;
use crate::error::Failure;
use crate::hypervisor::ProcessSeen;
use crate::ids::SandboxId;
use crate::ledger::{Difference, Expected, Kind, Remedy, compare};
use crate::messages::ledger::{Hold, HoldSandbox, Outcome, Repair, Repairs, ResumeStray};
use crate::net::Leaked;

/// Longest time for one act: removing a large directory on a slow disk.
const LONGEST: Duration = Duration::from_secs(120);

pub(super) async fn repair(core: &Core, asked: &Repair) -> Result<Repairs, Failure> {
    let _turn = core.turn.lock().await;
    let audit = core.audit().await?;
    let mut outcomes = Vec::new();
    for difference in &audit.differences {
        let outcome = match refusal(asked, difference) {
            Some(reason) => Outcome::Skipped(reason),
            None if asked.dry_run => Outcome::Would,
            None => core.settle(difference).await,
        };
        outcomes.push((difference.clone(), outcome));
    }
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| wanted(outcome)).count() as u64;
    let done = count(|outcome| matches!(outcome, Outcome::Done));
    core.ledger.count_repairs(done, count(|outcome| matches!(outcome, Outcome::Failed(_))));
    let repairs = Repairs { audit, outcomes };
    tell_repair(&repairs);
    if done > 0 {
        // So that readers see the host as it is now.
        core.audit().await?;
    }
    Ok(repairs)
}

/// Why a difference is not among those that are to be repaired.
fn refusal(asked: &Repair, difference: &Difference) -> Option<String> {
    let Difference { kind, remedy, harmless, .. } = difference;
    match (remedy, &asked.kinds) {
        (Remedy::None { advice }, _) => Some(format!("the ledger does nothing about it: {advice}")),
        (_, Some(kinds)) if !kinds.contains(kind) => Some(format!("kind {kind} is not among the kinds to repair")),
        (_, None) if !harmless => {
            Some(format!("somebody's work may depend on it; to repair it, name its kind: \"kinds\": [\"{kind}\"]"))
        }
        _ => None,
    }
}

impl Core {
    async fn settle(&self, difference: &Difference) -> Outcome {
        let act = async {
            match &difference.sandbox {
                // The sandbox's own actor looks again, in its own turn.
                Some(id) if difference.remedy == Remedy::Resume => {
                    self.supervisor.send(ResumeStray(id.clone())).await.map_err(|_| gone())?
                }
                Some(id) => self.settle_held(id, difference).await,
                None => self.act(difference, None).await,
            }
        };
        match timeout(LONGEST, act).await {
            Ok(Ok(true)) => Outcome::Done,
            Ok(Ok(false)) => Outcome::Skipped("it is no difference any more, or its sandbox is busy".to_owned()),
            Ok(Err(failure)) => Outcome::Failed(failure.message),
            Err(_) => {
                Outcome::Failed(format!("it did not end within {} s; look for a hanging disk", LONGEST.as_secs()))
            }
        }
    }

    async fn settle_held(&self, id: &SandboxId, difference: &Difference) -> Result<bool, Failure> {
        let held = self.supervisor.send(HoldSandbox(id.clone())).await.map_err(|_| gone())??;
        let Some(hold) = held else { return Ok(false) };
        let mut inventory = self.inventory(false).await?;
        // A sandbox that is held says of itself that it is busy.
        inventory.stocks.retain(|stock| stock.record.id != *id);
        inventory.unknown.retain(|unknown| unknown != id);
        inventory.stocks.extend(hold.stock.as_deref().cloned());
        let (observed, _) = self.observe().await;
        let found = compare(&Expected::at(&inventory), &observed);
        let same = |now: &&Difference| now.key() == difference.key() && now.remedy == difference.remedy;
        match found.iter().find(same) {
            // What has become dangerous meanwhile was not asked for.
            Some(now) if now.harmless >= difference.harmless => self.act(now, Some(&hold)).await,
            _ => Ok(false),
        }
    }

    async fn act(&self, difference: &Difference, hold: Option<&Hold>) -> Result<bool, Failure> {
        let ports = &self.ports;
        let sandbox = || difference.sandbox.clone().ok_or_else(|| nameless(difference));
        match &difference.remedy {
            Remedy::EndProcess { process, socket } => {
                let stray = ProcessSeen { process: process.clone(), socket: socket.clone() };
                let ended = ports.hypervisor.end_stray(&stray).await?;
                let in_use = hold.and_then(|hold| hold.stock.as_ref()).is_some_and(|stock| stock.record.vmm.is_some());
                if ended && !in_use {
                    ports.hypervisor.remove_stale(socket).await?;
                }
                Ok(ended)
            }
            Remedy::RemoveSocket { socket } => Ok(ports.hypervisor.remove_stale(socket).await?),
            Remedy::RemoveNamespace { name } => {
                let leaked = Leaked::Namespace { name: name.clone(), sandbox: sandbox()? };
                Ok(ports.network.remove_leaked(&leaked).await?)
            }
            Remedy::RemoveLink { name } => {
                let leaked = Leaked::Link { name: name.clone(), sandbox: sandbox()? };
                Ok(ports.network.remove_leaked(&leaked).await?)
            }
            Remedy::RemoveFiles { path } if difference.kind == Kind::Snapshot => {
                Ok(ports.snapshots.remove_leaked(path).await?)
            }
            Remedy::RemoveFiles { path } => Ok(ports.disks.remove_leaked(&self.leak(difference, path)?).await?),
            Remedy::PrepareHost => Ok(ports.network.prepare_host().await.map(|()| true)?),
            Remedy::Resume | Remedy::None { .. } => Ok(false),
        }
    }

    fn leak(&self, difference: &Difference, path: &Path) -> Result<DiskLeak, Failure> {
        let sandbox = || difference.sandbox.clone().ok_or_else(|| nameless(difference));
        Ok(match difference.kind {
            Kind::Directory => DiskLeak::Directory(sandbox()?),
            Kind::Checkpoint => DiskLeak::Checkpoint(sandbox()?),
            Kind::Capture => DiskLeak::Capture(path.to_owned()),
            Kind::Layer => DiskLeak::Layer(path.to_owned()),
            _ => {
                let (id, dir) = (sandbox()?, self.ports.disks.dir(&sandbox()?));
                let name = path.strip_prefix(dir).ok().and_then(|name| name.to_str());
                DiskLeak::Unfinished(id, name.ok_or_else(|| nameless(difference))?.to_owned())
            }
        })
    }
}

/// A difference without what its remedy needs: never by the comparison.
fn nameless(difference: &Difference) -> Failure {
    let message =
        format!("{} {}: it is not known whose it is (a defect of the runner)", difference.kind, difference.object);
    Failure::new(crate::error::ErrorCode::Internal, message)
}
