//! Disks, memory and snapshots of the host in memory.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use runner_ch::disk::{
    self, DiskLeak, DiskSurvey, Disks, Format, Graft, RootDisk, SandboxDisks, Space, Stamp, Strategy,
};
use runner_ch::hypervisor::ProcessIdentity;
use runner_ch::ids::{SandboxId, SnapshotRef};
use runner_ch::memory::{self, Delta, Memory, Proof, Source, Taken};
use runner_ch::snapshots::{self, FORMAT, FileEntry, Found, Manifest, MemoryEntry, Save, SnapshotSurvey, Snapshots};

use super::Host;
use super::survey::answer;

type Answer<'a, T> = LocalBoxFuture<'a, Result<T, disk::Error>>;

fn full<T>(_: ()) -> Result<T, disk::Error> {
    Err(disk::Error::Seed { field: "disk".into(), why: "as ordered".into() })
}

fn io(doing: &'static str) -> memory::Error {
    memory::Error::Io { doing, path: "/nowhere".into(), source: std::io::Error::from_raw_os_error(5) }
}

impl Host {
    async fn disk_effect(&self, name: &str) -> Result<(), disk::Error> {
        self.effect(name).await.or_else(full)
    }

    fn new_disk(&self, sandbox: &SandboxId, size: u64, layers: Vec<PathBuf>) -> SandboxDisks {
        let dir = Disks::dir(self, sandbox);
        let raw = self.0.borrow().raw;
        self.0.borrow_mut().disks.insert(sandbox.to_string());
        let (name, format) = if raw { ("disk.raw", Format::Raw) } else { ("disk.qcow2", Format::Qcow2) };
        let root = RootDisk { path: dir.join(name), format, backed: !raw, size, base: "/nowhere/base".into(), layers };
        SandboxDisks { root, seed: dir.join("seed.img") }
    }
}

impl Disks for Host {
    fn strategy(&self) -> Strategy {
        if self.0.borrow().raw { Strategy::Reflink } else { Strategy::Overlay }
    }

    fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        Path::new("/nowhere").join(sandbox.as_str())
    }

    fn create<'a>(&'a self, plan: &'a disk::Plan) -> Answer<'a, SandboxDisks> {
        async move {
            self.disk_effect("disk").await?;
            Ok(self.new_disk(&plan.sandbox, plan.size, Vec::new()))
        }
        .boxed_local()
    }

    fn remove<'a>(&'a self, sandbox: &'a SandboxId) -> Answer<'a, ()> {
        async move {
            self.disk_effect("erase").await?;
            self.insist(!self.0.borrow().vmms.contains_key(sandbox.as_str()), "a VMM loses its disk");
            let mut host = self.0.borrow_mut();
            host.disks.remove(sandbox.as_str());
            host.checkpoints.remove(sandbox.as_str());
            drop(host);
            self.forget_images(&Disks::dir(self, sandbox));
            Ok(())
        }
        .boxed_local()
    }

    fn hold<'a>(&'a self, _: &'a SandboxId, _: &'a RootDisk) -> Answer<'a, ()> {
        async { Ok(()) }.boxed_local()
    }

    fn begin_capture(&self) -> Answer<'_, PathBuf> {
        async {
            self.disk_effect("begin_capture").await?;
            let mut host = self.0.borrow_mut();
            let dir = Path::new("/nowhere/.captures").join(host.effects.len().to_string());
            host.captures.insert(dir.clone());
            Ok(dir)
        }
        .boxed_local()
    }

    fn end_capture<'a>(&'a self, dir: &'a Path) -> Answer<'a, ()> {
        async move {
            self.disk_effect("end_capture").await?;
            self.0.borrow_mut().captures.remove(dir);
            self.forget_images(dir);
            Ok(())
        }
        .boxed_local()
    }

    fn begin_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> Answer<'a, PathBuf> {
        async move {
            self.disk_effect("begin_checkpoint").await?;
            self.0.borrow_mut().checkpoints.insert(sandbox.to_string());
            let dir = Disks::dir(self, sandbox).join("checkpoint");
            self.forget_images(&dir);
            Ok(dir)
        }
        .boxed_local()
    }

    fn end_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> Answer<'a, ()> {
        async move {
            self.disk_effect("end_checkpoint").await?;
            self.0.borrow_mut().checkpoints.remove(sandbox.as_str());
            self.forget_images(&Disks::dir(self, sandbox).join("checkpoint"));
            Ok(())
        }
        .boxed_local()
    }

    fn flush<'a>(&'a self, _: &'a RootDisk) -> Answer<'a, ()> {
        async { self.disk_effect("flush").await }.boxed_local()
    }

    fn freeze<'a>(&'a self, root: &'a RootDisk, capture: &'a Path) -> Answer<'a, RootDisk> {
        async move {
            self.insist(root.format == Format::Raw, "a qcow2 disk is frozen behind its VMM");
            self.disk_effect("freeze").await?;
            Ok(RootDisk { path: capture.join("disk.raw"), ..root.clone() })
        }
        .boxed_local()
    }

    fn after_split<'a>(&'a self, _: &'a SandboxId, _: &'a RootDisk, _: Stamp) -> Answer<'a, Option<(RootDisk, Stamp)>> {
        async { Ok(None) }.boxed_local()
    }

    fn split<'a>(&'a self, sandbox: &'a SandboxId, root: &'a RootDisk) -> Answer<'a, (RootDisk, RootDisk)> {
        async move {
            self.insist(!self.0.borrow().vmms.contains_key(sandbox.as_str()), "the disk of a VMM is split");
            self.disk_effect("split").await?;
            let mut host = self.0.borrow_mut();
            host.held += 1;
            let layer = Path::new("/nowhere/.layers").join(host.effects.len().to_string());
            let mut layers = root.layers.clone();
            let frozen = RootDisk { path: layer.clone(), ..root.clone() };
            layers.insert(0, layer);
            Ok((RootDisk { layers, ..root.clone() }, frozen))
        }
        .boxed_local()
    }

    fn release<'a>(&'a self, frozen: &'a RootDisk) -> Answer<'a, ()> {
        async {
            self.disk_effect("release").await?;
            if frozen.format == Format::Qcow2 {
                self.0.borrow_mut().held -= 1;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn graft<'a>(&'a self, graft: &'a Graft) -> Answer<'a, SandboxDisks> {
        async move {
            self.disk_effect("graft").await?;
            let mut layers = graft.disk.layers.clone();
            if graft.disk.format == Format::Qcow2 {
                layers.insert(0, graft.disk.path.clone());
            }
            Ok(self.new_disk(&graft.sandbox, graft.size, layers))
        }
        .boxed_local()
    }

    fn room<'a>(&'a self, _: &'a SandboxId) -> Answer<'a, ()> {
        async { self.disk_effect("room").await }.boxed_local()
    }

    fn grow<'a>(&'a self, root: &'a RootDisk, size: u64) -> Answer<'a, RootDisk> {
        async move {
            self.disk_effect("grow").await?;
            Ok(RootDisk { size, ..root.clone() })
        }
        .boxed_local()
    }

    fn stamp<'a>(&'a self, root: &'a RootDisk) -> Answer<'a, Stamp> {
        async move {
            let sandbox = root.path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
            let writes = self.0.borrow().writes.get(sandbox.expect("a sandbox's disk")).copied();
            Ok(Stamp { inode: 1, length: root.size, modified: writes.unwrap_or_default().into() })
        }
        .boxed_local()
    }

    fn merge<'a>(&'a self, _: &'a RootDisk) -> Answer<'a, Option<PathBuf>> {
        async { Ok(None) }.boxed_local()
    }

    fn rebase<'a>(&'a self, _: &'a SandboxId, root: &'a RootDisk, _: &'a Path) -> Answer<'a, RootDisk> {
        async { Ok(root.clone()) }.boxed_local()
    }

    fn sweep(&self) -> Answer<'_, u64> {
        async {
            self.disk_effect("sweep").await?;
            self.forget_images(Path::new("/nowhere/.captures"));
            let mut host = self.0.borrow_mut();
            host.held = 0;
            Ok(std::mem::take(&mut host.captures).len() as u64)
        }
        .boxed_local()
    }

    fn survey(&self) -> Answer<'_, DiskSurvey> {
        answer(self.disks_seen())
    }

    fn remove_leaked<'a>(&'a self, leak: &'a DiskLeak) -> Answer<'a, bool> {
        answer(self.remove_disk(leak))
    }

    fn users_of<'a>(&'a self, _: &'a Path) -> Answer<'a, Vec<SandboxId>> {
        async { Ok(Vec::new()) }.boxed_local()
    }

    fn space(&self) -> Answer<'_, Space> {
        async { Ok(Space { total: 1 << 40, available: 1 << 39 }) }.boxed_local()
    }

    fn snapshot_count(&self) -> Answer<'_, u64> {
        async { Ok(1) }.boxed_local()
    }
}

impl Memory for Host {
    fn blank<'a>(&'a self, _: &'a Path, _: u64) -> LocalBoxFuture<'a, Result<(), memory::Error>> {
        async { self.effect("blank").await.map_err(|()| io("make")) }.boxed_local()
    }

    fn own<'a>(&'a self, _: &'a Path, _: u64) -> LocalBoxFuture<'a, Result<(), memory::Error>> {
        async { self.effect("own").await.map_err(|()| io("make")) }.boxed_local()
    }

    fn sync<'a>(&'a self, _: &'a [PathBuf]) -> LocalBoxFuture<'a, Result<(), memory::Error>> {
        async { self.effect("sync").await.map_err(|()| io("sync")) }.boxed_local()
    }

    fn share<'a>(&'a self, _: &'a Path, _: &'a Path) -> LocalBoxFuture<'a, Result<(), memory::Error>> {
        async { self.effect("share").await.map_err(|()| io("share")) }.boxed_local()
    }

    fn prepare<'a>(
        &'a self,
        _: &'a Source,
        target: &'a Path,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn Delta>, memory::Error>> {
        async {
            self.effect("prepare").await.map_err(|()| io("prepare"))?;
            let target = target.to_owned();
            Ok(Rc::new(FakeDelta(self.clone(), target)) as Rc<dyn Delta>)
        }
        .boxed_local()
    }

    fn verify<'a>(
        &'a self,
        _: &'a ProcessIdentity,
        _: &'a Path,
        size: u64,
    ) -> LocalBoxFuture<'a, Result<Proof, memory::Error>> {
        async move {
            self.effect("verify").await.map_err(|()| io("verify"))?;
            Ok(Proof { mapped: size, anonymous: 0 })
        }
        .boxed_local()
    }
}

struct FakeDelta(Host, PathBuf);

impl Delta for FakeDelta {
    fn take(&self) -> LocalBoxFuture<'_, Result<Taken, memory::Error>> {
        async {
            self.0.effect("take").await.map_err(|()| io("take"))?;
            Ok(Taken { bytes: 4096, runs: 1, ..Taken::default() })
        }
        .boxed_local()
    }

    fn keep(&self, _: bool) -> LocalBoxFuture<'_, Result<(), memory::Error>> {
        async {
            self.0.effect("keep").await.map_err(|()| io("keep"))?;
            self.0.complete_image(&self.1);
            Ok(())
        }
        .boxed_local()
    }
}

fn entry(name: &str) -> FileEntry {
    FileEntry { name: name.to_owned(), length: 1 << 30, allocated: 4096, sha256: "0".repeat(64) }
}

impl Snapshots for Host {
    fn save<'a>(&'a self, save: &'a Save) -> LocalBoxFuture<'a, Result<Manifest, snapshots::Error>> {
        async move {
            let broken = |()| snapshots::Error::Io {
                doing: "write",
                path: "/nowhere".into(),
                source: std::io::Error::from_raw_os_error(28),
            };
            self.effect("save").await.map_err(broken)?;
            if let Some(warm) = &save.warm {
                let image = self.0.borrow().images.get(&warm.device).cloned();
                self.insist(image.as_ref().is_some_and(|image| image.complete), "a snapshot without a memory");
                let dir = Snapshots::dir(self, &save.reference);
                self.0.borrow_mut().images.extend(image.map(|image| (dir, image)));
            }
            let warm = save.warm.as_ref().map(|warm| MemoryEntry {
                file: entry("memory"),
                device: Vec::new(),
                version: warm.version.clone(),
                mac: warm.mac,
            });
            let manifest = Manifest {
                format: FORMAT,
                reference: save.reference.clone(),
                name: save.name.clone(),
                source: save.source.clone(),
                parent: save.parent.clone(),
                created_at: save.created_at,
                vcpus: save.vcpus,
                memory: save.memory,
                disk: entry("disk.raw"),
                warm,
            };
            self.0.borrow_mut().snapshots.insert(save.reference.to_string(), manifest.clone());
            Ok(manifest)
        }
        .boxed_local()
    }

    fn dir(&self, reference: &SnapshotRef) -> PathBuf {
        Path::new("/nowhere/snapshots").join(reference.as_str())
    }

    fn find<'a>(&'a self, reference: &'a SnapshotRef) -> LocalBoxFuture<'a, Result<Option<Found>, snapshots::Error>> {
        async move {
            let found = self.0.borrow().snapshots.get(reference.as_str()).cloned();
            Ok(found.map(|manifest| Found {
                dir: Path::new("/nowhere/snapshots").join(reference.as_str()),
                bytes: manifest.bytes(),
                created_at: manifest.created_at,
                manifest: Some(manifest),
            }))
        }
        .boxed_local()
    }

    fn remove<'a>(
        &'a self,
        reference: &'a SnapshotRef,
        _: &'a [SandboxId],
    ) -> LocalBoxFuture<'a, Result<bool, snapshots::Error>> {
        async move {
            let broken = |()| snapshots::Error::Io {
                doing: "remove",
                path: "/nowhere".into(),
                source: std::io::Error::from_raw_os_error(5),
            };
            self.effect("remove_snapshot").await.map_err(broken)?;
            self.forget_images(&Snapshots::dir(self, reference));
            Ok(self.0.borrow_mut().snapshots.remove(reference.as_str()).is_some())
        }
        .boxed_local()
    }

    fn survey(&self) -> LocalBoxFuture<'_, Result<SnapshotSurvey, snapshots::Error>> {
        answer(SnapshotSurvey::default())
    }

    fn remove_leaked<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, Result<bool, snapshots::Error>> {
        answer(false)
    }

    fn sweep(&self) -> LocalBoxFuture<'_, Result<u64, snapshots::Error>> {
        async { Ok(0) }.boxed_local()
    }
}
