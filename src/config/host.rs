//! The configuration against the machine: what must exist, what is made when it is missing, which
//! rights are needed. Everything that is wrong is told at once, with its remedy.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use procfs::process::Process;
use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};

use super::check::other_layout;
use super::problem::{Problem, Problems};
use super::{Config, Paths};

/// Accepted, but worth a log line each.
pub type Warnings = Vec<String>;

/// Longest path of a unix socket in bytes: `sun_path` without its terminating zero.
const SOCKET_PATH: usize = 107;

/// What the hypervisor appends to the directory: `/`, a UUID, `.sock`, and `.lock` for its lock file.
const SOCKET_NAME: usize = 1 + 36 + ".sock".len() + ".lock".len();

/// Bits of CapEff (linux/capability.h) and why they are needed.
const CAPABILITIES: &[(u32, &str, &str)] =
    &[(12, "CAP_NET_ADMIN", "bridges, TAPs and NAT rules"), (21, "CAP_SYS_ADMIN", "network namespaces")];

/// Every sandbox takes a handful of descriptors of the runner.
const FEW_FILES: u64 = 8192;

/// Refuses a socket directory in which a sandbox's socket would get a name that is too long.
pub(super) fn short_enough_for_sockets(dir: PathBuf) -> Result<PathBuf, String> {
    let len = dir.as_os_str().as_bytes().len();
    let max = SOCKET_PATH - SOCKET_NAME;
    if len <= max {
        return Ok(dir);
    }
    Err(format!("a path of at most {max} bytes, this one has {len}: {SOCKET_PATH} is the limit for a socket in it"))
}

/// Looks at everything.
pub(super) fn check(config: &Config) -> Result<Warnings, Problems> {
    let mut warnings = Vec::new();
    let mut problems = directories(&config.paths, &mut warnings);
    problems.extend(files(config));
    problems.extend(device(
        "/dev/kvm",
        "load kvm_intel or kvm_amd, and enable virtualisation in the firmware or for this VM",
    ));
    problems.extend(device("/dev/net/tun", "load the module tun"));
    problems.extend(rights());
    warnings.extend(few_files());
    Problems::none_of(problems)?;
    Ok(warnings)
}

fn directories(paths: &Paths, warnings: &mut Warnings) -> Vec<Problem> {
    // Whoever can write to a socket or read a sandbox's files controls or reads the guest.
    let all = [
        ("CH_SOCKETS_PATH", &paths.sockets, 0o700),
        ("CH_SANDBOXES_PATH", &paths.sandboxes, 0o700),
        ("CH_SNAPSHOTS_PATH", &paths.snapshots, 0o755),
        ("RUNNER_STATE_PATH", &paths.state, 0o700),
    ];
    let mut problems = Vec::new();
    for (name, path, mode) in all {
        match directory(path, mode) {
            Ok(true) => warnings
                .push(format!("{name}: others than the owner may write to {}; consider chmod go-w", path.display())),
            Ok(false) => {}
            Err(error) => problems.push(Problem::new(
                format!("{name} = {}", path.display()),
                format!("cannot be used as a directory: {error}; make it writable for the runner or name another one"),
            )),
        }
    }
    problems
}

/// Makes the directory when it is missing; true when others may write to it.
fn directory(path: &Path, mode: u32) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK)?;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o022 != 0)
}

fn files(config: &Config) -> Vec<Problem> {
    let paths = &config.paths;
    let other = other_layout(&paths.base_image).map(|other| format!(" ({} was looked for too)", other.display()));
    let base_remedy = format!(
        "put the image that sandboxes start from there, or set CH_BASE_IMAGE_PATH{}",
        other.unwrap_or_default()
    );
    let kernel_remedy = "copy the guest's kernel (bzImage or vmlinux) there, or set CH_KERNEL_PATH";
    let initramfs_remedy =
        "copy the guest's initramfs there, set CH_INITRAMFS_PATH, or set it to nothing if the kernel needs none";
    let found = [
        readable("CH_KERNEL_PATH", &paths.kernel, kernel_remedy),
        paths.initramfs.as_deref().and_then(|path| readable("CH_INITRAMFS_PATH", path, initramfs_remedy)),
        readable("CH_BASE_IMAGE_PATH", &paths.base_image, &base_remedy),
        hypervisor(&config.ch_binary, std::env::var_os("PATH").as_deref()),
    ];
    found.into_iter().flatten().collect()
}

fn readable(name: &str, path: &Path, remedy: &str) -> Option<Problem> {
    let reason = match File::open(path).and_then(|file| file.metadata()) {
        Err(error) => error.to_string(),
        Ok(meta) if !meta.is_file() && !meta.file_type_is_block() => "it is not a file".to_owned(),
        Ok(meta) if meta.is_file() && meta.len() == 0 => "it is empty".to_owned(),
        Ok(_) => return None,
    };
    Some(Problem::new(format!("{name} = {}", path.display()), format!("cannot be read: {reason}; {remedy}")))
}

/// A base image may be a block device.
trait IsBlock {
    fn file_type_is_block(&self) -> bool;
}

impl IsBlock for std::fs::Metadata {
    fn file_type_is_block(&self) -> bool {
        self.mode() & 0o170_000 == 0o060_000
    }
}

fn hypervisor(binary: &Path, search: Option<&std::ffi::OsStr>) -> Option<Problem> {
    let candidates: Vec<PathBuf> = if binary.is_absolute() {
        vec![binary.to_owned()]
    } else {
        search.map(|dirs| std::env::split_paths(dirs).map(|dir| dir.join(binary)).collect()).unwrap_or_default()
    };
    let runs = |path: &PathBuf| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok();
    if candidates.iter().any(runs) {
        return None;
    }
    let place = if binary.is_absolute() { "is not an executable file" } else { "is in no directory of PATH" };
    let remedy =
        "install Cloud Hypervisor (v44 to v53; package cloud-hypervisor, or its release binary), or set CH_BINARY";
    Some(Problem::new(format!("CH_BINARY = {}", binary.display()), format!("{place}; {remedy}")))
}

fn device(path: &str, remedy: &str) -> Option<Problem> {
    let error = OpenOptions::new().read(true).write(true).open(path).err()?;
    Some(Problem::new(path, format!("cannot be opened for reading and writing: {error}; {remedy}")))
}

fn rights() -> Vec<Problem> {
    match Process::myself().and_then(|process| process.status()) {
        Ok(status) => missing_rights(status.capeff),
        Err(error) => vec![Problem::new("/proc/self/status", format!("cannot be read: {error}; mount /proc"))],
    }
}

fn missing_rights(effective: u64) -> Vec<Problem> {
    let missing = CAPABILITIES.iter().filter(|(bit, ..)| effective & (1 << bit) == 0);
    missing
        .map(|(_, name, purpose)| {
            Problem::new(*name, format!("is missing, needed for {purpose}; run as root, as runner-ch.service does"))
        })
        .collect()
}

fn few_files() -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current?;
    let text = format!("at most {limit} open files are allowed; with many sandboxes raise LimitNOFILE (ulimit -n)");
    (limit < FEW_FILES).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_names_fit_exactly() {
        let fits = |len: usize| short_enough_for_sockets(format!("/{}", "x".repeat(len - 1)).into());
        let longest = format!("{}/{}.sock.lock", fits(60).unwrap().display(), uuid::Uuid::nil());
        assert_eq!(longest.len(), SOCKET_PATH);
        assert!(fits(61).unwrap_err().contains("at most 60 bytes, this one has 61"));
    }

    #[test]
    fn directories_are_made_with_their_modes() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b");
        assert!(!directory(&path, 0o700).unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap()) & 0o700), (0o700, 0o700));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(directory(&path, 0o700).unwrap(), "a directory that others can write to is told");
        std::fs::write(top.path().join("file"), "x").unwrap();
        assert!(directory(&top.path().join("file"), 0o700).is_err());
        assert!(directory(&top.path().join("file/below"), 0o700).is_err());
    }

    #[test]
    fn files_must_be_there_and_hold_something() {
        let top = tempfile::tempdir().unwrap();
        let empty = top.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let told = |path: &Path| readable("CH_KERNEL_PATH", path, "copy it").map(|problem| problem.to_string());
        assert!(told(&empty).unwrap().contains("it is empty; copy it"));
        assert!(told(top.path()).unwrap().contains("it is not a file"));
        assert!(told(&top.path().join("none")).unwrap().contains("No such file"));
        std::fs::write(&empty, "x").unwrap();
        assert_eq!(told(&empty), None);
    }

    #[test]
    fn the_hypervisor_is_looked_for_in_path() {
        let top = tempfile::tempdir().unwrap();
        let binary = top.path().join("chv");
        std::fs::write(&binary, "#!").unwrap();
        let search = std::env::join_paths([Path::new("/nowhere"), top.path()]).unwrap();
        let told = |name: &Path| hypervisor(name, Some(&search)).map(|problem| problem.to_string());
        assert!(told(Path::new("chv")).unwrap().contains("in no directory of PATH"), "not executable yet");
        assert!(told(&binary).unwrap().contains("is not an executable file"));
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!((told(Path::new("chv")), told(&binary)), (None, None));
        assert!(hypervisor(Path::new("chv"), None).is_some());
    }

    #[test]
    fn devices_and_rights_are_named_with_their_remedy() {
        let text = device("/dev/nowhere", "load the module tun").unwrap().to_string();
        assert!(text.starts_with("/dev/nowhere: cannot be opened") && text.ends_with("load the module tun"), "{text}");
        assert_eq!(missing_rights(u64::MAX), []);
        assert_eq!(missing_rights(!(1 << 12)).len(), 1);
        assert_eq!(missing_rights(0).len(), 2);
    }
}
