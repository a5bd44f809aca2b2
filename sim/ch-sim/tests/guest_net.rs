//! The simulated guest on a real TAP: toolbox, streams, egress, state across snapshots, faults.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::net::{Namespace, http, read_exactly, shell};
use common::{Binary, Vmm, code, copy, disk, kernel, wait_for};

const CONFIG: &str = r#"{"memory":{"size":67108864,"shared":true},"payload":{"kernel":"$DIR/kernel"},
    "serial":{"mode":"File","file":"$DIR/serial"},"console":{"mode":"Off"},
    "disks":[{"id":"disk0","path":"$DIR/disk","image_type":"Raw"}],
    "net":[{"id":"net0","tap":"tap0","mac":"02:11:22:33:44:55"}]}"#;

/// A VMM in a namespace, with kernel and disk.
fn vmm_in(namespace: &Namespace, setup: impl FnOnce(&mut Command)) -> Vmm {
    let vmm = Vmm::start_with(&Binary::simulator(), &["-v"], |command| {
        namespace.enter(command);
        setup(command);
    });
    kernel(vmm.dir.path());
    disk(&vmm.path("disk"), 1 << 20);
    vmm
}

fn boot(vmm: &Vmm) {
    vmm.put("vm.create", Some(CONFIG));
    vmm.put("vm.boot", None);
}

fn counter(stream: &mut std::net::TcpStream) -> (u64, String) {
    let (_, body) = http(stream, "GET", "/counter", b"");
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    (value["counter"].as_u64().unwrap(), value["bootId"].as_str().unwrap().to_owned())
}

#[test]
fn the_toolbox_answers_on_a_kept_connection() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let mut stream = namespace.connect(2280);
    let (status, body) = http(&mut stream, "GET", "/version", b"");
    assert_eq!((status, body.as_str()), (200, r#"{"version":"ch-sim v53.0"}"#));
    assert_eq!(http(&mut stream, "POST", "/init", br#"{"token":"t"}"#).0, 200);
    let (code, text) = shell(&mut stream, "echo one > f && cat f || echo no; pwd; false");
    assert_eq!((code, text.as_str()), (1, "one\n/home/daytona\n"));
    assert_eq!(shell(&mut stream, "nonsense").0, 127);
    let (status, body) = http(&mut stream, "POST", "/process/execute", br#"{"command":"sleep 9","timeout":0}"#);
    assert_eq!(status, 408, "{body}");
    let (_, body) = http(&mut stream, "GET", "/files/download?path=f", b"");
    assert_eq!(body, "one\n");
    let (_, body) = http(&mut stream, "PUT", "/echo/../x%20y?a=b", b"12345");
    assert!(body.contains("404"), "{body}");
    let (_, body) = http(&mut stream, "DELETE", "/echo?a=%20b", b"12345");
    let echo: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&echo["method"], &echo["query"]), (&"DELETE".into(), &"a=%20b".into()));
    assert_eq!(echo["bodyLength"], 5);
    let (_, body) = http(&mut stream, "GET", "/proxy/8080/some/path?q=1", b"");
    assert!(body.contains(r#""appPath":"/some/path""#), "{body}");
    assert_eq!(http(&mut stream, "GET", "/proxy/9999/", b"").0, 502);
    let mut app = namespace.connect(8080);
    assert_eq!(http(&mut app, "GET", "/direct", b"").0, 200);
}

#[test]
fn large_bodies_flow_both_ways() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let mut stream = namespace.connect(2280);
    let (_, body) = http(&mut stream, "POST", "/sink", &vec![7; 5_000_000]);
    assert!(body.contains("\"bytes\":5000000"), "{body}");
    let (_, body) = http(&mut stream, "GET", "/stream?bytes=3000000", b"");
    assert_eq!(body.len(), 3_000_000);
    assert!(body.starts_with("abcdef"));
    stream.write_all(b"POST /sink HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").unwrap();
    assert!(common::receive(&mut stream).body.contains("\"bytes\":3"));
}

#[test]
fn many_clients_at_once() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    drop(namespace.connect(2280));
    let mut streams: Vec<_> = (0..40).map(|_| namespace.connect(2280)).collect();
    for stream in &mut streams {
        assert_eq!(http(stream, "GET", "/version", b"").0, 200);
    }
}

#[test]
fn events_and_websockets_stream() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let mut events = namespace.connect(2280);
    events.write_all(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    while !text.contains("data: 2\n") {
        let byte = read_exactly(&mut events, 1)[0];
        text.push(char::from(byte));
    }
    assert!(text.contains("Content-Type: text/event-stream"), "{text}");
    for target in ["/ws", "/proxy/8080/socket"] {
        let mut socket = namespace.connect(2280);
        let head = format!(
            "GET {target} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).unwrap();
        let reply = common::receive(&mut socket);
        assert_eq!(reply.status, 101, "{reply:?}");
        let big = vec![b'x'; 300_000];
        let mut frame = vec![0x82, 0xff];
        frame.extend((big.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(&big);
        socket.write_all(&frame).unwrap();
        let echo = read_exactly(&mut socket, 10 + big.len());
        assert_eq!((&echo[..2], &echo[10..]), (&[0x82, 127][..], &big[..]));
    }
}

#[test]
fn the_guest_reaches_out() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let listener = namespace.run(|| TcpListener::bind(SocketAddr::from(([192, 168, 0, 1], 7000))).unwrap());
    let mut stream = namespace.connect(2280);
    assert_eq!(shell(&mut stream, "connect 192.168.0.1 7000"), (0, "connected\n".to_owned()));
    listener.set_nonblocking(true).unwrap();
    let (mut peer, from) = wait_for("the guest's connection", || listener.accept().ok());
    assert_eq!(from.ip().to_string(), "192.168.0.2");
    peer.set_read_timeout(Some(common::PATIENCE)).unwrap();
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(shell(&mut stream, "connect 192.168.0.1 7001"), (1, "refused\n".to_owned()));
    assert_eq!(shell(&mut stream, "connect 203.0.113.1 80 0.2"), (124, "timeout\n".to_owned()));
    assert_eq!(shell(&mut stream, "ping 192.168.0.1"), (0, "reply from 192.168.0.1\n".to_owned()));
    assert_eq!(shell(&mut stream, "ping 203.0.113.1 0.2"), (1, "timeout\n".to_owned()));
}

#[test]
fn the_counter_stands_still_while_paused_and_survives_a_restore() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let mut stream = namespace.connect(2280);
    shell(&mut stream, "echo kept > /tmp/file; write-block 5 on-disk");
    wait_for("ticks", || (counter(&mut stream).0 > 20).then_some(()));
    let (before, boot_id) = counter(&mut stream);
    vmm.put("vm.pause", None);
    let paused_at = Instant::now();
    std::fs::create_dir(vmm.path("snap")).unwrap();
    vmm.put("vm.snapshot", Some(r#"{"destination_url":"file://$DIR/snap"}"#));
    wait_for("some time", || (paused_at.elapsed() > Duration::from_secs(1)).then_some(()));
    vmm.put("vm.resume", None);
    let after = counter(&mut stream).0;
    assert!(after >= before && after < before + 90, "{before} {after}");

    let other = Namespace::new();
    let child = vmm_in(&other, |_| {});
    copy_snapshot(&vmm, &child);
    copy(&vmm.path("disk"), &child.path("disk"));
    child.put("vm.restore", Some(r#"{"source_url":"file://$DIR/snap","resume":true}"#));
    let mut stream = other.connect(2280);
    let (ticks, child_boot) = counter(&mut stream);
    assert!(ticks >= before, "{ticks} {before}");
    assert_eq!(child_boot, boot_id);
    assert_eq!(shell(&mut stream, "cat /tmp/file; read-block 5"), (0, "kept\non-disk\n".to_owned()));
    child.put("vm.reboot", None);
    let mut stream = other.connect(2280);
    assert_ne!(counter(&mut stream).1, boot_id);
    assert_eq!(shell(&mut stream, "read-block 5"), (0, "on-disk\n".to_owned()));
}

/// Copies `snap` with paths changed and without `host_mac`.
fn copy_snapshot(from: &Vmm, to: &Vmm) {
    std::fs::create_dir(to.path("snap")).unwrap();
    for name in ["state.json", "memory-ranges"] {
        copy(&from.path("snap").join(name), &to.path("snap").join(name));
    }
    let config = std::fs::read_to_string(from.path("snap/config.json")).unwrap();
    let dirs = [from, to].map(|vmm| vmm.dir.path().to_str().unwrap().to_owned());
    let config = config.replace(&dirs[0], &dirs[1]);
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["net"][0].as_object_mut().unwrap().remove("host_mac");
    std::fs::write(to.path("snap/config.json"), config.to_string()).unwrap();
}

#[test]
fn the_guest_ends_its_machine() {
    for (command, last, exit) in [("poweroff", "vmm:shutdown", 0), ("crash", "vmm:shutdown", 0)] {
        let namespace = Namespace::new();
        let mut vmm = vmm_in(&namespace, |_| {});
        boot(&vmm);
        shell(&mut namespace.connect(2280), command);
        assert_eq!(code(vmm.wait()), exit, "{command}");
        assert_eq!(vmm.events().pop().as_deref(), Some(last));
        let log = std::fs::read_to_string(vmm.path("stderr")).unwrap();
        assert_eq!(log.contains("ERROR") && log.contains("VCPU generated error"), command == "crash");
        assert!(!vmm.socket().exists());
    }
}

#[test]
fn reboot_stays_in_the_process() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    let mut stream = namespace.connect(2280);
    let first = counter(&mut stream).1;
    shell(&mut stream, "reboot");
    wait_for("the reboot", || vmm.events().contains(&"vm:rebooted".to_owned()).then_some(()));
    assert_ne!(counter(&mut namespace.connect(2280)).1, first);
}

#[test]
fn the_power_button_works_unless_it_is_ignored() {
    let namespace = Namespace::new();
    let mut vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    vmm.put("vm.power-button", None);
    assert_eq!(code(vmm.wait()), 0);
    let faults = vmm.path("faults.json");
    std::fs::write(&faults, r#"[{"when":"power-button","action":"ignore","times":1}]"#).unwrap();
    let mut deaf = vmm_in(&namespace, |command| {
        command.env("CH_SIM_FAULTS", &faults).arg("--no-shutdown");
    });
    boot(&deaf);
    drop(namespace.connect(2280));
    deaf.put("vm.power-button", None);
    assert_eq!(http(&mut namespace.connect(2280), "GET", "/version", b"").0, 200);
    deaf.put("vm.power-button", None);
    wait_for("the guest to be off", || (deaf.state() == "Created").then_some(()));
    assert!(deaf.child.try_wait().unwrap().is_none());
}

#[test]
fn faults_hit_calls_and_the_toolbox() {
    let namespace = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults.json");
    let order = |text: &str| std::fs::write(&faults, text).unwrap();
    order(r#"[{"when":"vm.boot","action":"enospc","times":1},{"when":"toolbox","action":"never"}]"#);
    let mut vmm = vmm_in(&namespace, |command| {
        command.env("CH_SIM_FAULTS", &faults);
    });
    vmm.put("vm.create", Some(CONFIG));
    let reply = vmm.request("PUT", "vm.boot", None);
    assert!(reply.body.contains("No space left on device"), "{reply:?}");
    vmm.put("vm.boot", None);
    let refused = namespace.run(|| std::net::TcpStream::connect(SocketAddr::from(([192, 168, 0, 2], 2280))).is_err());
    assert!(refused);
    order(r#"[{"when":"vm.pause:done","action":"crash"}]"#);
    let mut stream = vmm.connect();
    common::send(&mut stream, "PUT", "/api/v1/vm.pause", None);
    assert_eq!(code(vmm.wait()), 128 + libc::SIGKILL);
    assert!(vmm.events().contains(&"vm:paused".to_owned()));
}

#[test]
fn the_seed_disk_is_read() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    seed(&vmm.path("seed"));
    let config = CONFIG
        .replace(r#""disks":["#, r#""disks":[{"id":"seed","path":"$DIR/seed","image_type":"Raw","readonly":true},"#);
    vmm.put("vm.create", Some(&config));
    vmm.put("vm.boot", None);
    let mut stream = namespace.connect(2280);
    let (_, text) = shell(&mut stream, "hostname; cat /etc/sandbox.env; echo $KEY; write-block 0 x; read-block 0");
    assert_eq!(text, "box-1\nKEY=value\nvalue\nx\n");
}

/// A vfat image labelled CIDATA.
fn seed(path: &Path) {
    let mut image = std::io::Cursor::new(vec![0; 128 << 10]);
    let label = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut image, label).unwrap();
    let fs = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).unwrap();
    for (name, text) in [
        ("meta-data", "instance-id: box-1\nlocal-hostname: box-1\n"),
        ("user-data", "#cloud-config\nwrite_files:\n- path: /etc/sandbox.env\n  content: |\n    KEY=value\n"),
    ] {
        fs.root_dir().create_file(name).unwrap().write_all(text.as_bytes()).unwrap();
    }
    drop(fs);
    std::fs::write(path, image.into_inner()).unwrap();
}

#[test]
fn qcow2_disks_keep_what_was_flushed() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    let path = vmm.path("over");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-b", "disk", "-F", "raw"])
        .arg(&path)
        .args(["1M"])
        .status();
    assert!(made.unwrap().success());
    let config = CONFIG.replace(
        r#""path":"$DIR/disk","image_type":"Raw""#,
        r#""path":"$DIR/over","image_type":"Qcow2","backing_files":true"#,
    );
    vmm.put("vm.create", Some(&config));
    vmm.put("vm.boot", None);
    let mut stream = namespace.connect(2280);
    let wrote = shell(&mut stream, "write-block 9 persistent; read-block 9");
    assert_eq!(wrote, (0, "persistent\n".to_owned()));
    vmm.put("vm.shutdown", None);
    vmm.put("vm.boot", None);
    let read = shell(&mut namespace.connect(2280), "read-block 9");
    assert_eq!(read, (0, "persistent\n".to_owned()));
    vmm.put("vm.delete", None);
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&path).status();
    assert!(check.unwrap().success());
}

#[test]
fn an_idle_guest_costs_nothing() {
    let namespace = Namespace::new();
    let vmm = vmm_in(&namespace, |_| {});
    boot(&vmm);
    drop(namespace.connect(2280));
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", vmm.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (start, before) = (Instant::now(), cpu());
    wait_for("two seconds", || (start.elapsed() > Duration::from_secs(2)).then_some(()));
    assert!(cpu() - before <= 2, "{} ticks in two idle seconds", cpu() - before);
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.child.id())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 24 << 10, "{kib} KiB");
}
