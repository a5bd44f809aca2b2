//! A tiny shell: built-in commands only, some of which wait for time or the network.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::fs::resolve;
use super::machine::{Dial, Machine, Network};
use super::words::{Line, Link, lines, words};
use super::{GuestEvent, commands, identity, writer};

/// How long `connect` and `ping` wait by default.
const NET_PATIENCE: Duration = Duration::from_secs(2);
/// Longer than any deadline of a job.
const FOREVER: Duration = Duration::from_secs(86_400);

/// A running script.
pub struct Job {
    lines: VecDeque<Line>,
    env: BTreeMap<String, String>,
    cwd: String,
    output: String,
    status: i32,
    waiting: Option<Wait>,
    deadline: Instant,
}

/// What a command waits for, and its redirection.
struct Wait {
    what: What,
    until: Instant,
    redirect: Option<(String, bool)>,
}

enum What {
    Time,
    /// The hook, which was told to begin later.
    Identity(Vec<String>),
    Dial(usize),
    Pong(usize, Ipv4Addr),
}

/// State of a job after a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Look again at this time, or when the network did something.
    Waiting(Instant),
    Done {
        code: i32,
        output: String,
    },
    TimedOut,
}

/// What a command comes to at once.
enum Effect {
    Done(i32, String),
    Wait(What, Instant),
    Script(String),
    Exit(i32),
}

impl Job {
    /// A job for a script in a directory with variables on top of the machine's.
    pub fn new(
        script: &str,
        cwd: Option<String>,
        envs: BTreeMap<String, String>,
        timeout: Duration,
        machine: &Machine,
    ) -> Self {
        let mut env = machine.state.env.clone();
        env.extend(envs);
        let home = env.get("HOME").cloned();
        Self {
            lines: lines(script).into(),
            cwd: cwd.or(home).unwrap_or_else(|| "/".to_owned()),
            env,
            output: String::new(),
            status: 0,
            waiting: None,
            deadline: Instant::now() + timeout,
        }
    }

    /// Runs until the script ends or waits.
    pub fn step(&mut self, now: Instant, machine: &mut Machine, net: &mut dyn Network) -> Progress {
        loop {
            if now >= self.deadline {
                return Progress::TimedOut;
            }
            if let Some(until) = self.still_waiting(now, machine, net) {
                return Progress::Waiting(until.min(self.deadline));
            }
            let Some(line) = self.lines.pop_front() else {
                let output = std::mem::take(&mut self.output);
                return Progress::Done { code: self.status, output };
            };
            let runs = match line.link {
                Link::Always => true,
                Link::IfOk => self.status == 0,
                Link::IfFailed => self.status != 0,
            };
            if runs {
                self.start(&line.text, now, machine, net);
            }
        }
    }

    /// Ends what the current command waits for; returns when to look again if it still waits.
    fn still_waiting(&mut self, now: Instant, machine: &mut Machine, net: &mut dyn Network) -> Option<Instant> {
        let wait = self.waiting.as_ref()?;
        let late = now >= wait.until;
        let outcome = match &wait.what {
            What::Time => late.then(|| (0, String::new())),
            What::Identity(args) => late.then(|| identity::run(args, machine)),
            What::Dial(id) => match net.dial_state(*id) {
                Dial::Connected => Some((0, "connected\n".to_owned())),
                Dial::Refused => Some((1, "refused\n".to_owned())),
                Dial::Pending => late.then(|| (124, "timeout\n".to_owned())),
            },
            What::Pong(id, host) => match net.pong(*id) {
                true => Some((0, format!("reply from {host}\n"))),
                false => late.then(|| (1, "timeout\n".to_owned())),
            },
        };
        let Some((code, text)) = outcome else {
            return Some(wait.until);
        };
        if let Some(wait) = self.waiting.take() {
            if let What::Dial(id) | What::Pong(id, _) = wait.what {
                net.hang_up(id);
            }
            self.finish(code, &text, wait.redirect, machine);
        }
        None
    }

    fn start(&mut self, text: &str, now: Instant, machine: &mut Machine, net: &mut dyn Network) {
        let mut words = words(text, &self.env, self.status);
        while let Some((name, value)) = words.args.first().and_then(|word| assignment(word)) {
            self.env.insert(name, value);
            words.args.remove(0);
        }
        let redirect = words.redirect.take();
        let Some((name, args)) = words.args.split_first() else {
            return self.finish(0, "", redirect, machine);
        };
        match self.run(name, args, now, machine, net) {
            Effect::Done(code, output) => self.finish(code, &output, redirect, machine),
            Effect::Wait(what, until) => {
                self.waiting = Some(Wait { what, until, redirect });
            }
            Effect::Script(script) => {
                for line in lines(&script).into_iter().rev() {
                    self.lines.push_front(line);
                }
            }
            Effect::Exit(code) => {
                self.status = code;
                self.lines.clear();
            }
        }
    }

    fn finish(&mut self, code: i32, output: &str, redirect: Option<(String, bool)>, machine: &mut Machine) {
        self.status = code;
        let Some((path, append)) = redirect else {
            self.output.push_str(output);
            return;
        };
        if path == "/dev/null" {
            return;
        }
        let path = resolve(&self.cwd, &path);
        if let Err(error) = machine.state.files.write(&path, output.as_bytes(), append) {
            self.status = 1;
            let _ = writeln!(self.output, "sh: {path}: {error}");
        }
    }

    fn run(
        &mut self,
        name: &str,
        args: &[String],
        now: Instant,
        machine: &mut Machine,
        net: &mut dyn Network,
    ) -> Effect {
        let first = args.first().map(String::as_str);
        match name {
            "true" | ":" | "export" => {
                let pairs = args.iter().filter_map(|word| assignment(word));
                self.env.extend(pairs);
                ok("")
            }
            "false" => Effect::Done(1, String::new()),
            "exit" => Effect::Exit(first.and_then(|code| code.parse().ok()).unwrap_or(self.status)),
            "sh" | "bash" | "/bin/sh" | "/bin/bash" => match args.last() {
                Some(script) if args.len() > 1 => Effect::Script(script.clone()),
                _ => Effect::Done(2, format!("{name}: only -c is simulated\n")),
            },
            "cd" => {
                let home = self.env.get("HOME").cloned().unwrap_or_default();
                let path = resolve(&self.cwd, first.unwrap_or(&home));
                match machine.state.files.list(&path) {
                    Ok(_) => {
                        self.cwd = path;
                        ok("")
                    }
                    Err(error) => Effect::Done(1, format!("sh: cd: {path}: {error}\n")),
                }
            }
            "pwd" => ok(&format!("{}\n", self.cwd)),
            "env" => {
                let lines = self.env.iter().map(|(name, value)| format!("{name}={value}\n"));
                ok(&lines.collect::<String>())
            }
            "sleep" => {
                let seconds = first.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
                let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                Effect::Wait(What::Time, now + time)
            }
            "connect" => dial(args, now, net),
            "ping" => ping(args, now, net),
            identity::NAME | identity::PATH => match identity::begin(&machine.context.faults) {
                identity::Begin::Run => done(identity::run(args, machine)),
                identity::Begin::After(time) => Effect::Wait(What::Identity(args.to_vec()), now + time),
                identity::Begin::Over(code, output) => Effect::Done(code, output),
                identity::Begin::Never => Effect::Wait(What::Time, now + FOREVER),
            },
            "writer" => done(writer::command(args, now, machine)),
            _ => self.builtin(name, args, machine),
        }
    }

    fn builtin(&self, name: &str, args: &[String], machine: &mut Machine) -> Effect {
        let first = args.first().map_or("", String::as_str);
        match name {
            "echo" => match args.split_first() {
                Some((flag, rest)) if flag == "-n" => ok(&rest.join(" ")),
                _ => ok(&format!("{}\n", args.join(" "))),
            },
            "printf" => ok(&commands::printf(args)),
            "whoami" => ok("daytona\n"),
            "hostname" => ok(&format!("{}\n", machine.state.hostname)),
            "nproc" => ok(&format!("{}\n", machine.vcpus())),
            "random" => ok(&format!("{}\n", machine.state.rng.hex())),
            "date" => {
                let ms = identity::time_ms(machine);
                ok(&format!("{}.{:03}\n", ms / 1000, ms % 1000))
            }
            "uname" if args.is_empty() => ok("Linux\n"),
            "uname" => ok(&format!("Linux {} 0.0.0-ch-sim x86_64\n", machine.state.hostname)),
            "uptime" => ok(&format!("{}\n", machine.clock.running().as_secs_f64())),
            "counter" => ok(&format!("{}\n", machine.clock.ticks())),
            "boot-id" => ok(&format!("{}\n", machine.state.boot_id)),
            "cat" | "ls" | "mkdir" | "rm" | "touch" | "test" => {
                super::files::command(name, args, &self.cwd, &mut machine.state.files)
                    .map_or_else(|text| Effect::Done(1, text), |text| ok(&text))
            }
            "write-block" | "read-block" | "sync" => match commands::block(name, args, machine) {
                Ok(output) => ok(&output),
                Err(error) => Effect::Done(1, format!("{name}: {error}\n")),
            },
            "touch-ram" => {
                machine.state.touched_mib = first.parse().unwrap_or(0);
                machine.state.touch = true;
                ok("")
            }
            "poweroff" => signal(machine, GuestEvent::PowerOff),
            "reboot" => signal(machine, GuestEvent::Reset),
            "crash" => signal(machine, GuestEvent::VcpuError),
            "panic" => signal(machine, GuestEvent::Panic),
            _ => Effect::Done(127, format!("sh: {name}: command not found\n")),
        }
    }
}

fn ok(output: &str) -> Effect {
    Effect::Done(0, output.to_owned())
}

fn done((code, output): (i32, String)) -> Effect {
    Effect::Done(code, output)
}

fn signal(machine: &mut Machine, event: GuestEvent) -> Effect {
    machine.signal_soon(event);
    ok("")
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    valid.then(|| (name.to_owned(), value.to_owned()))
}

/// `HOST PORT [SECONDS]` or `HOST [SECONDS]`: the address and how long to wait.
fn target(args: &[String], with_port: bool) -> Option<(Ipv4Addr, u16, Duration)> {
    let host = args.first()?.parse().ok()?;
    let port = if with_port { args.get(1)?.parse().ok()? } else { 0 };
    let patience = args.get(if with_port { 2 } else { 1 });
    let patience = patience.and_then(|text| text.parse().ok());
    let patience = patience.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Some((host, port, patience.unwrap_or(NET_PATIENCE)))
}

fn dial(args: &[String], now: Instant, net: &mut dyn Network) -> Effect {
    let Some((host, port, patience)) = target(args, true) else {
        return Effect::Done(2, "usage: connect IPV4 PORT [SECONDS]\n".to_owned());
    };
    match net.dial(host, port) {
        Some(id) => Effect::Wait(What::Dial(id), now + patience),
        None => Effect::Done(1, "unreachable\n".to_owned()),
    }
}

fn ping(args: &[String], now: Instant, net: &mut dyn Network) -> Effect {
    let Some((host, _, patience)) = target(args, false) else {
        return Effect::Done(2, "usage: ping IPV4 [SECONDS]\n".to_owned());
    };
    match net.ping(host) {
        Some(id) => Effect::Wait(What::Pong(id, host), now + patience),
        None => Effect::Done(1, "unreachable\n".to_owned()),
    }
}
