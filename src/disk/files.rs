//! [`FileDisks`]: the disks as files in `{sandboxes}/{id}/`.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::base::{Base, Catalog, other_layout};
use super::error::REMOVE;
use super::flatten::Flattened;
use super::flight::{Gate, Turn};
use super::lock::{self, Held, Holders};
use super::{
    Disks, Error, Format, Plan, RootDisk, SandboxDisks, Space, Strategy, StrategySetting, overlay, raw, seed, volume,
};
use crate::ids::{SandboxId, SnapshotRef};

const RAW_DISK: &str = "disk.raw";
const OVERLAY_DISK: &str = "disk.qcow2";
const SEED: &str = "seed.img";

/// What the operator configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// CH_SANDBOXES_PATH; made when missing.
    pub sandboxes: PathBuf,
    /// CH_SNAPSHOTS_PATH; made when missing.
    pub snapshots: PathBuf,
    /// CH_BASE_IMAGE_PATH; looked for when it is needed, in both layouts of the deployment guide.
    pub base_image: PathBuf,
    /// RUNNER_DISK_STRATEGY.
    pub strategy: StrategySetting,
    /// MTU of the guest's link in bytes, when it is not the usual 1500.
    pub guest_mtu: Option<u16>,
}

/// Disks as files. Every operation runs on a blocking thread of the tokio runtime that it is called
/// in. Dropping this value ends the flattening of bases that is under way.
pub struct FileDisks {
    inner: Arc<Inner>,
}

struct Inner {
    sandboxes: PathBuf,
    snapshots: PathBuf,
    guest_mtu: Option<u16>,
    strategy: Strategy,
    catalog: Catalog,
    holders: Holders,
    flattened: Flattened,
    gate: Gate,
}

impl Drop for FileDisks {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where a root disk comes from, ready to use.
enum Source {
    Flattened(Arc<std::fs::File>),
    Held(Vec<Arc<Held>>),
}

impl FileDisks {
    /// Makes the directories, finds the strategy by a trial, and removes what earlier lives left of
    /// bases that are gone. Blocking, short; meant for the start of the runner.
    ///
    /// # Errors
    /// A path that is not absolute, a directory that cannot be made or written to, or reflink asked
    /// for where the file system cannot.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let Settings { sandboxes, snapshots, base_image, strategy, guest_mtu } = settings;
        let sandboxes = directory("sandboxes", sandboxes)?;
        let snapshots = directory("snapshots", snapshots)?;
        if !base_image.is_absolute() {
            return Err(Error::Settings { what: "base image's", path: base_image });
        }
        let strategy = choose(strategy, &sandboxes)?;
        let flattened = Flattened::open(&sandboxes)?;
        let (images, _) = volume::snapshots(&snapshots)?;
        let configured = [Some(base_image.clone()), other_layout(&base_image)];
        // The copies are named after where images really are.
        let real: Vec<_> =
            images.into_iter().chain(configured.into_iter().flatten()).filter_map(|p| p.canonicalize().ok()).collect();
        flattened.keep_only(real.iter().map(PathBuf::as_path))?;
        let catalog = Catalog::new(base_image, snapshots.clone());
        let (holders, gate) = (Holders::default(), Gate::default());
        let inner = Inner { sandboxes, snapshots, guest_mtu, strategy, catalog, holders, flattened, gate };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finds and checks a base without making anything (`None`: the configured one); its path and
    /// virtual size in bytes. Blocking; for a check at start or by command.
    ///
    /// # Errors
    /// As for [`Disks::create`]: missing, outside, damaged.
    pub fn check_base(&self, base: Option<&SnapshotRef>) -> Result<(PathBuf, u64), Error> {
        self.inner.catalog.find(base).map(|base| (base.top.path, base.top.size))
    }

    /// Makes the flattening of bases that is under way, or comes later, end soon with an error; for
    /// the runner's shutdown, which otherwise waits for it.
    pub fn stop(&self) {
        self.inner.flattened.stop();
    }

    fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> LocalBoxFuture<'_, Result<T, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let done = tokio::task::spawn_blocking(move || work(&inner)).await;
            done.unwrap_or(Err(Error::Died { what }))
        }
        .boxed_local()
    }
}

/// Tells the blocking thread that nobody waits for its answer any more.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Disks for FileDisks {
    fn strategy(&self) -> Strategy {
        self.inner.strategy
    }

    fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.inner.dir(sandbox)
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<SandboxDisks, Error>> {
        let (plan, abandoned) = (plan.clone(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&abandoned);
        async move {
            let _abandon = Abandon(abandoned);
            self.run("making the sandbox's disks", move |inner| inner.create(&plan, &seen)).await
        }
        .boxed_local()
    }

    fn remove<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let sandbox = sandbox.clone();
        self.run("removing the sandbox's disks", move |inner| inner.remove(&sandbox))
    }

    fn hold_base<'a>(&'a self, base: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>> {
        let base = base.to_owned();
        self.run("locking the base image", move |inner| inner.holders.pin(&inner.catalog.reopen(&base)?))
    }

    fn space(&self) -> LocalBoxFuture<'_, Result<Space, Error>> {
        self.run("reading the free space", |inner| volume::space(&inner.sandboxes))
    }

    fn snapshot_count(&self) -> LocalBoxFuture<'_, Result<u64, Error>> {
        self.run("counting the snapshots", |inner| volume::snapshots(&inner.snapshots).map(|(_, count)| count))
    }
}

impl Inner {
    fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.sandboxes.join(sandbox.as_str())
    }

    fn create(&self, plan: &Plan, abandoned: &AtomicBool) -> Result<SandboxDisks, Error> {
        drop(self.clear(&plan.sandbox, abandoned)?);
        if plan.size == 0 || !plan.size.is_multiple_of(512) {
            return Err(Error::Size { size: plan.size });
        }
        let seed = seed::image(&plan.seed, self.guest_mtu)?;
        let base = self.catalog.find(plan.base.as_ref())?;
        base.fits(plan.size)?;
        // Without the turn: flattening can take minutes, and a removal shall not wait for it.
        let source = self.source(&base)?;
        let _turn = self.clear(&plan.sandbox, abandoned)?;
        let directory = self.dir(&plan.sandbox);
        let made = build(&directory, plan.size, &base, &source, &seed);
        match (made, source) {
            (Ok(disks), Source::Held(held)) => {
                self.holders.assign(&plan.sandbox, held);
                Ok(disks)
            }
            (Ok(disks), Source::Flattened(_)) => Ok(disks),
            (Err(error), _) => Err(undo(&directory, error)),
        }
    }

    /// Takes the sandbox's turn and removes what an earlier attempt left, unless a hypervisor has it
    /// open.
    fn clear<'a>(&'a self, sandbox: &'a SandboxId, abandoned: &AtomicBool) -> Result<Turn<'a>, Error> {
        let turn = self.gate.enter(sandbox);
        // Set before a removal that follows the abandoned creation can have its turn.
        if abandoned.load(Ordering::SeqCst) {
            return Err(Error::Abandoned { what: "making the sandbox's disks" });
        }
        let directory = self.dir(sandbox);
        for disk in [RAW_DISK, OVERLAY_DISK] {
            lock::refuse_locked(&directory.join(disk))?;
        }
        remove(&directory)?;
        self.holders.release(sandbox);
        Ok(turn)
    }

    /// An overlay needs the base's locks for as long as it exists; a clone needs them only until the
    /// raw copy is made, and those that came with the base last that long.
    fn source(&self, base: &Base) -> Result<Source, Error> {
        match self.strategy {
            Strategy::Overlay => self.holders.hold(base).map(Source::Held),
            Strategy::Reflink => self.flattened.get(base).map(Source::Flattened),
        }
    }

    fn remove(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let _turn = self.gate.enter(sandbox);
        remove(&self.dir(sandbox))?;
        self.holders.release(sandbox);
        Ok(())
    }
}

fn build(directory: &Path, size: u64, base: &Base, source: &Source, image: &[u8]) -> Result<SandboxDisks, Error> {
    let made = DirBuilder::new().mode(0o700).create(directory);
    made.map_err(Error::io("create the directory", directory))?;
    let (name, format) = match source {
        Source::Flattened(_) => (RAW_DISK, Format::Raw),
        Source::Held(_) => (OVERLAY_DISK, Format::Qcow2),
    };
    let path = directory.join(name);
    match source {
        Source::Flattened(copy) => raw::create(&path, copy, size)?,
        Source::Held(_) => overlay::create(&path, &base.top, size)?,
    }
    let seed = directory.join(SEED);
    seed::write(&seed, image)?;
    let backed = matches!(source, Source::Held(_));
    Ok(SandboxDisks { root: RootDisk { path, format, backed, size, base: base.top.path.clone() }, seed })
}

/// Removes what a failed creation made; the error to answer with.
fn undo(directory: &Path, error: Error) -> Error {
    match remove(directory) {
        Ok(()) => error,
        Err(second) => Error::Leftover {
            path: directory.to_owned(),
            source_error: crate::error::chain(&error),
            source: Box::new(second),
        },
    }
}

/// Removes a directory with all in it; a symbolic link of that name goes, and not what it leads to.
fn remove(path: &Path) -> Result<(), Error> {
    let removed = match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        other => other,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(REMOVE, path)),
    }
}

fn directory(what: &'static str, path: PathBuf) -> Result<PathBuf, Error> {
    if !path.is_absolute() {
        return Err(Error::Settings { what, path });
    }
    let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
    made.map_err(Error::io("create the directory", &path))?;
    // Open files tell their real path, and must compare equal to paths below this one.
    path.canonicalize().map_err(Error::io("resolve", &path))
}

fn choose(setting: StrategySetting, sandboxes: &Path) -> Result<Strategy, Error> {
    if setting == StrategySetting::Overlay {
        return Ok(Strategy::Overlay);
    }
    match (raw::probe(sandboxes)?, setting) {
        (Ok(()), _) => Ok(Strategy::Reflink),
        (Err(source), StrategySetting::Reflink) => Err(Error::NoReflink { dir: sandboxes.to_owned(), source }),
        (Err(cause), _) => {
            tracing::info!(dir = ?sandboxes, %cause, "the file system cannot clone files: root disks are qcow2 overlays");
            Ok(Strategy::Overlay)
        }
    }
}
