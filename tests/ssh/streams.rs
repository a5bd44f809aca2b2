//! Much data, slow readers, and ends in the middle.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{eventually, leftovers};
use crate::harness::{Said, World};

const BIG: u64 = 100 << 20;
/// What the runner's memory may grow by, whatever passes.
const FLAT: u64 = 40 << 20;

#[test]
fn a_hundred_megabytes_each_way_with_flat_memory() {
    let world = World::new();
    assert_eq!(world.exec("true").code, Some(0));
    let before = world.memory();
    let began = Instant::now();
    let mut down = world.ssh(&[]).arg(format!("head -c {BIG} /dev/zero")).spawn().unwrap();
    let received = std::io::copy(down.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    assert_eq!((received, down.wait().unwrap().code()), (BIG, Some(0)));
    let down_time = began.elapsed();
    let began = Instant::now();
    let mut up = world.ssh(&[]).arg("wc -c").stdin(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut std::io::repeat(7).take(BIG), &mut up.stdin.take().unwrap()).unwrap();
    let said = Said::from(up.wait_with_output().unwrap());
    assert_eq!(said.out.trim(), BIG.to_string(), "{said:?}");
    let up_time = began.elapsed();
    let grown = world.memory().saturating_sub(before);
    println!("down {down_time:?}, up {up_time:?}, memory grew by {} KiB", grown >> 10);
    assert!(grown < FLAT, "{grown}");
}

#[test]
fn a_slow_reader_holds_up_its_sender_and_costs_no_memory() {
    let world = World::new();
    assert_eq!(world.exec("true").code, Some(0));
    let before = world.memory();
    let mut child = world.ssh(&[]).arg("head -c 300000000 /dev/zero & wait; echo $? >&2").spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut piece = vec![0; 1 << 20];
    output.read_exact(&mut piece).unwrap();
    // It stands still now: nobody reads.
    let still = eventually("everything has stopped", || {
        let busy = || ticks(world.runner.pid());
        let first = busy();
        std::thread::sleep(Duration::from_millis(300));
        (busy() - first <= 1).then_some(world.memory())
    });
    assert!(still.saturating_sub(before) < FLAT, "{still}");
    let rest = std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    assert_eq!((rest + (1 << 20), child.wait().unwrap().code()), (300_000_000, Some(0)));
}

/// CPU time that a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
    stat.utime + stat.stime
}

/// Everything waits for everything: the program writes all that it reads, and nobody takes that for a while. Once
/// somebody does, all of it must come.
#[test]
fn an_echo_that_nobody_reads_at_first() {
    let world = World::new();
    assert_eq!(world.exec("true").code, Some(0));
    let before = world.memory();
    let mut child = world.ssh(&[]).arg("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = sent.clone();
    let writer = std::thread::spawn(move || {
        let piece = vec![b'e'; 64 << 10];
        for _ in 0..BIG / piece.len() as u64 {
            input.write_all(&piece).unwrap();
            count.fetch_add(piece.len() as u64, std::sync::atomic::Ordering::SeqCst);
        }
    });
    eventually("nothing goes on any more", || {
        let before = sent.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
        (before > 0 && before == sent.load(std::sync::atomic::Ordering::SeqCst)).then_some(())
    });
    assert!(sent.load(std::sync::atomic::Ordering::SeqCst) < BIG);
    let grown = world.memory().saturating_sub(before);
    let received = std::io::copy(child.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    assert_eq!((received, child.wait().unwrap().code()), (BIG, Some(0)));
    writer.join().unwrap();
    assert!(grown < FLAT, "{grown}");
}

/// A program that does not read its input: the rest of the connection does not mind.
#[test]
fn a_stuck_channel_does_not_hold_up_another() {
    let world = World::new();
    let control = world.host.path("control").display().to_string();
    let mut master = world.ssh(&["-M", "-N", "-S", &control]).spawn().unwrap();
    eventually("the master is there", || world.host.path("control").exists().then_some(()));
    let mut stuck = world.ssh(&["-S", &control]).arg("sleep 1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = stuck.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece = vec![b'e'; 64 << 10];
        // Ends by an error when the client is killed.
        while input.write_all(&piece).is_ok() {}
    });
    let runner = world.runner.pid();
    eventually("the input stands still", || {
        let first = ticks(runner);
        std::thread::sleep(Duration::from_millis(300));
        (ticks(runner) - first <= 2).then_some(())
    });
    for n in 0..10 {
        let mut other =
            world.ssh(&["-S", &control]).arg(format!("cat; echo {n}")).stdin(Stdio::piped()).spawn().unwrap();
        other.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let said = Said::from(other.wait_with_output().unwrap());
        assert_eq!((said.code, said.out), (Some(0), format!("hello\n{n}\n")));
    }
    let down = world.ssh(&["-S", &control]).arg("head -c 20000000 /dev/zero").output().unwrap();
    assert_eq!(down.stdout.len(), 20_000_000);
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    master.kill().unwrap();
    master.wait().unwrap();
    writer.join().unwrap();
}

/// A session that says `up` and then waits.
fn waiting(world: &World) -> std::process::Child {
    let mut child = world.ssh(&[]).arg("echo up; sleep 1000").spawn().unwrap();
    let mut word = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    child
}

#[test]
fn a_sandbox_that_ends_in_the_middle() {
    let mut world = World::new();
    let sessions = [waiting(&world), waiting(&world)];
    let pid = world.host.http().get("/sandboxes/box").json()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    for child in sessions {
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(255), "{said:?}");
        assert!(said.err.contains("sandbox box"), "{said:?}");
    }
    // The guest's connections hold nothing.
    world.kill_sshd();
    world.host.completed(&world.host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&world.host);
}

#[test]
fn a_guests_server_that_ends_in_the_middle() {
    let mut world = World::new();
    let child = waiting(&world);
    world.kill_sshd();
    let said = Said::from(child.wait_with_output().unwrap());
    assert!(
        said.code == Some(255) && said.err.contains("the connection to the SSH server of sandbox box was lost"),
        "{said:?}"
    );
}

#[test]
fn a_client_that_is_killed_ends_its_program() {
    let world = World::new();
    let mut child = world.ssh(&[]).arg("echo $$ > pid; echo up; exec sleep 1000").spawn().unwrap();
    let mut word = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the guest's connection is closed", || {
        let log = world.sshd_log();
        (log.contains("Connection reset") || log.contains("Connection closed") || log.contains("disconnected"))
            .then_some(())
    });
}

#[test]
fn the_runner_ends_in_the_middle() {
    let mut world = World::new();
    let child = waiting(&world);
    let short = world.ssh(&[]).arg("echo up; sleep 2; echo finished; exit 9").spawn().unwrap();
    eventually("the second one has begun", || (world.guest_logins() == 2).then_some(()));
    let began = Instant::now();
    world.runner.signal(Signal::SIGTERM);
    let said = Said::from(short.wait_with_output().unwrap());
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(9), "up\nfinished\n"),
        "what is short enough ends by itself: {said:?}"
    );
    assert!(std::net::TcpStream::connect(("127.0.0.1", crate::harness::PORT)).is_err(), "nobody new is let in");
    let said = Said::from(child.wait_with_output().unwrap());
    assert!(said.code == Some(255), "{said:?}");
    assert!(world.runner.wait().success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
