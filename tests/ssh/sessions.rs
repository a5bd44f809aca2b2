//! Programs in the guest: how they begin, what they say, how they end.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::harness::{Said, World};

#[test]
fn a_command_with_its_output_and_exit_status() {
    let world = World::new();
    let said = world.exec("echo out; echo err >&2; exit 7");
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(7), "out\n", "err\n"), "{said:?}");
    assert_eq!(world.exec("true").code, Some(0));
    assert_eq!(world.exec("echo \"$SSH_CONNECTION\"; id -un; echo 'a b'  \"c\"").out.lines().nth(2), Some("a b c"));
}

#[test]
fn input_its_end_and_what_comes_behind_it() {
    let world = World::new();
    let mut child = world.ssh(&[]).arg("cat; echo done; exit 3").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(3), "hello\ndone\n"), "{said:?}");
    // The other half: the program closes its output first and still reads.
    let command = "exec 1>&-; cat > input; exit 5";
    let mut child = world.ssh(&[]).arg(command).stdin(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = String::new();
    child.stdin.as_mut().unwrap().write_all(b"first ").unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| output.read_to_string(&mut text).unwrap());
        child.stdin.take().unwrap().write_all(b"second").unwrap();
        reader.join().unwrap();
    });
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(std::fs::read_to_string(world.home("input")).unwrap(), "first second");
}

#[test]
fn a_shell_without_a_command() {
    let world = World::new();
    let mut child = world.ssh(&["-T"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo $((6*7))\nexit 4\n").unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(4), "42\n"), "{said:?}");
}

#[test]
fn environment() {
    let world = World::new();
    let mut ssh = world.ssh(&["-o", "SendEnv=GREETING LANG_OF_TEST"]);
    let said = Said::from(ssh.env("GREETING", "hello w\u{f6}rld").arg("printf %s \"$GREETING\"").output().unwrap());
    assert_eq!(said.out, "hello w\u{f6}rld", "{said:?}");
}

#[test]
fn a_terminal_with_its_size_and_its_changes() {
    let world = World::new();
    // The client gets a terminal of its own; resizing that one is what a user's window does.
    let ssh = world.ssh(&["-tt"]);
    let mut words: Vec<String> = vec!["stty rows 33 cols 111; exec ssh".to_owned()];
    words.extend(ssh.get_args().map(|word| format!("'{}'", word.to_string_lossy())));
    words.push("'tty >/dev/null && stty size; echo ready; read x; stty size; echo \"$TERM\"'".to_owned());
    let mut child = std::process::Command::new("python3")
        .args(["-c", TERMINAL, &words.join(" ")])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert!(lines.contains(&"33 111"), "{text}");
    assert!(lines.contains(&"44 122"), "{text}");
    assert!(lines.contains(&"xterm-256color"), "{text}");
}

/// Runs a command on a terminal; resizes it when it says `ready`, then presses return.
const TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, master = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
seen, resized = b"", False
while True:
    try:
        data = os.read(master, 4096)
    except OSError:
        break
    if not data:
        break
    seen += data
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    if not resized and b"ready" in seen:
        resized = True
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
        os.write(master, b"\n")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn a_program_that_a_signal_ends() {
    let world = World::new();
    let said = world.exec("kill -TERM $$; sleep 60");
    // ssh(1) has no exit status for it; that it says so needs more words than it usually has.
    assert_eq!(said.code, Some(255), "{said:?}");
    let verbose = Said::from(world.ssh(&["-vv"]).args(["-o", "LogLevel=DEBUG2", "kill -KILL $$"]).output().unwrap());
    assert!(verbose.err.contains("exit-signal"), "{}", verbose.err);
}

#[test]
fn interrupting_from_a_terminal() {
    let world = World::new();
    let mut child = world
        .ssh(&["-tt"])
        .arg("trap 'exit 42' INT; echo ready; sleep 50; echo not reached")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0; 64];
    let mut seen = String::new();
    while !seen.contains("ready") {
        let length = output.read(&mut byte).unwrap();
        assert!(length > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&byte[..length]));
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    output.read_to_string(&mut seen).unwrap();
    assert!(!seen.contains("not reached"), "{seen}");
    assert_eq!(child.wait().unwrap().code(), Some(42), "{seen}");
}

#[test]
fn many_connections_one_after_the_other_and_at_once() {
    let world = World::new();
    for n in 0..5 {
        assert_eq!(world.exec(&format!("echo {n}")).out, format!("{n}\n"));
    }
    let children: Vec<_> =
        (0..12).map(|n| (n, world.ssh(&[]).arg(format!("echo {n}; exit {n}")).spawn().unwrap())).collect();
    for (n, child) in children {
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.out), (Some(n), format!("{n}\n")));
    }
    assert_eq!(world.guest_logins(), 17, "one for each: {}", world.sshd_log());
}
