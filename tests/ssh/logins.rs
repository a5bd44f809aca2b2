//! Who is let in, who is not, and who is told what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::{Host, eventually};
use crate::harness::{PORT, Said, World, host, make_key, public_key};

fn with(change: impl FnOnce(&mut Host)) -> World {
    let mut host = host();
    change(&mut host);
    World::on(host)
}

#[test]
fn one_key_is_let_in_and_nothing_else() {
    let world = World::new();
    assert_eq!(world.exec("echo in").out, "in\n");
    let other = world.host.path("other");
    make_key(&other, &["-t", "ed25519"]);
    let ours = world.host.path("client");
    let command = |key: &std::path::Path, user: &str, more: &[&str]| {
        let ssh = world.ssh_as(user, &[]);
        // The first of an option counts for ssh(1), but all keys are tried.
        let mut arguments: Vec<String> = ssh.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        for argument in &mut arguments {
            *argument = argument.replace(&ours.display().to_string(), &key.display().to_string());
        }
        let mut fresh = std::process::Command::new("ssh");
        fresh.args(more).args(&arguments).arg("echo in");
        Said::from(fresh.stdin(std::process::Stdio::null()).output().unwrap())
    };
    let refused = |said: &Said| said.code == Some(255) && said.err.contains("Permission denied (publickey)");
    assert!(refused(&command(&other, "box", &[])), "{:?}", command(&other, "box", &[]));
    for user in ["-box", "box/..", "b ox", "box;id", "../box"] {
        let said = command(&ours, user, &["-l", user]);
        assert!(said.code == Some(255) && said.out.is_empty(), "{user}: {said:?}");
    }
    assert!(refused(&command(&ours, "a.b", &[])), "{:?}", command(&ours, "a.b", &[]));
    // A password, even the guests' own, opens nothing.
    let said = command(&other, "box", &["-o", "PreferredAuthentications=password,keyboard-interactive,none"]);
    assert!(refused(&said), "{said:?}");
    let log = world.runner.log();
    assert!(!log.contains("sandbox-ssh"), "no password in the log");
}

#[test]
fn an_rsa_key_as_deployments_have_it() {
    let mut host = host();
    let key = host.path("client");
    for file in [key.clone(), key.with_extension("pub")] {
        std::fs::remove_file(file).unwrap();
    }
    make_key(&key, &["-t", "rsa", "-b", "3072", "-m", "PEM"]);
    host.set("SSH_PUBLIC_KEY", public_key(&key));
    // The original's host key: RSA, PEM.
    make_key(&host.path("host_key"), &["-t", "rsa", "-b", "2048", "-m", "PEM"]);
    let mut world = World::on(host);
    world.start_sshd();
    assert_eq!(world.exec("echo in").out, "in\n");
}

#[test]
fn sandboxes_that_are_not_there_or_do_not_run() {
    let world = World::bare();
    let told = |user: &str, options: &[&str], command: &str| {
        Said::from(world.ssh_as(user, options).arg(command).output().unwrap())
    };
    let said = told("absent", &[], "true");
    assert_eq!((said.code, said.err.trim()), (Some(255), "there is no sandbox absent on this runner"), "{said:?}");
    world.host.completed(&world.host.api.stop_sandbox("box", None).unwrap());
    for options in [&["-T"] as &[&str], &["-tt"]] {
        let said = told("box", options, "true");
        let words = "sandbox box does not run: it is stopped; start it and try again";
        assert!(said.code == Some(255) && format!("{}{}", said.out, said.err).contains(words), "{said:?}");
    }
    let said = world.client("sftp", &["box@127.0.0.1"]);
    assert!(said.code != Some(0) && said.err.contains("sandbox box does not run"), "{said:?}");
    let said = Said::from(world.ssh(&["-W", "127.0.0.1:80", "-o", "LogLevel=INFO"]).output().unwrap());
    assert!(said.code == Some(255) && said.err.contains("sandbox box does not run"), "{said:?}");
}

#[test]
fn a_guest_without_an_ssh_server() {
    let world = with(|host| host.set("SANDBOX_SSH_PORT", "22221"));
    let said = world.exec("true");
    assert_eq!(said.code, Some(255), "{said:?}");
    assert!(said.err.contains("the SSH server of sandbox box cannot be reached"), "{said:?}");
    assert!(said.err.contains("192.168.0.2:22221"), "{said:?}");
}

#[test]
fn a_guest_that_does_not_know_the_user() {
    let mut world = with(|host| host.set("SANDBOX_SSH_USER", "nobody-here"));
    world.start_sshd();
    let said = world.exec("true");
    assert!(said.code == Some(255) && said.err.contains("does not let in the user nobody-here"), "{said:?}");
}

#[test]
fn many_failed_logins_are_slowed_down_and_then_refused() {
    let world = World::bare();
    let other = world.host.path("client2");
    make_key(&other, &["-t", "ed25519"]);
    let attempt = || {
        let began = Instant::now();
        let mut ssh = std::process::Command::new("ssh");
        ssh.args(["-i", &other.display().to_string()]);
        let key = format!("IdentityFile={}", world.host.path("client").display());
        let options: Vec<String> = world.options();
        for pair in options.chunks(2).filter(|pair| pair[1] != key) {
            ssh.args(pair);
        }
        let said = Said::from(ssh.args(["box@127.0.0.1", "true"]).output().unwrap());
        assert_eq!(said.code, Some(255), "{said:?}");
        (began.elapsed(), said)
    };
    let times: Vec<Duration> = (0..5).map(|_| attempt().0).collect();
    // 100, 200, 400, 800, 1600 ms at the least.
    assert!(times[4] >= Duration::from_millis(1600) && times[4] > times[0], "{times:?}");
    // Whoever logs in starts anew.
    let said = world.ssh_as("absent", &[]).arg("true").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("no sandbox absent"), "{said:?}");
    assert!(attempt().0 < Duration::from_millis(1600));
}

/// A client that speaks for itself.
fn raw() -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// All that comes until the gateway closes.
fn until_closed(mut stream: &TcpStream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(length) => all.extend(&piece[..length]),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it was not closed: {all:?}");
                return all;
            }
        }
    }
}

#[test]
fn clients_that_do_not_speak_ssh() {
    let world = with(|host| host.set("RUNNER_SSH_LOGIN_GRACE_SEC", "2"));
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut huge = b"SSH-2.0-huge\r\n".to_vec();
    huge.extend([0x7f, 0xff, 0xff, 0xff]);
    huge.extend(vec![0; 100_000]);
    let mut zero = b"SSH-2.0-zero\r\n".to_vec();
    zero.extend([0; 4096]);
    let long = vec![b'x'; 100_000];
    let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    for (name, bytes) in [
        ("garbage", garbage),
        ("SSH-1", b"SSH-1.5-old\r\n".to_vec()),
        ("a packet of 2 GiB", huge),
        ("an empty packet", zero),
        ("no end of line", long),
        ("HTTP", http),
    ] {
        let mut stream = raw();
        // It may be closed before all is sent.
        let _ = stream.write_all(&bytes);
        let said = until_closed(&stream);
        assert!(said.starts_with(b"SSH-2.0-runner-ch\r\n") || said.is_empty(), "{name}: {said:?}");
    }
    // Those who say nothing, or stop in the middle, have a time.
    let silent = raw();
    let mut half = raw();
    half.write_all(b"SSH-2.0-half\r\n").unwrap();
    let began = Instant::now();
    assert!(until_closed(&silent).starts_with(b"SSH-2.0-runner-ch\r\n"));
    assert!(!until_closed(&half).is_empty());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // And all the others are served as ever.
    assert_eq!(world.ssh_as("absent", &[]).arg("true").output().unwrap().status.code(), Some(255));
    assert!(!world.runner.log().contains("panic"), "{}", world.runner.log());
}

#[test]
fn limits_of_connections() {
    let mut world = with(|host| {
        host.set("RUNNER_SSH_MAX_CONNECTIONS", "4");
        host.set("RUNNER_SSH_MAX_PER_SANDBOX", "2");
    });
    world.start_sshd();
    let hold = || {
        let mut child = world.ssh(&[]).arg("echo up; cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut word = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        child
    };
    let (mut first, mut second) = (hold(), hold());
    let said = world.exec("true");
    assert!(said.code == Some(255) && said.err.contains("RUNNER_SSH_MAX_PER_SANDBOX"), "{said:?}");
    let idle: Vec<TcpStream> = eventually("the refused one is gone", || {
        let idle: Vec<TcpStream> = (0..2).map(|_| raw()).collect();
        let greeted = idle.iter().all(|stream| {
            let mut byte = [0; 7];
            (&*stream).read_exact(&mut byte).is_ok() && &byte == b"SSH-2.0"
        });
        greeted.then_some(idle)
    });
    assert_eq!(until_closed(&raw()), b"Too many connections\r\n");
    drop(idle);
    for child in [&mut first, &mut second] {
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    eventually("places are free again", || (world.exec("echo again").out == "again\n").then_some(()));
}

#[test]
fn the_host_key_is_made_once_and_kept() {
    let host = host();
    let scan = || {
        let keys = std::process::Command::new("ssh-keyscan").args(["-p", "2220", "127.0.0.1"]).output().unwrap();
        let text = String::from_utf8_lossy(&keys.stdout).into_owned();
        assert!(text.contains("ssh-ed25519"), "{keys:?}");
        text
    };
    let runner = host.runner();
    let key = std::fs::read(host.path("host_key")).unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(host.path("host_key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let first = scan();
    assert!(runner.stop().success());
    let runner = host.runner();
    assert_eq!(scan(), first);
    assert_eq!(std::fs::read(host.path("host_key")).unwrap(), key);
    drop(runner);
    std::fs::write(host.path("host_key"), "not a key").unwrap();
    let mut runner = host.spawn();
    assert!(!runner.wait().success());
    let log = host.log();
    assert!(log.contains("cannot use the host key") && log.contains("SSH_HOST_KEY_PATH"), "{log}");
    assert_eq!(std::fs::read(host.path("host_key")).unwrap(), b"not a key", "what is there is never overwritten");
}

#[test]
fn a_port_that_is_taken_is_told() {
    let host = host();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", PORT)).unwrap();
    let mut runner = host.spawn();
    assert!(!runner.wait().success());
    assert!(host.log().contains("cannot listen on 127.0.0.1:2220 for SSH"), "{}", host.log());
}
