//! The launcher against the simulator, which is a process with an API socket like the real thing.

use rustix::process::{Pid, Signal, kill_process};

use super::support::{Bench, LONG, hypervisor, kernel, simulator};
use super::*;
use crate::error::Certainty;
use crate::hypervisor::wire::{ImageType, VmSpec};
use crate::hypervisor::{Exit, VmConfig, VmState};

const GRACE: Duration = Duration::from_secs(10);

async fn launched(bench: &Bench) -> (CloudHypervisor, Rc<dyn Vmm>) {
    let hypervisor = hypervisor(&simulator());
    let vmm = hypervisor.launch(&bench.launch).await.unwrap_or_else(|error| panic!("{}", crate::error::chain(&error)));
    (hypervisor, vmm)
}

fn config(bench: &Bench, vmm: &dyn Vmm, image: &str) -> VmConfig {
    for disk in ["root.raw", "seed.img"] {
        std::fs::File::create(bench.path(disk)).unwrap().set_len(1 << 20).unwrap();
    }
    std::fs::write(bench.path("vmlinux"), kernel()).unwrap();
    let spec = VmSpec {
        vcpus: 1,
        memory_bytes: 128 << 20,
        layout: crate::hypervisor::wire::MemoryLayout::Shared,
        max_vcpus: 1,
        kernel: bench.path(image),
        initramfs: None,
        cmdline: "console=ttyS0".into(),
        root: (bench.path("root.raw"), ImageType::Raw),
        backed: false,
        seed: bench.path("seed.img"),
        tap: "tap0".into(),
        mac: "02:00:00:00:00:01".into(),
        serial: Files::new(bench.dir.path()).serial(),
    };
    VmConfig::for_sandbox(spec, vmm.version())
}

fn kill(vmm: &dyn Vmm) {
    kill_process(Pid::from_raw(vmm.identity().pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn launch_create_and_end() {
    let bench = Bench::new();
    let (_, vmm) = launched(&bench).await;
    assert!(vmm.version().major() >= 44);
    assert_eq!(vmm.state().await.unwrap(), None);
    let config = config(&bench, &*vmm, "vmlinux");
    vmm.create(&config).await.unwrap();
    assert_eq!(vmm.state().await.unwrap(), Some(VmState::Created));

    let error = vmm.create(&config).await.unwrap_err();
    assert!(error.says("already created"), "{error}");
    assert_eq!(vmm.state().await.unwrap(), Some(VmState::Created), "the first VM is still there");

    let (exit, again) = tokio::join!(vmm.end(GRACE), vmm.exited());
    assert_eq!((exit.unwrap(), again), (Exit::Orderly, Exit::Orderly));
    assert_eq!(vmm.end(GRACE).await.unwrap(), Exit::Orderly, "ending twice is fine");
    bench.assert_nothing_left();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(bench.path("vmm.out")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_boot_leaves_no_half_made_vm() {
    let bench = Bench::new();
    let (_, vmm) = launched(&bench).await;
    // Neither the kernel nor the TAP is there.
    vmm.create(&config(&bench, &*vmm, "no-such-kernel")).await.unwrap();
    let error = vmm.boot().await.unwrap_err();
    assert!(matches!(error, Error::Api { call: "vm.boot", .. }), "{error}");
    assert_eq!(vmm.state().await.unwrap(), None);
    vmm.end(GRACE).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_killed_vmm_is_noticed_and_its_calls_say_so() {
    let bench = Bench::new();
    let (hypervisor, vmm) = launched(&bench).await;
    kill(&*vmm);
    let exit = timeout(LONG, vmm.exited()).await.unwrap();
    assert_eq!(exit, Exit::Signal { signal: 9 });
    assert_eq!(vmm.exited().await, exit);
    let error = vmm.state().await.unwrap_err();
    assert!(matches!(error, Error::Ended { sent: false, .. }), "{error}");
    assert!(bench.launch.socket.exists(), "SIGKILL leaves the socket behind");
    assert!(hypervisor.adopt(&bench.launch, &vmm.known()).await.unwrap().is_none());
    assert_eq!(vmm.end(GRACE).await.unwrap(), exit);
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "current_thread")]
async fn a_vmm_is_adopted_and_ended_by_its_new_owner() {
    let bench = Bench::new();
    let (hypervisor, first) = launched(&bench).await;
    let known = first.known();
    let second = hypervisor.adopt(&bench.launch, &known).await.unwrap().expect("it lives");
    assert_eq!(second.identity(), &known.process);
    assert_eq!(second.version(), first.version());
    assert_eq!(second.state().await.unwrap(), None);
    assert_eq!(second.end(GRACE).await.unwrap(), Exit::Orderly);
    assert!(hypervisor.adopt(&bench.launch, &known).await.unwrap().is_none());
    timeout(LONG, first.exited()).await.unwrap();
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "current_thread")]
async fn an_identity_that_serves_no_socket_is_an_error_and_not_gone() {
    let bench = Bench::new();
    let (hypervisor, vmm) = launched(&bench).await;
    let own = Known { process: ProcessIdentity::own().unwrap(), version: vmm.version().clone() };
    let error = hypervisor.adopt(&bench.launch, &own).await.err().unwrap();
    assert!(matches!(error, Error::Impostor { .. }), "{error}");
    std::fs::rename(&bench.launch.socket, bench.path("moved")).unwrap();
    let error = hypervisor.adopt(&bench.launch, &vmm.known()).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    // Found by its argument although nobody serves the socket's name any more.
    hypervisor.clear(&bench.launch).await.unwrap();
    assert_eq!(timeout(LONG, vmm.exited()).await.unwrap(), Exit::Orderly);
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "current_thread")]
async fn clearing_ends_a_vmm_that_nobody_remembers() {
    let bench = Bench::new();
    let (hypervisor, vmm) = launched(&bench).await;
    let error = hypervisor.launch(&bench.launch).await.err().unwrap();
    assert!(matches!(error, Error::SocketInUse { pid, .. } if pid == vmm.identity().pid), "{error}");
    hypervisor.clear(&bench.launch).await.unwrap();
    bench.assert_nothing_left();
    timeout(LONG, vmm.exited()).await.unwrap();
    let (_, next) = launched(&bench).await;
    next.end(GRACE).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_binary_that_does_not_exec_the_hypervisor_is_refused_and_cleaned_up() {
    let bench = Bench::new();
    let wrapper =
        bench.script(&format!("'{}' \"$@\" & echo $! > \"$(dirname \"$0\")/pid\"; wait", simulator().display()));
    let error = wrapper.launch(&bench.launch).await.err().unwrap();
    let Error::Impostor { expected, found, .. } = error else { panic!("{error}") };
    bench.assert_nothing_left();
    for pid in [expected, found] {
        // A zombie that init has not reaped yet has no working directory any more.
        assert!(!Path::new("/proc").join(pid.to_string()).join("cwd").exists(), "{pid} is gone");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_frozen_vmm_is_killed_in_the_end() {
    let bench = Bench::new();
    let mut settings = Settings::new(simulator());
    settings.term = Duration::from_millis(200);
    let vmm = CloudHypervisor::new(settings).launch(&bench.launch).await.ok().unwrap();
    kill_process(Pid::from_raw(vmm.identity().pid).unwrap(), Signal::STOP).unwrap();
    assert_eq!(vmm.end(Duration::from_millis(200)).await.unwrap(), Exit::Signal { signal: 9 });
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_powers_itself_off_is_told_from_obedience() {
    let bench = Bench::new();
    let (hypervisor, vmm) = launched(&bench).await;
    // As after a restart of the runner: nobody tells the adopter an exit code for sure.
    let adopted = hypervisor.adopt(&bench.launch, &vmm.known()).await.unwrap().expect("it lives");
    vmm.create(&config(&bench, &*vmm, "vmlinux")).await.unwrap();
    vmm.boot().await.unwrap();
    match vmm.power_button().await {
        // The real hypervisor runs a guest that does not wait for the button.
        Ok(()) | Err(Error::Ended { exit: Exit::GuestPowerOff, .. }) => {}
        Err(error) => panic!("{error}"),
    }
    for vmm in [vmm, adopted] {
        assert_eq!(timeout(LONG, vmm.exited()).await.unwrap(), Exit::GuestPowerOff);
        assert_eq!(vmm.end(GRACE).await.unwrap(), Exit::GuestPowerOff, "asking afterwards changes nothing");
    }
    bench.assert_nothing_left();
    assert!(hypervisor.launch(&bench.launch).await.unwrap_or_else(|e| panic!("{e}")).end(GRACE).await.is_ok());
}

#[tokio::test(flavor = "current_thread")]
async fn old_versions_with_plain_text_errors_and_stale_sockets() {
    for version in ["v44.0", "v46.0", "v47.0", "v50.0", "v51.0", "v52.0", "v53.0"] {
        let bench = Bench::new();
        let hypervisor = bench.simulator_with(&format!("CH_SIM_VERSION={version}"));
        let launch =
            async || hypervisor.launch(&bench.launch).await.unwrap_or_else(|error| panic!("{version}: {error}"));
        let vmm = launch().await;
        assert_eq!(*vmm.version(), Version::parse(version).unwrap());
        assert_eq!(vmm.state().await.unwrap(), None, "{version}");
        vmm.create(&config(&bench, &*vmm, "no-such-kernel")).await.unwrap();
        let error = vmm.boot().await.unwrap_err();
        assert!(matches!(error, Error::Api { .. }), "{version}: {error}");
        assert_eq!(vmm.state().await.unwrap(), None, "{version}");
        kill(&*vmm);
        assert_eq!(timeout(LONG, vmm.exited()).await.unwrap(), Exit::Signal { signal: 9 });
        assert!(bench.launch.socket.exists(), "{version}");
        assert_eq!(launch().await.end(GRACE).await.unwrap(), Exit::Orderly);
        bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_version_that_is_too_old_is_refused_and_ended() {
    let bench = Bench::new();
    let hypervisor = bench.simulator_with("CH_SIM_VERSION=v43.0");
    let error = hypervisor.launch(&bench.launch).await.err().unwrap();
    assert!(matches!(error, Error::VersionTooOld { .. }), "{error}");
    bench.assert_nothing_left();
    assert!(peer::started_for(&bench.launch.socket).unwrap().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_boot_that_hangs_and_a_vmm_that_dies_in_it() {
    for (action, certainty) in [("hang", Certainty::Unknown), ("crash", Certainty::Unknown)] {
        let bench = Bench::new();
        let faults = format!(r#"[{{"when": "vm.boot", "action": "{action}"}}]"#);
        std::fs::write(bench.path("faults"), faults).unwrap();
        let mut hypervisor = bench.simulator_with(&format!("CH_SIM_FAULTS='{}'", bench.path("faults").display()));
        hypervisor.settings.deadlines.boot = Duration::from_millis(300);
        hypervisor.settings.term = Duration::from_millis(200);
        let vmm = hypervisor.launch(&bench.launch).await.unwrap_or_else(|error| panic!("{error}"));
        vmm.create(&config(&bench, &*vmm, "vmlinux")).await.unwrap();
        let error = vmm.boot().await.unwrap_err();
        let expected = match action {
            "hang" => matches!(error, Error::Deadline { call: "vm.boot", .. }),
            _ => matches!(error, Error::Ended { exit: Exit::Signal { signal: 9 }, sent: true, .. }),
        };
        assert!(expected, "{action}: {error}");
        assert_eq!(error.certainty(), certainty);
        assert_eq!(vmm.end(Duration::from_millis(200)).await.unwrap(), Exit::Signal { signal: 9 }, "{action}");
        bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_crashed_processor_is_no_power_off() {
    let bench = Bench::new();
    let (_, vmm) = launched(&bench).await;
    vmm.create(&config(&bench, &*vmm, "vmlinux")).await.unwrap();
    // What the hypervisor logs on its otherwise orderly way out (cloud-hypervisor.md 3).
    let log = std::fs::OpenOptions::new().append(true).open(bench.path("vmm.log")).unwrap();
    let line = "cloud-hypervisor:   0.5s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: VcpuRun";
    std::io::Write::write_all(&mut &log, format!("{line}\n").as_bytes()).unwrap();
    kill_process(Pid::from_raw(vmm.identity().pid).unwrap(), Signal::TERM).unwrap();
    let exit = timeout(LONG, vmm.exited()).await.unwrap();
    assert_eq!(exit, Exit::Failed { code: Some(0), reason: Some(line.into()) });
    vmm.end(GRACE).await.unwrap();
    bench.assert_nothing_left();
}
