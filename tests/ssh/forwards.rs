//! Forwarded ports and sockets, many channels of one connection, and what is refused.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use crate::common::eventually;
use crate::harness::{Said, World, host};

/// A listener of the guest that answers with what it was sent, in capitals, when that has ended.
fn shout(world: &World, address: &str) -> Child {
    let program = r#"
import os, socket, sys, threading
kind = sys.argv[1]
if kind == "unix":
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[2])
    os.chmod(sys.argv[2], 0o777)
else:
    server = socket.create_server(("127.0.0.1", int(sys.argv[2])))
server.listen()
print("ready", flush=True)
def serve(peer):
    if kind == "greet":
        peer.sendall(b"welcome")
        peer.close()
        return
    data = b""
    while True:
        piece = peer.recv(65536)
        if not piece:
            break
        data += piece
    peer.sendall(data.upper())
    peer.close()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
"#;
    let (kind, address) = address.split_once(':').unwrap();
    let mut child = std::process::Command::new("nsenter")
        .args(["--net=/run/netns/ns-box", "python3", "-c", program, kind, address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert!(world.host.path("home").exists());
    child
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn exchange<S: Read + Write>(mut stream: S, half_close: impl FnOnce(&S), text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    half_close(&stream);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn ports_and_sockets_of_the_guest() {
    let world = World::new();
    let socket = world.home("socket").display().to_string();
    let _tcp = Killed(shout(&world, "tcp:9000"));
    let _greet = Killed(shout(&world, "greet:9002"));
    let _unix = Killed(shout(&world, &format!("unix:{socket}")));
    let (port, closed, greeting, local) = (free_port(), free_port(), free_port(), world.host.path("local"));
    let forwards = [
        format!("{port}:127.0.0.1:9000"),
        format!("{closed}:127.0.0.1:9001"),
        format!("{greeting}:127.0.0.1:9002"),
        format!("{}:{socket}", local.display()),
    ];
    let mut options = vec!["-N", "-o", "ExitOnForwardFailure=yes"];
    options.extend(forwards.iter().flat_map(|forward| ["-L", forward]));
    let _ssh = Killed(world.ssh(&options).spawn().unwrap());
    let connect = || eventually("the port is forwarded", || TcpStream::connect(("127.0.0.1", port)).ok());
    let shut = |stream: &TcpStream| stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(exchange(connect(), shut, b"half-closed"), b"HALF-CLOSED");
    let big = vec![b'x'; 5_000_000];
    assert_eq!(exchange(connect(), shut, &big), vec![b'X'; 5_000_000]);
    let many: Vec<_> = (0..20)
        .map(|n| {
            let stream = connect();
            std::thread::spawn(move || {
                exchange(stream, shut, format!("text {n}").as_bytes()) == format!("TEXT {n}").as_bytes()
            })
        })
        .collect();
    assert!(many.into_iter().all(|thread| thread.join().unwrap()));
    // It has said all and closed before anybody has asked.
    for n in 0..50 {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", greeting)).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "welcome", "{n}");
    }
    // Nobody listens: the connection ends at once, and the others do not mind.
    let mut refused = TcpStream::connect(("127.0.0.1", closed)).unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap_or(0), 0);
    let stream = UnixStream::connect(&local).unwrap();
    let shut = |stream: &UnixStream| stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(exchange(stream, shut, b"by a socket"), b"BY A SOCKET");
    assert_eq!(world.guest_logins(), 1, "all channels share one connection: {}", world.sshd_log());
}

#[test]
fn what_is_refused_is_refused_clearly() {
    let world = World::new();
    let back = format!("{}:127.0.0.1:80", free_port());
    let said = Said::from(
        world.ssh(&["-R", &back, "-o", "ExitOnForwardFailure=yes"]).arg("echo not reached").output().unwrap(),
    );
    assert!(said.code == Some(255) && said.err.contains("remote port forwarding failed"), "{said:?}");
    // An agent or a display that is offered is not taken, and the session goes on without.
    let said = Said::from(world.ssh(&["-A"]).arg("echo agent=$SSH_AUTH_SOCK").output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(0), "agent=\n"), "{said:?}");
    let said = Said::from(world.ssh(&["-W", "127.0.0.1:9", "-o", "LogLevel=INFO"]).output().unwrap());
    assert!(said.code == Some(255) && said.err.contains("open failed"), "{said:?}");
}

#[test]
fn many_channels_of_one_connection_have_one_guest_connection() {
    let mut host = host();
    host.set("RUNNER_SSH_MAX_CHANNELS", "8");
    let mut world = World::on(host);
    world.start_sshd();
    let control = world.host.path("control").display().to_string();
    let master = ["-M", "-N", "-S", &control];
    let _master = Killed(world.ssh(&master).spawn().unwrap());
    eventually("the master is there", || world.host.path("control").exists().then_some(()));
    let multiplexed = |command: &str| {
        let mut ssh = world.ssh(&["-S", &control]);
        ssh.arg(command);
        ssh
    };
    assert_eq!(world.guest_logins(), 0, "none is made before a channel needs it");
    let children: Vec<_> = (0..6).map(|n| (n, multiplexed(&format!("echo {n}; exit {n}")).spawn().unwrap())).collect();
    for (n, child) in children {
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.out), (Some(n), format!("{n}\n")));
    }
    assert_eq!(world.guest_logins(), 1, "{}", world.sshd_log());

    // As many as may be, and one more.
    let mut held: Vec<_> = (0..8)
        .map(|_| {
            let mut child = multiplexed("echo up; cat").stdin(Stdio::piped()).spawn().unwrap();
            let mut word = [0; 3];
            child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
            child
        })
        .collect();
    // It would make a connection of its own otherwise.
    let alone = ["-S", &control, "-o", "ProxyCommand=false"];
    let said = Said::from(world.ssh(&alone).arg("true").output().unwrap());
    assert!(said.code == Some(255) && said.err.contains("Session open refused by peer"), "{said:?}");
    let mut first = held.remove(0);
    drop(first.stdin.take());
    assert_eq!(first.wait().unwrap().code(), Some(0));
    eventually("a place is free", || {
        let mut ssh = world.ssh(&alone);
        (Said::from(ssh.arg("echo more").output().unwrap()).out == "more\n").then_some(())
    });
    for mut child in held {
        drop(child.stdin.take());
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    assert_eq!(world.guest_logins(), 1, "{}", world.sshd_log());
    // It ends with the client's.
    let _ = Said::from(world.ssh(&["-S", &control, "-O", "exit"]).output().unwrap());
    eventually("the guest's connection ends", || {
        let log = world.sshd_log();
        (log.contains("Connection closed by") || log.contains("Connection reset by") || log.contains("disconnected by"))
            .then_some(())
    });
}
