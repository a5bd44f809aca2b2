//! Backup and restore by command.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::common::{Host, eventually, leftovers};
use super::{offline, online};

/// Names in the directory of the store.
fn siblings(host: &Host) -> Vec<String> {
    let entries = std::fs::read_dir(host.dir.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("state")).collect();
    names.sort();
    names
}

#[test]
fn a_store_is_saved_from_a_running_runner_and_restored_under_running_sandboxes() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let (warm, cold) = (host.path("warm.backup"), host.path("cold.backup"));
    let (warm, cold) = (warm.to_str().unwrap(), cold.to_str().unwrap());

    let said = online(&host).does(&["backup", warm]);
    assert!(said.contains("1 sandboxes") && said.contains("http://127.0.0.1:3006"), "{said}");
    assert_eq!(std::fs::metadata(warm).unwrap().permissions().mode() & 0o777, 0o600);
    // Without the token it cannot ask.
    offline(&host).refuses(&["backup", cold], &["API_TOKEN"]);
    assert!(!std::path::Path::new(cold).exists());
    online(&host).refuses(&["restore", warm, "--replace"], &["in use", "stop the runner"]);
    let said = online(&host).does(&["check"]);
    assert!(said.contains("1 sandboxes") && said.contains("every record can be read"), "{said}");

    host.completed(&host.api.create_sandbox(&host.spec("later")).unwrap());
    let vmms = leftovers::vmms(&host.path("sock"));
    assert!(runner.stop().success());
    let said = offline(&host).does(&["backup", cold]);
    assert!(said.contains("2 sandboxes") && !said.contains("http"), "{said}");
    offline(&host).refuses(&["restore", cold], &["there is a store", "--replace"]);
    let said = offline(&host).does(&["restore", cold, "--replace"]);
    assert!(said.contains("2 sandboxes") && said.contains("state.before-restore-"), "{said}");
    assert_eq!(siblings(&host).len(), 2, "{:?}", siblings(&host));

    // The sandboxes have run all the time and are found again.
    let runner = host.runner();
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
    assert_eq!(host.in_guest("later", "echo unharmed"), "unharmed");
    assert_eq!(leftovers::vmms(&host.path("sock")), vmms);
    host.completed(&host.api.destroy_sandbox("later").unwrap());
    assert!(runner.stop().success());

    // Nothing there: nothing to replace.
    std::fs::remove_dir_all(host.path("state")).unwrap();
    offline(&host).refuses(&["check"], &["no store", "RUNNER_STATE_PATH"]);
    let said = offline(&host).does(&["restore", warm]);
    assert!(said.contains("1 sandboxes"), "{said}");
    let _runner = host.runner();
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_backup_that_is_not_whole_touches_nothing() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert!(runner.stop().success());
    let (good, bad) = (host.path("good"), host.path("bad"));
    offline(&host).does(&["backup", good.to_str().unwrap()]);
    let bytes = std::fs::read(&good).unwrap();
    let before = siblings(&host);
    let mut changed = bytes.clone();
    let at = changed.windows(3).position(|three| three == b"box").unwrap();
    changed[at] = b'f';
    let text = String::from_utf8(bytes.clone()).unwrap();
    let newer = text.replacen("\"store_format\":2", "\"store_format\":9", 1);
    for (content, words) in [
        (changed, ["line", "checksum"]),
        (bytes[..bytes.len() - 5].to_vec(), ["line", "cut off"]),
        (b"\n".to_vec(), ["line 1", "no backup"]),
        (newer.into_bytes(), ["format 9", "up to 2"]),
    ] {
        std::fs::write(&bad, content).unwrap();
        offline(&host).refuses(&["restore", bad.to_str().unwrap(), "--replace"], &words);
        assert_eq!(siblings(&host), before);
    }
    offline(&host).refuses(&["restore", "/nowhere/x", "--replace"], &["/nowhere/x", "No such file"]);
    let said = offline(&host).does(&["check"]);
    assert!(said.contains("1 sandboxes"), "{said}");
    let _runner = host.runner();
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
}

/// Killed at any moment, a restore leaves the old store or the new one.
#[test]
fn a_restore_that_is_killed_leaves_a_whole_store() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert!(runner.stop().success());
    let file = host.path("backup");
    let file = file.to_str().unwrap();
    offline(&host).does(&["backup", file]);
    for micros in [0_u64, 2_000, 5_000, 10_000, 20_000, 30_000, 50_000, 80_000] {
        let mut child = Command::new(super::program("runner-ch"))
            .args(["store", "restore", file, "--replace"])
            .env_clear()
            .env("RUNNER_STATE_PATH", host.path("state"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Not a wait for a state: the moment of the kill is what is varied.
        std::thread::sleep(std::time::Duration::from_micros(micros));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = offline(&host).does(&["check"]);
        assert!(said.contains("1 sandboxes") && said.contains("every record can be read"), "{micros} us: {said}");
    }
    offline(&host).does(&["restore", file, "--replace"]);
    let _runner = host.runner();
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
}

#[test]
fn a_runner_with_https_is_asked_by_its_certificate() {
    let mut host = Host::new();
    let [cert, key, other] = ["cert.pem", "key.pem", "other.pem"].map(|name| host.path(name).display().to_string());
    for (cert, key) in [(&cert, &key), (&other, &format!("{other}.key"))] {
        // No name of this host is in it.
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=runner.example", "-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", key, "-out", cert])
            .output()
            .expect("the package openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    for (name, value) in [("ENABLE_TLS", "true"), ("TLS_CERT_FILE", &cert), ("TLS_KEY_FILE", &key)] {
        host.set(name, value);
    }
    let _runner = host.spawn();
    eventually("it is ready", || host.log().contains("runner is ready").then_some(()));
    let file = host.path("backup");
    let ask = |cert: &str| {
        online(&host).with("ENABLE_TLS", "true").with("TLS_CERT_FILE", cert).with("TLS_KEY_FILE", key.as_str())
    };
    let said = ask(&cert).does(&["backup", file.to_str().unwrap()]);
    assert!(said.contains("https://127.0.0.1:3006"), "{said}");
    let imposter = host.path("imposter");
    ask(&other).refuses(&["backup", imposter.to_str().unwrap()], &["https://127.0.0.1:3006", "TLS_CERT_FILE"]);
    assert!(!imposter.exists());
}
