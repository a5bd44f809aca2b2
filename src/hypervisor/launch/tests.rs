//! The launcher with binaries that are no hypervisor at all.

use std::os::unix::net::UnixListener;
use std::time::Instant;

use super::support::{Bench, LONG, hypervisor};
use super::*;
use crate::error::{Certainty, ErrorCode, Failure};
use crate::hypervisor::Exit;

/// The error of a launch that must fail. `dyn Vmm` has no `Debug`, so `unwrap_err` will not do.
async fn fails(hypervisor: &CloudHypervisor, bench: &Bench) -> Error {
    let result = timeout(LONG, hypervisor.launch(&bench.launch)).await.unwrap();
    let error = result.err().expect("the launch must fail");
    bench.assert_nothing_left();
    error
}

#[tokio::test(flavor = "current_thread")]
async fn a_missing_binary_and_one_that_cannot_be_executed() {
    let bench = Bench::new();
    let text = bench.path("text");
    std::fs::write(&text, "not a program").unwrap();
    for path in [bench.path("none"), text] {
        let failure = Failure::from(fails(&hypervisor(&path), &bench).await);
        assert!(failure.message.contains("CH_BINARY"), "{failure}");
        assert!(failure.message.contains(path.to_str().unwrap()), "{failure}");
        assert_eq!((failure.code, failure.certainty), (ErrorCode::Internal, Certainty::NotDone));
        let failure = hypervisor(&path).installed_version().await.unwrap_err();
        assert!(failure.to_string().contains("CH_BINARY"), "{failure}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_binary_that_dies_is_reported_at_once_with_its_words() {
    let bench = Bench::new();
    let begun = Instant::now();
    let error = fails(&bench.script("echo first; echo 'no /dev/kvm here' >&2; exit 7"), &bench).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let Error::DiedAtStart { exit, lines, .. } = &error else { panic!("{error}") };
    assert_eq!(*exit, Exit::Failed { code: Some(7), reason: Some("no /dev/kvm here".into()) });
    assert_eq!(lines[..], ["first", "no /dev/kvm here"]);
}

#[tokio::test(flavor = "current_thread")]
async fn only_the_last_run_is_quoted() {
    let bench = Bench::new();
    fails(&bench.script("echo old; exit 1"), &bench).await;
    let error = fails(&bench.script("kill -9 $$"), &bench).await;
    let Error::DiedAtStart { exit, lines, .. } = &error else { panic!("{error}") };
    assert_eq!((exit, lines.len()), (&Exit::Signal { signal: 9 }, 0));
    assert!(bench.read("vmm.out").contains("old"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_binary_that_never_serves_is_killed() {
    let bench = Bench::new();
    let mut hypervisor = bench.script("echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 1000");
    hypervisor.settings.start = Duration::from_millis(300);
    let error = fails(&hypervisor, &bench).await;
    assert!(matches!(error, Error::StartDeadline { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::Timeout);
    let pid = bench.read("pid");
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "killed and reaped");
}

#[tokio::test(flavor = "current_thread")]
async fn what_the_process_inherits() {
    // SAFETY: the tests of this file run in processes of their own or tolerate the variable.
    unsafe { std::env::set_var("API_TOKEN", "secret-of-the-runner") };
    let bench = Bench::new();
    // A descriptor that is not close-on-exec, as a careless library might leave it.
    let leak = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 100).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let script = "env; pwd; umask; readlink /proc/self/ns/net; for f in /proc/$$/fd/*; do echo fd=${f##*/}; done; \
                  cut -d')' -f2 /proc/$$/stat | cut -d' ' -f5; echo pid=$$; printf '%s\\n' \"$@\"; exit 3";
    fails(&bench.script(script), &bench).await;
    let output = bench.read("vmm.out");
    let lines: Vec<&str> = output.lines().collect();
    assert!(!output.contains("API_TOKEN") && !output.contains("secret"), "{output}");
    assert!(output.contains("PATH=/"), "{output}");
    assert!(lines.contains(&"0077"), "umask: {output}");
    assert!(lines.contains(&"/"), "working directory: {output}");
    let home = std::fs::read_link("/proc/self/ns/net").unwrap();
    let inside = lines.iter().find(|line| line.starts_with("net:[")).unwrap();
    assert_ne!(*inside, home.to_str().unwrap(), "its own namespace");
    assert!(!lines.contains(&"fd=100"), "no foreign descriptor: {output}");
    let pid = lines.iter().find_map(|line| line.strip_prefix("pid=")).unwrap();
    assert!(lines.contains(&pid), "it leads its session: {output}");
    let events = format!("path={}", bench.path("events.json").display());
    for argument in ["--api-socket", bench.launch.socket.to_str().unwrap(), "--event-monitor", &events, "--log-file"] {
        assert!(lines.contains(&argument), "{argument}: {output}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_served_socket_is_left_to_its_owner() {
    let bench = Bench::new();
    let _owner = UnixListener::bind(&bench.launch.socket).unwrap();
    let hypervisor = bench.script("exit 1");
    let error = hypervisor.launch(&bench.launch).await.err().unwrap();
    let own = std::process::id().cast_signed();
    assert!(matches!(error, Error::SocketInUse { pid, .. } if pid == own), "{error}");
    assert_eq!(error.code(), ErrorCode::Conflict);
    let error = hypervisor.clear(&bench.launch).await.unwrap_err();
    assert!(matches!(error, Error::SocketInUse { .. }), "the runner does not kill itself: {error}");
    assert!(bench.launch.socket.exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_stale_socket_is_no_obstacle() {
    let bench = Bench::new();
    drop(UnixListener::bind(&bench.launch.socket).unwrap());
    let error = fails(&bench.script("test ! -e \"$2\" && echo removed; exit 1"), &bench).await;
    assert!(matches!(&error, Error::DiedAtStart { lines, .. } if lines[..] == ["removed"]), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn clearing_where_nothing_is() {
    let bench = Bench::new();
    let hypervisor = bench.script("exit 1");
    hypervisor.clear(&bench.launch).await.unwrap();
    drop(UnixListener::bind(&bench.launch.socket).unwrap());
    std::fs::write(peer::lock_of(&bench.launch.socket), "").unwrap();
    hypervisor.clear(&bench.launch).await.unwrap();
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "current_thread")]
async fn a_dropped_launch_kills_its_process() {
    let bench = Bench::new();
    let hypervisor = bench.script("exec 0<>/dev/null; echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 1000");
    let pid_file = bench.path("pid");
    let written = async {
        loop {
            match std::fs::read_to_string(&pid_file) {
                Ok(text) if text.ends_with('\n') => break text.trim().parse::<i32>().unwrap(),
                _ => sleep(Duration::from_millis(2)).await,
            }
        }
    };
    let pid = tokio::select! {
        _ = hypervisor.launch(&bench.launch) => panic!("it never serves"),
        pid = timeout(LONG, written) => pid.unwrap(),
    };
    let give_up = Instant::now() + LONG;
    while std::path::Path::new("/proc").join(pid.to_string()).exists() {
        assert!(Instant::now() < give_up, "process {pid} is still there");
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn without_a_namespace_nothing_is_started() {
    let mut bench = Bench::new();
    bench.launch.netns = None;
    let error = fails(&bench.script("echo started"), &bench).await;
    assert!(matches!(error, Error::NoNamespace { .. }), "{error}");
    assert!(!bench.path("vmm.out").exists());
    bench.script("exit 0").clear(&bench.launch).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_path_with_a_comma_is_refused() {
    let mut bench = Bench::new();
    bench.launch.dir = bench.path("a,b");
    let error = fails(&bench.script("exit 1"), &bench).await;
    assert!(matches!(error, Error::Path { .. }), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn the_installed_version() {
    let bench = Bench::new();
    let version = |text: &str| {
        let hypervisor = bench.script(&format!("test \"$1\" = --version || exit 2; {text}"));
        async move { hypervisor.installed_version().await }
    };
    let found = version("echo 'cloud-hypervisor v53.0.0'; echo 'Migration Protocol Versions: 0'").await.unwrap();
    assert_eq!((found.major(), found.to_string().as_str()), (53, "v53.0.0"));
    assert!(matches!(version("echo cloud-hypervisor v38.0").await, Err(Error::VersionTooOld { .. })));
    assert!(matches!(version("echo something").await, Err(Error::VersionSyntax { .. })));
    let error = version("echo broken >&2; exit 1").await.unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
}
