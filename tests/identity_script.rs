//! The hook for guests, guest/runner-ch-identity, on a tree of its own (`--root`): what it changes, what it
//! refuses, what it says.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const TIME: &str = "1700000000123456789";

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/runner-ch-identity")
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A tree like that of a cloud image.
fn guest() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "dev/urandom", "");
    write(root.path(), "proc/sys/kernel/hostname", "parent\n");
    write(root.path(), "etc/hostname", "parent\n");
    write(root.path(), "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 parent.example parent\n10.0.0.7 friend\n");
    write(root.path(), "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    write(root.path(), "var/lib/systemd/random-seed", &"s".repeat(512));
    fs::create_dir_all(root.path().join("var/lib/dbus")).unwrap();
    root
}

fn with_host_keys(root: &Path) {
    for kind in ["rsa", "dsa", "ed25519"] {
        write(root, &format!("etc/ssh/ssh_host_{kind}_key"), "old\n");
        write(root, &format!("etc/ssh/ssh_host_{kind}_key.pub"), "old\n");
    }
    write(root, "etc/ssh/sshd_config", "Port 22\n");
}

fn run(args: &[&str]) -> Output {
    Command::new("sh").arg(script()).args(args).output().unwrap()
}

fn renew(root: &Path, id: &str, digit: char) -> Output {
    let (machine_id, entropy) = (digit.to_string().repeat(32), digit.to_string().repeat(128));
    let root = root.to_str().unwrap();
    run(&["--sandbox", id, "--machine-id", &machine_id, "--entropy", &entropy, "--time", TIME, "--root", root])
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn has_keygen() -> bool {
    let found = Command::new("ssh-keygen").arg("-?").output().is_ok();
    if !found {
        eprintln!("ssh-keygen is not installed: host keys were not tested");
    }
    found
}

#[test]
fn everything_that_tells_two_guests_apart_is_new() {
    let root = guest();
    let root = root.path();
    assert_eq!(stdout(&renew(root, "box_1", 'a')), "runner-ch-identity ok box_1 rng,clock,machine-id,hostname\n");
    assert_eq!(read(root, "dev/urandom"), "a".repeat(128));
    assert_eq!(read(root, "etc/machine-id"), format!("{}\n", "a".repeat(32)));
    assert_eq!(read(root, "etc/hostname"), "box_1\n");
    assert_eq!(read(root, "proc/sys/kernel/hostname"), "box_1\n");
    assert_eq!(read(root, "etc/hosts"), "127.0.0.1 localhost\n10.0.0.7 friend\n127.0.1.1 box_1\n");
    assert_eq!(read(root, "commands"), "date -s @1700000000.123456789\n");
    assert!(!read(root, "var/lib/systemd/random-seed").starts_with('s'));
    assert!(!root.join("var/lib/dbus/machine-id").exists(), "nothing is added");
}

#[test]
fn two_copies_differ_and_a_second_run_leaves_nothing_of_the_first() {
    let (one, two) = (guest(), guest());
    stdout(&renew(one.path(), "first", 'a'));
    stdout(&renew(two.path(), "second", 'b'));
    for path in ["dev/urandom", "etc/machine-id", "etc/hostname", "etc/hosts", "var/lib/systemd/random-seed"] {
        assert_ne!(read(one.path(), path), read(two.path(), path), "{path}");
    }
    stdout(&renew(one.path(), "second", 'b'));
    for path in ["etc/machine-id", "etc/hostname", "etc/hosts"] {
        assert_eq!(read(one.path(), path), read(two.path(), path), "{path}");
    }
}

#[test]
fn the_other_machine_id_is_renewed_where_it_is_a_file_of_its_own() {
    let (own, linked) = (guest(), guest());
    write(own.path(), "var/lib/dbus/machine-id", "old\n");
    let link = linked.path().join("var/lib/dbus/machine-id");
    symlink("/etc/machine-id", &link).unwrap();
    stdout(&renew(own.path(), "a", '1'));
    assert_eq!(read(own.path(), "var/lib/dbus/machine-id"), format!("{}\n", "1".repeat(32)));
    stdout(&renew(linked.path(), "a", '1'));
    assert!(fs::symlink_metadata(link).unwrap().is_symlink());
}

#[test]
fn host_keys_are_replaced_and_the_server_is_told() {
    if !has_keygen() {
        return;
    }
    let root = guest();
    let root = root.path();
    with_host_keys(root);
    assert_eq!(stdout(&renew(root, "a", '1')), "runner-ch-identity ok a rng,clock,machine-id,hostname,ssh\n");
    assert!(!root.join("etc/ssh/ssh_host_dsa_key").exists(), "a key of a kind that is not made any more");
    let key = root.join("etc/ssh/ssh_host_ed25519_key");
    assert!(fs::read_to_string(&key).unwrap().contains("OPENSSH PRIVATE KEY"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_ne!(read(root, "etc/ssh/ssh_host_ed25519_key.pub"), "old\n");
    assert_eq!(read(root, "etc/ssh/sshd_config"), "Port 22\n");
    let hidden = fs::read_dir(root.join("etc/ssh")).unwrap();
    let hidden = hidden.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0, "what was made on the way is gone");
    assert!(read(root, "commands").contains("systemctl try-restart ssh.service\n"));
}

#[test]
fn a_step_that_must_not_fail_ends_it_with_a_reason() {
    for (broken, reason) in [
        ("dev/urandom", "cannot write to "),
        ("etc/machine-id", "cannot write "),
        ("etc/hostname", "cannot write "),
        ("proc/sys/kernel/hostname", "cannot set the host name"),
    ] {
        let root = guest();
        let path = root.path().join(broken);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let output = renew(root.path(), "a", '1');
        assert_eq!(output.status.code(), Some(1), "{broken}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.starts_with("runner-ch-identity: ") && told.contains(reason), "{broken}: {told}");
        assert_eq!(output.stdout, b"", "{broken}");
    }
}

#[test]
fn a_guest_without_the_optional_files_gets_its_identity() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "dev/urandom", "");
    fs::create_dir_all(root.join("proc/sys/kernel")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    stdout(&renew(root, "a", '1'));
    assert_eq!(read(root, "etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 a\n");
}

#[test]
fn bad_arguments_change_nothing() {
    let root = guest();
    let path = root.path().to_str().unwrap();
    let (id, entropy) = ("1".repeat(32), "2".repeat(128));
    let long = "x".repeat(65);
    let (short_id, upper, more) = ("1".repeat(31), "A".repeat(32), "2".repeat(130));
    let cases: [[&str; 4]; 16] = [
        ["", &id, &entropy, TIME],
        ["-a", &id, &entropy, TIME],
        ["a b", &id, &entropy, TIME],
        ["a;b", &id, &entropy, TIME],
        ["$(id)", &id, &entropy, TIME],
        ["a\nb", &id, &entropy, TIME],
        [&long, &id, &entropy, TIME],
        ["a", &short_id, &entropy, TIME],
        ["a", &upper, &entropy, TIME],
        ["a", "", &entropy, TIME],
        ["a", &id, &more, TIME],
        ["a", &id, "", TIME],
        ["a", &id, &entropy, "now"],
        ["a", &id, &entropy, "1700000000"],
        ["a", &id, &entropy, "-1700000000123456789"],
        ["a", &id, &entropy, "170000000012345678900"],
    ];
    let refused = |args: &[&str]| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: "), "{args:?}");
        assert_eq!(output.stdout, b"", "{args:?}");
    };
    for [sandbox, machine_id, entropy, time] in cases {
        let values = ["--sandbox", sandbox, "--machine-id", machine_id, "--entropy", entropy, "--time", time];
        refused(&[&values[..], &["--root", path]].concat());
    }
    refused(&["--root", path]);
    refused(&["--root", path, "--sandbox"]);
    refused(&["--root", path, "--no-such", "x"]);
    refused(&["--sandbox", "a", "--machine-id", &id, "--entropy", &entropy, "--time", TIME, "--root", "relative"]);
    assert_eq!(read(root.path(), "etc/hostname"), "parent\n");
    assert_eq!(read(root.path(), "dev/urandom"), "");
}

#[test]
fn the_script_is_an_executable_good_shell_script() {
    assert_eq!(fs::metadata(script()).unwrap().permissions().mode() & 0o777, 0o755);
    for shell in ["sh", "dash", "bash", "busybox"] {
        let mut command = Command::new(shell);
        if shell == "busybox" {
            command.arg("sh");
        }
        if let Ok(checked) = command.arg("-n").arg(script()).output() {
            assert!(checked.status.success(), "{shell}: {checked:?}");
        }
    }
    match Command::new("shellcheck").arg("--shell=sh").arg(script()).output() {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(_) => eprintln!("shellcheck is not installed: the script was not checked with it"),
    }
}
