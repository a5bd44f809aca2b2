//! [`FileDisks`]: the disks as files in `{sandboxes}/{id}/`.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::base::{Catalog, other_layout};
use super::flatten::Flattened;
use super::flight::Gate;
use super::lock::Holders;
use super::survey::UnderWay;
use super::{Error, Strategy, StrategySetting, raw, volume};
use crate::ids::{SandboxId, SnapshotRef};

pub(super) const RAW_DISK: &str = "disk.raw";
pub(super) const OVERLAY_DISK: &str = "disk.qcow2";
pub(super) const SEED: &str = "seed.img";
/// Below the sandboxes: directories of captures.
const CAPTURES: &str = ".captures";
/// Below the sandboxes: frozen images that sandboxes' disks stand on.
const LAYERS: &str = ".layers";

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
    pub(super) inner: Arc<Inner>,
}

/// What the blocking threads share. Its methods are beside the subjects: [`super::create`], [`super::captures`],
/// [`super::graft`], [`super::layers`], [`super::merge`], [`super::collect`].
pub(super) struct Inner {
    pub(super) sandboxes: PathBuf,
    pub(super) snapshots: PathBuf,
    pub(super) captures: PathBuf,
    pub(super) layers: PathBuf,
    pub(super) guest_mtu: Option<u16>,
    pub(super) strategy: Strategy,
    pub(super) catalog: Catalog,
    pub(super) holders: Holders,
    pub(super) flattened: Flattened,
    pub(super) gate: Gate,
    /// Held while a layer is looked up and held, and while unused ones are removed; after a turn of the gate, never
    /// before one.
    pub(super) collecting: Mutex<()>,
    /// Captures and merged layers that are being made.
    pub(super) under_way: UnderWay,
}

impl Drop for FileDisks {
    fn drop(&mut self) {
        self.stop();
    }
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
        let real = real_bases(&snapshots, &base_image)?;
        flattened.keep_only(real.iter().map(PathBuf::as_path))?;
        let inner = Inner {
            captures: directory("captures", sandboxes.join(CAPTURES))?,
            layers: directory("layers", sandboxes.join(LAYERS))?,
            catalog: Catalog::new(base_image, snapshots.clone()),
            sandboxes,
            snapshots,
            guest_mtu,
            strategy,
            holders: Holders::default(),
            flattened,
            gate: Gate::default(),
            collecting: Mutex::default(),
            under_way: UnderWay::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finds and checks a base without making anything (`None`: the configured one); its path and
    /// virtual size in bytes. Blocking; for a check at start or by command.
    ///
    /// # Errors
    /// As for [`super::Disks::create`]: missing, outside, damaged.
    pub fn check_base(&self, base: Option<&SnapshotRef>) -> Result<(PathBuf, u64), Error> {
        self.inner.catalog.find(base).map(|base| (base.top.path, base.top.size))
    }

    /// Makes long copies (the flattening of bases, merges of layers, disks that cannot be cloned) that are under
    /// way, or come later, end soon with an error; for the runner's shutdown, which otherwise waits for them.
    pub fn stop(&self) {
        self.inner.flattened.stop();
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> LocalBoxFuture<'_, Result<T, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let done = crate::blocking::DATA.run(move || work(&inner)).await;
            done.unwrap_or(Err(Error::Died { what }))
        }
        .boxed_local()
    }
}

/// Tells the blocking thread that nobody waits for its answer any more.
pub(super) struct Abandon(Arc<AtomicBool>);

impl Abandon {
    /// With what the thread looks at.
    pub(super) fn new() -> (Self, Arc<AtomicBool>) {
        let abandoned = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&abandoned)), abandoned)
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Inner {
    pub(super) fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.sandboxes.join(sandbox.as_str())
    }

    /// Ends long work whose answer nobody wants, or that would keep the runner from ending.
    pub(super) fn check(&self, what: &'static str, abandoned: &AtomicBool) -> Result<(), Error> {
        let unwanted = self.flattened.stopping() || abandoned.load(Ordering::SeqCst);
        if unwanted { Err(Error::Abandoned { what }) } else { Ok(()) }
    }
}

/// Where the images of this host really are: flattened copies are named after that.
pub(super) fn real_bases(snapshots: &Path, configured: &Path) -> Result<Vec<PathBuf>, Error> {
    let (images, _) = volume::snapshots(snapshots)?;
    let configured = [Some(configured.to_owned()), other_layout(configured)];
    Ok(images.into_iter().chain(configured.into_iter().flatten()).filter_map(|p| p.canonicalize().ok()).collect())
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
