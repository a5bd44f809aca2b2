//! VMMs and guests that end unasked, with the real runner: how soon it is noticed, what is said of the cause, what is
//! kept, what the API is told, and what follows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use daytona_sim::{SandboxState, StatePut};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

mod common;

use common::{Host, Runner, SOON, eventually, leftovers};

fn shown(host: &Host) -> Value {
    host.http().get("/sandboxes/box").json()
}

fn pid(host: &Host) -> i32 {
    i32::try_from(shown(host)["pid"].as_i64().expect("it runs")).unwrap()
}

fn murder(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the VMM is there");
}

/// A host whose comparison with the API never comes while a test runs.
fn host() -> Host {
    let mut host = Host::new();
    host.set("RUNNER_SYNC_INTERVAL_SEC", "3600");
    host
}

fn with_box(host: &Host) -> Runner {
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    runner
}

fn puts(host: &Host) -> Vec<StatePut> {
    host.api.state_puts()
}

#[track_caller]
fn ended(host: &Host) -> Value {
    eventually("the end is seen and cleared", || {
        let shown = shown(host);
        (shown["lastExit"].is_object() && shown["state"] == "stopped").then_some(shown)
    })
}

/// It has another VMM than that one, and its guest can be reached.
#[track_caller]
fn runs_again(host: &Host, victim: i32) {
    eventually("it runs again", || {
        let shown = shown(host);
        let another = shown["state"] == "started" && shown["pid"].as_i64()? != i64::from(victim);
        // The route opens a moment after the record says that it is started.
        (another && host.http().get("/sandboxes/box/toolbox/version").status == 200).then_some(())
    });
}

/// What the guest is told to do to itself; the answer may not come any more.
fn order(host: &Host, command: &str) {
    let body = json!({ "command": command }).to_string();
    host.http().post("/sandboxes/box/toolbox/process/execute", &body);
}

#[test]
fn a_killed_vmm_is_noticed_told_to_the_api_and_documented_at_once() {
    let host = host();
    let _runner = with_box(&host);
    let mut took = Vec::new();
    for round in 1..=5 {
        let (victim, before) = (pid(&host), shown(&host)["lastExit"]["at"].clone());
        let began = Instant::now();
        murder(victim);
        eventually("the end is seen", || (shown(&host)["lastExit"]["at"] != before).then_some(()));
        took.push(began.elapsed());
        assert!(took[took.len() - 1] < Duration::from_secs(1), "{took:?}");
        let shown = ended(&host);
        assert_eq!(shown["lastExit"]["cause"], "signal");
        assert!(shown["lastExit"]["detail"].as_str().unwrap().contains("signal 9"), "{shown}");

        eventually("the API is told long before the interval", || (puts(&host).len() == round).then_some(()));
        let put = puts(&host).pop().unwrap();
        assert_eq!((put.body["state"].as_str(), put.http_status), (Some("stopped"), 200));
        assert!(put.body["errorReason"].as_str().unwrap().contains("signal 9"), "{}", put.body);

        let crashes = eventually("the bundle is complete", || {
            let crashes = host.http().get("/sandboxes/box/crashes").json();
            (crashes.as_array().unwrap().len() == round).then_some(crashes)
        });
        let crash = &crashes[0];
        assert_eq!((&crash["cause"], &crash["pid"]), (&json!("signal"), &json!(victim)));
        assert_eq!(crash["during"], "running");
        let read = |file: &str| host.http().get(&format!("/sandboxes/box/crashes/{}/{file}", crash["time"]));
        assert!(read("serial.log").body.contains("kernel up"), "the guest's console");
        assert!(read("events.json").body.contains("booted"));
        assert!(read("cause.json").body.contains("\"uptimeSeconds\""));
        assert_eq!((read("nothing").status, read("../serial.log").status), (404, 404));
        host.completed(&host.api.start_sandbox("box").unwrap());
        assert!(read("serial.log").body.contains("kernel up"), "the next start does not touch it");
    }
    took.sort();
    eprintln!("SIGKILL of the VMM until GET /sandboxes/{{id}} shows it: median {:?}, all {took:?}", took[2]);
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn each_end_has_its_cause() {
    let host = host();
    let _runner = with_box(&host);
    let table = [
        ("poweroff", "guest_power_off", "powered itself off"),
        ("panic", "guest_panic", "Kernel panic - not syncing"),
        ("crash", "failed", "VCPU generated error"),
    ];
    for (command, cause, words) in table {
        order(&host, command);
        let shown = eventually(cause, || {
            let shown = shown(&host);
            (shown["lastExit"]["cause"] == cause && shown["state"] == "stopped").then_some(shown)
        });
        assert!(shown["lastExit"]["detail"].as_str().unwrap().contains(words), "{shown}");
        assert!(leftovers::vmms(&host.path("sock")).is_empty());
        eventually("the API knows", || {
            let put = puts(&host).pop()?;
            put.body["errorReason"].as_str()?.contains(words).then_some(())
        });
        host.completed(&host.api.start_sandbox("box").unwrap());
    }
    murder(pid(&host));
    eventually("signal", || (shown(&host)["lastExit"]["cause"] == "signal").then_some(()));
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_guest_that_panics_while_it_boots_fails_its_start_at_once() {
    let host = host();
    host.faults(json!([{ "when": "toolbox", "action": "panic" }]));
    let _runner = host.runner();
    let began = Instant::now();
    let job = host.done(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let reason = job.error_message.unwrap();
    assert!(reason.contains("kernel panicked") && reason.contains("last serial output"), "{reason}");
    assert!(began.elapsed() < SOON, "not only after DAEMON_START_TIMEOUT_SEC");
    leftovers::none(&host);
}

/// A memory cgroup with that limit, where this machine lets one be made. Its parent is kept open, because the host's own
/// /sys hides it.
struct Group {
    parent: std::fs::File,
    name: String,
    dir: PathBuf,
}

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("runner-ch-death-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let dir = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&dir).is_ok() {
                let group = Self { parent: std::fs::File::open(root).unwrap(), name: name.clone(), dir };
                if std::fs::write(group.dir.join(limit), bytes.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        use nix::unistd::{UnlinkatFlags, unlinkat};
        // The last process may still be on its way out of it.
        let gone = (0..200).any(|_| {
            let removed = unlinkat(&self.parent, self.name.as_str(), UnlinkatFlags::RemoveDir).is_ok();
            if !removed {
                std::thread::sleep(Duration::from_millis(10));
            }
            removed
        });
        assert!(gone || std::thread::panicking(), "{} is left", self.dir.display());
    }
}

#[test]
fn a_vmm_that_the_kernel_kills_for_want_of_memory() {
    // Before the host: its /sys shows no cgroups.
    let Some(group) = Group::new(24 << 20) else {
        eprintln!("skipped: no memory cgroup can be made here");
        return;
    };
    let procs = std::fs::OpenOptions::new().write(true).open(group.dir.join("cgroup.procs")).unwrap();
    let mut host = host();
    // Memory of the process itself, not of a file that the kernel could write back.
    host.set("RUNNER_MEMORY", "shared");
    let _runner = with_box(&host);
    std::io::Write::write_all(&mut &procs, pid(&host).to_string().as_bytes()).unwrap();
    host.in_guest("box", "touch-ram 100");
    host.http().post("/sandboxes/box/pause", "{}");
    let shown = ended(&host);
    assert_eq!(shown["lastExit"]["cause"], "out_of_memory", "{shown}\n{}", host.log());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn the_end_of_a_vmm_that_an_earlier_life_started_has_its_cause_too() {
    let host = host();
    let runner = with_box(&host);
    runner.murder();
    let runner = host.runner();
    murder(pid(&host));
    assert_eq!(ended(&host)["lastExit"]["detail"], "the VMM was ended by signal 9");
    host.completed(&host.api.start_sandbox("box").unwrap());

    let victim = pid(&host);
    runner.murder();
    murder(victim);
    let _runner = host.runner();
    let shown = eventually("the end is found", || {
        let shown = shown(&host);
        let detail = shown["lastExit"]["detail"].as_str()?.contains("while the runner was not running");
        (detail && shown["state"] == "stopped").then_some(shown)
    });
    assert_eq!(shown["lastExit"]["cause"], "unknown", "nobody saw it: {shown}");
    eventually("the API knows", || {
        let put = puts(&host).pop()?;
        put.body["errorReason"].as_str()?.contains("not running").then_some(())
    });
    let crashes = host.http().get("/sandboxes/box/crashes").json();
    assert!(crashes[0]["during"].as_str().unwrap().contains("runner was not running"), "{crashes}");
}

#[test]
fn a_crashed_sandbox_is_started_again_without_the_api_noticing() {
    let mut host = host();
    host.set("RUNNER_RESTART_POLICY", "on-failure");
    let _runner = with_box(&host);
    host.in_guest("box", "write-block 5 kept && sync");
    let victim = pid(&host);
    murder(victim);
    runs_again(&host, victim);
    assert!(host.in_guest("box", "read-block 5").contains("kept"));
    assert_eq!(shown(&host)["lastExit"]["cause"], "signal");
    assert!(puts(&host).is_empty(), "{:?}", puts(&host));
    order(&host, "poweroff");
    eventually("a power-off is what the guest wanted", || (shown(&host)["state"] == "stopped").then_some(()));
    eventually("and the API is told", || (puts(&host).len() == 1).then_some(()));
}

#[test]
fn a_crash_loop_ends_in_an_error_that_the_api_is_told_and_a_start_begins_anew() {
    let mut host = host();
    host.set("RUNNER_RESTART_POLICY", "on-failure");
    host.set("RUNNER_RESTART_MAX", "2");
    let _runner = with_box(&host);
    host.faults(json!([{ "when": "vm.boot", "action": "crash" }]));
    murder(pid(&host));
    let shown = eventually("it is given up", || {
        let shown = shown(&host);
        (shown["state"] == "error").then_some(shown)
    });
    let reason = shown["errorReason"].as_str().unwrap();
    assert!(reason.contains("crash loop") && reason.contains("3 times") && reason.contains("/crashes"), "{reason}");
    let row = host.api.wait_sandbox("box", SandboxState::Error, SOON).expect("the API knows");
    assert!(row.error_reason.unwrap().contains("crash loop"));
    assert_eq!(host.http().get("/sandboxes/box/crashes").json().as_array().unwrap().len(), 3);
    assert!(leftovers::vmms(&host.path("sock")).is_empty());
    host.faults(json!([]));
    assert_eq!(host.http().post("/sandboxes/box/start", "{}").status, 200);
    assert_eq!(host.in_guest("box", "echo again"), "again");
}

#[test]
fn a_runner_that_is_killed_before_the_restart_goes_on_with_it() {
    let mut host = host();
    host.set("RUNNER_RESTART_POLICY", "on-failure");
    let runner = with_box(&host);
    let victim = pid(&host);
    murder(victim);
    eventually("a restart is owed", || shown(&host)["restart"].is_object().then_some(()));
    runner.murder();
    let _runner = host.runner();
    runs_again(&host, victim);
    assert_eq!(host.in_guest("box", "echo again"), "again");
    assert_eq!(leftovers::vmms(&host.path("sock")).len(), 1);
}

#[test]
fn an_api_that_was_away_is_told_when_it_is_back() {
    let host = host();
    let _runner = with_box(&host);
    host.api.faults().down();
    murder(pid(&host));
    ended(&host);
    eventually("it was tried in vain", || {
        host.log().contains("cannot tell the API of an unasked change").then_some(())
    });
    assert_eq!(host.api.sandbox("box").unwrap().state, SandboxState::Started);
    host.api.faults().up();
    let row = host.api.wait_sandbox("box", SandboxState::Stopped, SOON).expect("the API knows");
    assert!(row.error_reason.unwrap().contains("signal 9"));
    let taken = || puts(&host).iter().filter(|put| put.http_status == 200).count();
    eventually("it is told once", || (taken() == 1).then_some(()));
}

#[test]
fn nothing_is_kept_on_a_disk_that_is_almost_full_and_nothing_else_suffers() {
    let mut host = host();
    let small = host.path("small");
    std::fs::create_dir(&small).unwrap();
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=32m")).unwrap();
    host.set("CH_SANDBOXES_PATH", small.display().to_string());
    let runner = with_box(&host);
    murder(pid(&host));
    ended(&host);
    eventually("it is said", || host.log().contains("the disk is almost full: nothing is kept").then_some(()));
    assert_eq!(host.http().get("/sandboxes/box/crashes").json(), json!([]));
    host.completed(&host.api.start_sandbox("box").unwrap());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    assert!(runner.stop().success());
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
