//! [`FileDisks`] as [`Disks`]: every call becomes work for a blocking thread.

use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::create::remove;
use super::files::{Abandon, FileDisks};
use super::{
    DiskLeak, DiskSurvey, Disks, Error, Graft, Plan, RootDisk, SandboxDisks, Space, Stamp, Strategy, captures, volume,
};
use crate::ids::SandboxId;

/// Directory of a checkpoint, in the sandbox's directory.
const CHECKPOINT: &str = "checkpoint";

impl Disks for FileDisks {
    fn strategy(&self) -> Strategy {
        self.inner.strategy
    }

    fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.inner.dir(sandbox)
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<SandboxDisks, Error>> {
        let (plan, (abandon, seen)) = (plan.clone(), Abandon::new());
        async move {
            let _abandon = abandon;
            self.run("making the sandbox's disks", move |inner| inner.create(&plan, &seen)).await
        }
        .boxed_local()
    }

    fn remove<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let sandbox = sandbox.clone();
        self.run("removing the sandbox's disks", move |inner| inner.remove(&sandbox))
    }

    fn hold<'a>(&'a self, sandbox: &'a SandboxId, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (sandbox, root) = (sandbox.clone(), root.clone());
        self.run("locking what a disk stands on", move |inner| inner.hold(&sandbox, &root))
    }

    fn begin_capture(&self) -> LocalBoxFuture<'_, Result<PathBuf, Error>> {
        self.run("making a capture's directory", |inner| inner.begin_capture())
    }

    fn begin_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<PathBuf, Error>> {
        let dir = self.inner.dir(sandbox).join(CHECKPOINT);
        self.run("making a checkpoint's directory", move |_| captures::begin_checkpoint(dir))
    }

    fn end_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let dir = self.inner.dir(sandbox).join(CHECKPOINT);
        self.run("removing a checkpoint", move |_| remove(&dir))
    }

    fn end_capture<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>> {
        let dir = dir.to_owned();
        self.run("removing a capture", move |inner| inner.end_capture(&dir))
    }

    fn flush<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>> {
        let path = root.path.clone();
        self.run("flushing a disk", move |_| captures::flush(&path))
    }

    fn freeze<'a>(&'a self, root: &'a RootDisk, capture: &'a Path) -> LocalBoxFuture<'a, Result<RootDisk, Error>> {
        let (root, capture, (abandon, seen)) = (root.clone(), capture.to_owned(), Abandon::new());
        async move {
            let _abandon = abandon;
            self.run("freezing a disk", move |inner| inner.freeze(&root, &capture, &seen)).await
        }
        .boxed_local()
    }

    fn split<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
    ) -> LocalBoxFuture<'a, Result<(RootDisk, RootDisk), Error>> {
        let (sandbox, root) = (sandbox.clone(), root.clone());
        self.run("splitting a disk", move |inner| inner.split(&sandbox, &root))
    }

    fn after_split<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
        stamp: Stamp,
    ) -> LocalBoxFuture<'a, Result<Option<(RootDisk, Stamp)>, Error>> {
        let (sandbox, root) = (sandbox.clone(), root.clone());
        self.run("looking for a split", move |inner| inner.after_split(&sandbox, &root, stamp))
    }

    fn release<'a>(&'a self, frozen: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>> {
        let path = frozen.path.clone();
        self.run("releasing a frozen disk", move |inner| inner.release(&path))
    }

    fn graft<'a>(&'a self, graft: &'a Graft) -> LocalBoxFuture<'a, Result<SandboxDisks, Error>> {
        let (graft, (abandon, seen)) = (graft.clone(), Abandon::new());
        async move {
            let _abandon = abandon;
            self.run("making the sandbox's disks from frozen ones", move |inner| inner.graft(&graft, &seen)).await
        }
        .boxed_local()
    }

    fn room<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (sandbox, (abandon, seen)) = (sandbox.clone(), Abandon::new());
        async move {
            let _abandon = abandon;
            self.run("making the sandbox's directory", move |inner| inner.room(&sandbox, &seen)).await
        }
        .boxed_local()
    }

    fn grow<'a>(&'a self, root: &'a RootDisk, size: u64) -> LocalBoxFuture<'a, Result<RootDisk, Error>> {
        let root = root.clone();
        self.run("growing a disk", move |inner| inner.grow(&root, size))
    }

    fn stamp<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<Stamp, Error>> {
        let path = root.path.clone();
        self.run("looking at a disk's version", move |_| captures::stamp(&path))
    }

    fn merge<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<Option<PathBuf>, Error>> {
        let (root, (abandon, seen)) = (root.clone(), Abandon::new());
        async move {
            let _abandon = abandon;
            self.run("merging the layers of a disk", move |inner| inner.merge(&root, &seen)).await
        }
        .boxed_local()
    }

    fn rebase<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
        merged: &'a Path,
    ) -> LocalBoxFuture<'a, Result<RootDisk, Error>> {
        let (sandbox, root, merged) = (sandbox.clone(), root.clone(), merged.to_owned());
        self.run("putting a disk on a merged layer", move |inner| inner.rebase(&sandbox, &root, &merged))
    }

    fn sweep(&self) -> LocalBoxFuture<'_, Result<u64, Error>> {
        self.run("sweeping captures and layers", |inner| inner.sweep())
    }

    fn survey(&self) -> LocalBoxFuture<'_, Result<DiskSurvey, Error>> {
        self.run("surveying the sandboxes' directory", |inner| inner.survey())
    }

    fn remove_leaked<'a>(&'a self, leak: &'a DiskLeak) -> LocalBoxFuture<'a, Result<bool, Error>> {
        let leak = leak.clone();
        self.run("removing what nobody needs", move |inner| inner.remove_leaked(&leak))
    }

    fn users_of<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<Vec<SandboxId>, Error>> {
        let dir = dir.to_owned();
        self.run("looking for the users of a directory", move |inner| inner.users_of(&dir))
    }

    fn space(&self) -> LocalBoxFuture<'_, Result<Space, Error>> {
        self.run("reading the free space", |inner| volume::space(&inner.sandboxes))
    }

    fn snapshot_count(&self) -> LocalBoxFuture<'_, Result<u64, Error>> {
        self.run("counting the snapshots", |inner| volume::snapshots(&inner.snapshots).map(|(_, count)| count))
    }
}
