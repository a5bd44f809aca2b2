//! From HTTP requests to calls of the executor and back (cloud-hypervisor.md 2.2, 2.3).

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{
    DiskConfig, NetConfig, RestoreConfig, VmConfig, VmReceiveMigrationData, VmRemoveDevice, VmResize, VmResizeDisk,
    VmResizeZone, VmSendMigrationData, VmSnapshotConfig, VsockConfig,
};
use crate::error::{Chain, Outcome};
use crate::http::{Method, Request, Response};
use crate::version::Version;
use crate::vmm::Message;

/// Prefix of all paths.
const ROOT: &str = "/api/v1/";

/// A call for the executor.
#[derive(Debug)]
pub enum Call {
    Ping,
    Info,
    Counters,
    Create(Box<VmConfig>),
    Boot,
    Pause,
    Resume,
    Shutdown,
    Reboot,
    PowerButton,
    Nmi,
    Delete,
    VmmShutdown,
    Snapshot(VmSnapshotConfig),
    Restore(RestoreConfig),
    Resize(VmResize),
    ResizeDisk(VmResizeDisk),
    ResizeZone(VmResizeZone),
    AddDisk(Box<DiskConfig>),
    AddNet(Box<NetConfig>),
    AddVsock(VsockConfig),
    /// A device that is carried in the configuration but not modelled.
    AddOpaque(OpaqueKind, Value),
    RemoveDevice(VmRemoveDevice),
    SendMigration(VmSendMigrationData),
    ReceiveMigration(VmReceiveMigrationData),
}

/// Devices the simulator carries without modelling them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueKind {
    Device,
    UserDevice,
    Fs,
    GenericVhostUser,
    Pmem,
    Vdpa,
}

/// Result of a call: a JSON body for 200, or none for 204.
pub type Answer = Outcome<Option<String>>;

impl Call {
    /// Name of the call, as in the path; fault points carry it too.
    pub fn name(&self) -> &'static str {
        self.describe().0
    }

    /// Text around a failure of this call.
    pub fn outer_text(&self) -> &'static str {
        self.describe().1
    }

    fn describe(&self) -> (&'static str, &'static str) {
        match self {
            Self::Ping => ("vmm.ping", "The VM info is not available"),
            Self::Info => ("vm.info", "The VM info is not available"),
            Self::Counters => ("vm.counters", "The VM info is not available"),
            Self::Create(_) => ("vm.create", "The VM could not be created"),
            Self::Boot => ("vm.boot", "The VM could not boot"),
            Self::Pause => ("vm.pause", "The VM could not be paused"),
            Self::Resume => ("vm.resume", "The VM could not resume"),
            Self::Shutdown => ("vm.shutdown", "The VM could not shutdown"),
            Self::Reboot => ("vm.reboot", "The VM could not reboot"),
            Self::PowerButton => ("vm.power-button", "Error triggering power button"),
            Self::Nmi => ("vm.nmi", "Error triggering NMI"),
            Self::Delete => ("vm.delete", "The VM could not be deleted"),
            Self::VmmShutdown => ("vmm.shutdown", "The VMM could not shutdown"),
            Self::Snapshot(_) => ("vm.snapshot", "The VM could not be snapshotted"),
            Self::Restore(_) => ("vm.restore", "The VM could not be restored"),
            Self::Resize(_) => ("vm.resize", "The VM could not be resized"),
            Self::ResizeDisk(_) => ("vm.resize-disk", "The disk could not be resized"),
            Self::ResizeZone(_) => ("vm.resize-zone", "The memory zone could not be resized"),
            Self::AddDisk(_) => ("vm.add-disk", "The disk could not be added to the VM"),
            Self::AddNet(_) => ("vm.add-net", "The network device could not be added to the VM"),
            Self::AddVsock(_) => ("vm.add-vsock", "The vsock device could not be added to the VM"),
            Self::AddOpaque(kind, _) => kind.describe(),
            Self::RemoveDevice(_) => ("vm.remove-device", "The device could not be removed from the VM"),
            Self::SendMigration(_) => ("vm.send-migration", "Error dispatching the migration worker"),
            Self::ReceiveMigration(_) => ("vm.receive-migration", "Error receiving migration"),
        }
    }
}

impl OpaqueKind {
    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Device => ("vm.add-device", "The device could not be added to the VM"),
            Self::UserDevice => ("vm.add-user-device", "The user device could not be added to the VM"),
            Self::Fs => ("vm.add-fs", "The fs could not be added to the VM"),
            Self::GenericVhostUser => {
                ("vm.add-generic-vhost-user", "The generic vhost-user device could not be added to the VM")
            }
            Self::Pmem => ("vm.add-pmem", "The pmem device could not be added to the VM"),
            Self::Vdpa => ("vm.add-vdpa", "The vDPA device could not be added to the VM"),
        }
    }
}

/// Answers requests by handing calls to the executor and waiting for it.
pub struct Api {
    executor: Sender<Message>,
    version: Version,
}

impl Api {
    /// An API in front of the executor that receives from `executor`.
    pub fn new(executor: Sender<Message>, version: Version) -> Self {
        Self { executor, version }
    }

    /// Executes one request.
    pub fn answer(&self, request: Request) -> Response {
        let method = request.method;
        let Some(name) = request.path.strip_prefix(ROOT).map(str::to_owned) else {
            return self.failure(404, &["Not Found".to_owned()]);
        };
        let Some(route) = Route::find(&name, self.version) else {
            return self.failure(404, &["Not Found".to_owned()]);
        };
        // Four calls have handlers of their own, which name a wrong method; the common one does not.
        let own_handler = ["vm.create", "vm.info", "vmm.ping", "vmm.shutdown"].contains(&&*name);
        if method == Method::Patch && !own_handler {
            return Response::new(400, "");
        }
        if method != route.method {
            return self.bad_request();
        }
        let create = name == "vm.create";
        match (route.parse)(request) {
            Ok(call) => self.execute(call),
            Err(Refused::NoBody) if create => Response::new(400, ""),
            Err(Refused::NoBody | Refused::Bad) => self.bad_request(),
            Err(Refused::Json(text)) => self.failure(400, &["Failed to deserialize JSON".to_owned(), text]),
        }
    }

    fn execute(&self, call: Call) -> Response {
        let shutdown = matches!(call, Call::VmmShutdown);
        let outer = call.outer_text();
        let (reply, answer) = channel();
        let sent = self.executor.send(Message::Call { call, reply });
        let answer = sent.ok().and_then(|()| answer.recv().ok());
        match answer {
            Some(Ok(_)) if shutdown => Response::new(200, ""),
            Some(Ok(Some(body))) => Response::new(200, body),
            Some(Ok(None)) => Response::new(204, ""),
            Some(Err(chain)) => self.api_error(&chain.under(outer)),
            None => self.api_error(&Chain::new("API response receive error")),
        }
    }

    fn api_error(&self, chain: &Chain) -> Response {
        let missing = chain.is_not_found() && self.version.missing_vm_is_404();
        let texts = chain.clone().under("Error from API");
        self.failure(if missing { 404 } else { 500 }, texts.texts())
    }

    fn bad_request(&self) -> Response {
        self.failure(400, &["Bad Request".to_owned()])
    }

    /// Up to v46 only the innermost texts were sent, as plain text (cloud-hypervisor.md 10).
    fn failure(&self, status: u16, texts: &[String]) -> Response {
        let body = if self.version.json_errors() {
            Value::from(texts.to_vec()).to_string()
        } else {
            match texts {
                [api, _, rest @ ..] if api == "Error from API" => rest.join(": "),
                [json, text] if json == "Failed to deserialize JSON" => text.clone(),
                other => other.join(": "),
            }
        };
        Response::new(status, body)
    }
}

/// Why a request does not become a call.
enum Refused {
    NoBody,
    Bad,
    Json(String),
}

type Parse = fn(Request) -> Result<Call, Refused>;

struct Route {
    method: Method,
    parse: Parse,
}

impl Route {
    fn find(name: &str, version: Version) -> Option<Self> {
        let get = |parse: Parse| Some((Method::Get, parse));
        let put = |parse: Parse| Some((Method::Put, parse));
        let found = match name {
            "vmm.ping" => get(|_| Ok(Call::Ping)),
            "vm.info" => get(|_| Ok(Call::Info)),
            "vm.counters" => get(|_| Ok(Call::Counters)),
            // The only call without a body that does not look whether there is one.
            "vmm.shutdown" => put(|_| Ok(Call::VmmShutdown)),
            "vm.create" => put(|r| body(&r).map(Call::Create)),
            "vm.boot" => put(|r| bare(&r, Call::Boot)),
            "vm.pause" => put(|r| bare(&r, Call::Pause)),
            "vm.resume" => put(|r| bare(&r, Call::Resume)),
            "vm.shutdown" => put(|r| bare(&r, Call::Shutdown)),
            "vm.reboot" => put(|r| bare(&r, Call::Reboot)),
            "vm.power-button" => put(|r| bare(&r, Call::PowerButton)),
            "vm.nmi" => put(|r| bare(&r, Call::Nmi)),
            "vm.delete" => put(|r| bare(&r, Call::Delete)),
            "vm.snapshot" => put(|r| body(&r).map(Call::Snapshot)),
            "vm.restore" => put(restore),
            "vm.resize" => put(|r| body(&r).map(Call::Resize)),
            "vm.resize-disk" if version.has_resize_disk() => put(|r| body(&r).map(Call::ResizeDisk)),
            "vm.resize-zone" => put(|r| body(&r).map(Call::ResizeZone)),
            "vm.add-disk" => put(|r| body(&r).map(Call::AddDisk)),
            "vm.add-net" => put(add_net),
            "vm.add-vsock" => put(|r| body(&r).map(Call::AddVsock)),
            "vm.remove-device" => put(|r| body(&r).map(Call::RemoveDevice)),
            "vm.send-migration" => put(|r| body(&r).map(Call::SendMigration)),
            "vm.receive-migration" => put(|r| body(&r).map(Call::ReceiveMigration)),
            "vm.add-device" => put(|r| opaque(&r, OpaqueKind::Device)),
            "vm.add-user-device" => put(|r| opaque(&r, OpaqueKind::UserDevice)),
            "vm.add-fs" => put(|r| opaque(&r, OpaqueKind::Fs)),
            "vm.add-generic-vhost-user" => put(|r| opaque(&r, OpaqueKind::GenericVhostUser)),
            "vm.add-pmem" => put(|r| opaque(&r, OpaqueKind::Pmem)),
            "vm.add-vdpa" => put(|r| opaque(&r, OpaqueKind::Vdpa)),
            _ => None,
        };
        found.map(|(method, parse)| Self { method, parse })
    }
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Refused> {
    let body = request.body.as_deref().ok_or(Refused::NoBody)?;
    serde_json::from_slice(body).map_err(|error| Refused::Json(error.to_string()))
}

fn bare(request: &Request, call: Call) -> Result<Call, Refused> {
    match request.body {
        None => Ok(call),
        Some(_) => Err(Refused::Bad),
    }
}

fn opaque(request: &Request, kind: OpaqueKind) -> Result<Call, Refused> {
    body(request).map(|value| Call::AddOpaque(kind, value))
}

/// All descriptors of the request belong to the device (cloud-hypervisor.md 7).
fn add_net(request: Request) -> Result<Call, Refused> {
    let mut net: Box<NetConfig> = body(&request)?;
    net.fds = (!request.files.is_empty()).then(|| raw(request.files));
    Ok(Call::AddNet(net))
}

/// The descriptors are dealt out in the order of the list; their number must fit exactly.
fn restore(request: Request) -> Result<Call, Refused> {
    let mut restore: RestoreConfig = body(&request)?;
    if let Some(nets) = &mut restore.net_fds {
        if nets.iter().map(|net| net.num_fds).sum::<usize>() != request.files.len() {
            return Err(Refused::Bad);
        }
        let mut fds = raw(request.files).into_iter();
        for net in nets {
            net.fds = (net.num_fds > 0).then(|| fds.by_ref().take(net.num_fds).collect());
        }
    }
    Ok(Call::Restore(restore))
}

/// Descriptor numbers that stay open until the VM is deleted, and beyond: like the program, which keeps them.
fn raw(files: Vec<OwnedFd>) -> Vec<i32> {
    files.into_iter().map(IntoRawFd::into_raw_fd).collect()
}
