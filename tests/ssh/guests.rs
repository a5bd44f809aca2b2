//! The guest's own SSH server, behind its real network card: what a sandbox's runs are to a client.

use std::io::Write;
use std::process::Stdio;

use crate::common::{eventually, leftovers};
use crate::harness::{Said, World};

#[test]
fn a_command_runs_in_the_guest_itself() {
    let world = World::bare();
    let said = world.exec("hostname; echo $((1)) > /tmp/mark; cat /tmp/mark; false");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.starts_with("box\n"), "{said:?}");
    assert_eq!(world.exec("exit 9").code, Some(9));
    assert_eq!(world.host.in_guest("box", "cat /tmp/mark"), said.out.lines().nth(1).unwrap());
    let mut shell = world.ssh(&["-T"]).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo one\necho two\nexit 4\n").unwrap();
    let said = Said::from(shell.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(4), "one\ntwo\n"), "{said:?}");
    // What the simulated guest does not have is refused by it, and that is passed on.
    let said = world.client("sftp", &["box@127.0.0.1"]);
    assert!(said.code != Some(0) && said.err.contains("subsystem request failed"), "{said:?}");
}

#[test]
fn a_sandbox_that_is_stopped_and_started_again() {
    let world = World::bare();
    let sleeper = world.ssh(&[]).arg("sleep 1000").spawn().unwrap();
    eventually("it is connected", || world.runner.log().contains("SSH: connected to the guest").then_some(()));
    world.host.completed(&world.host.api.stop_sandbox("box", None).unwrap());
    let said = Said::from(sleeper.wait_with_output().unwrap());
    assert_eq!(said.code, Some(255), "{said:?}");
    assert!(said.err.contains("sandbox box does not run"), "{said:?}");
    world.host.completed(&world.host.api.start_sandbox("box").unwrap());
    assert_eq!(world.exec("echo again").out, "again\n");
    let sleeper = world.ssh(&[]).arg("sleep 1000").spawn().unwrap();
    eventually("it is connected", || {
        (world.runner.log().matches("SSH: connected to the guest").count() == 3).then_some(())
    });
    world.host.completed(&world.host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&world.host);
    let said = Said::from(sleeper.wait_with_output().unwrap());
    assert!(said.code == Some(255) && said.err.contains("sandbox box"), "{said:?}");
}

/// The runner is killed and another one goes on: the sandbox is there, and so is the way into it.
#[test]
fn a_runner_that_is_replaced() {
    let mut world = World::bare();
    assert_eq!(world.exec("echo first").out, "first\n");
    world.runner.child.kill().unwrap();
    world.runner.child.wait().unwrap();
    world.runner = world.host.runner();
    let said = world.exec("echo still");
    assert_eq!(said.out, "still\n", "{said:?}\n{}", world.runner.log());
}
