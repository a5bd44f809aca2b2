//! A user: has some sandboxes, asks for one thing after the other, and looks what has come of it.

use std::time::Duration;

use daytona_sim::{CreateSpec, Job, JobStatus, Resize, ResourceType, SubmitError, job_type};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::Run;
use super::harm::{Fault, Harm, murder, pid};
use super::load::{Chance, guest, request};
use super::sandbox::{Rests, Sandbox, settled};

/// A job may be begun by one runner and ended by the next but three, while the API is away now and then.
const PATIENCE: Duration = Duration::from_secs(120);
const MOST: usize = 3;

pub struct User<'a> {
    run: &'a Run,
    chance: Chance,
    name: String,
    made: u64,
}

/// How a request ended.
enum Ended {
    Well,
    Badly(String),
    /// The runner died, or does not take it now: nothing is promised.
    Unknown,
}

/// Lives until the end; what it has then.
pub fn lives(run: &Run, who: u64, chance: Chance) -> Vec<Sandbox> {
    let mut user = User { run, chance, name: format!("u{who}"), made: 0 };
    let mut owned = Vec::new();
    while !run.is_over() {
        if owned.is_empty() || (owned.len() < MOST && user.chance.percent(10)) {
            owned.extend(user.create());
            continue;
        }
        let chosen = user.chance.below(owned.len() as u64) as usize;
        let mut sandbox = owned.swap_remove(chosen);
        sandbox.look(run);
        let (alive, copy) = user.acts(&mut sandbox, owned.len() + 1 < MOST);
        owned.extend(copy);
        if alive {
            owned.push(sandbox);
        }
    }
    owned
}

impl User<'_> {
    fn new_id(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.name, self.made)
    }

    /// Orders a job, maybe with something happening to the sandbox meanwhile, and waits for its end.
    #[track_caller]
    fn job(&mut self, sandbox: &mut Sandbox, job: Result<String, SubmitError>) -> Ended {
        let id = job.unwrap_or_else(|error| panic!("the API does not take a job: {error}"));
        if self.chance.percent(10) && murder(self.run, &sandbox.id, self.chance.millis(0, 400)) {
            sandbox.harmed(Harm::Lost);
        }
        let job = self.run.host.api.wait_job(&id, PATIENCE);
        let job: Job = job.unwrap_or_else(|| panic!("job {id} of {} has not ended", sandbox.id));
        self.run.count(format!("{} {}", job.job_type, job.status.as_str()));
        match job.status {
            JobStatus::Completed => Ended::Well,
            _ => Ended::Badly(format!("{} of {}: {:?}", job.job_type, job.resource_id, job.error_message)),
        }
    }

    /// The same over HTTP.
    fn http(&mut self, sandbox: &Sandbox, path: &str, body: &str) -> Ended {
        let path = format!("/sandboxes/{}{path}", sandbox.id);
        self.run.note(&format!("POST {path} {body}"));
        match request("POST", &path, body) {
            Err(_) => Ended::Unknown,
            Ok(answer) => {
                self.run.count(format!("HTTP {}", answer.status));
                match answer.status {
                    200..=299 => Ended::Well,
                    503 => Ended::Unknown,
                    _ => Ended::Badly(format!("POST {path}: {answer:?}")),
                }
            }
        }
    }

    /// What was asked has come out, unless something has happened that excuses it.
    #[track_caller]
    fn check(&self, sandbox: &mut Sandbox, ended: Ended, wanted: Rests) {
        match ended {
            Ended::Well => sandbox.look_at(self.run, wanted),
            Ended::Unknown => sandbox.look(self.run),
            Ended::Badly(why) => {
                assert!(sandbox.may_fail(self.run), "nothing has happened, and yet: {why}");
                sandbox.look(self.run);
            }
        }
    }

    fn create(&mut self) -> Option<Sandbox> {
        let id = self.new_id();
        let mut sandbox = Sandbox::new(self.run, &id);
        let fault = self.chance.percent(15).then(|| Fault::new(self.run, &id, &mut self.chance));
        sandbox.harmed(fault.as_ref().map_or(Harm::Slow, |fault| fault.harm));
        let job = self.run.host.api.create_sandbox(&self.run.host.spec(&id));
        let ended = self.job(&mut sandbox, job);
        drop(fault);
        self.new_one(sandbox, ended)
    }

    /// A sandbox that is there now; one that could not be made has left nothing.
    #[track_caller]
    fn new_one(&mut self, mut sandbox: Sandbox, ended: Ended) -> Option<Sandbox> {
        match ended {
            Ended::Well => sandbox.look_at(self.run, Rests::Started),
            Ended::Unknown => {
                if !sandbox.look_for(self.run, None) {
                    return None;
                }
            }
            Ended::Badly(why) => {
                assert!(sandbox.may_fail(self.run), "nothing has happened, and yet: {why}");
                let left = settled(&sandbox.id);
                assert!(left.is_none(), "{why}, and yet there is {left:?}");
                return None;
            }
        }
        if sandbox.rests == Rests::Started {
            sandbox.mark(self.run);
        }
        Some(sandbox)
    }

    /// Does something with a sandbox; whether it is still there, and a copy of it.
    fn acts(&mut self, sandbox: &mut Sandbox, room: bool) -> (bool, Option<Sandbox>) {
        let (run, id) = (self.run, sandbox.id.clone());
        let api = &run.host.api;
        let fault = self.chance.percent(20).then(|| Fault::new(run, &id, &mut self.chance));
        sandbox.harmed(fault.as_ref().map_or(Harm::Slow, |fault| fault.harm));
        let by_http = self.chance.percent(30);
        match (sandbox.rests, self.chance.below(20)) {
            (_, 0) => {
                // One that cannot be ended is asked again: the fault is gone then.
                let mut ended = self.job(sandbox, api.destroy_sandbox(&id));
                drop(fault);
                while let Ended::Badly(why) = ended {
                    assert!(sandbox.may_fail(run), "nothing has happened, and yet: {why}");
                    ended = self.job(sandbox, api.destroy_sandbox(&id));
                }
                assert_eq!(settled(&id), None, "it is destroyed");
                return (false, None);
            }
            (Rests::Error, _) => {
                drop(fault);
                let ended = self.job(sandbox, api.stop_sandbox(&id, None));
                self.check(sandbox, ended, Rests::Stopped);
            }
            (Rests::Paused, _) if by_http => {
                let ended = self.http(sandbox, "/resume", "");
                self.check(sandbox, ended, Rests::Started);
            }
            (Rests::Paused, _) => {
                let ended = self.job(sandbox, api.start_sandbox(&id));
                self.check(sandbox, ended, Rests::Started);
            }
            (Rests::Stopped, 1..=2) => {
                // Other memory than the stopped one knows.
                sandbox.harmed(Harm::Lost);
                let to = Resize { cpu: Some(2), memory: Some(2), disk: None };
                let ended = self.job(sandbox, api.resize_sandbox(&id, to));
                self.check(sandbox, ended, Rests::Stopped);
            }
            (Rests::Stopped | Rests::Started, 3..=6) if room => return (true, self.copy(sandbox, fault, by_http)),
            (Rests::Stopped, _) if by_http => {
                let ended = self.http(sandbox, "/start", "");
                self.check(sandbox, ended, Rests::Started);
            }
            (Rests::Stopped, _) => {
                let ended = self.job(sandbox, api.start_sandbox(&id));
                self.check(sandbox, ended, Rests::Started);
            }
            (Rests::Started, 7..=8) => {
                let ended = match by_http {
                    true => self.http(sandbox, "/pause", ""),
                    false => self.job(sandbox, api.pause_sandbox(&id)),
                };
                self.check(sandbox, ended, Rests::Paused);
            }
            (Rests::Started, 9) => {
                let ended = self.job(sandbox, api.resize_sandbox(&id, Resize { cpu: Some(2), ..Resize::default() }));
                self.check(sandbox, ended, Rests::Started);
            }
            (Rests::Started, 10) => {
                sandbox.harmed(Harm::Lost);
                let ended = self.job(sandbox, api.stop_sandbox(&id, Some(true)));
                self.check(sandbox, ended, Rests::Stopped);
            }
            (Rests::Started, 11) => self.ends_by_itself(sandbox),
            (Rests::Started, 12 | 13) => self.snapshot(sandbox),
            (Rests::Started, 14) => {
                let kind = job_type::BUILD_SNAPSHOT;
                let job = api.submit(kind, ResourceType::Sandbox, &id, serde_json::json!({ "snapshot": "any" }));
                let ended = self.job(sandbox, job);
                assert!(matches!(ended, Ended::Badly(_)), "{kind} is not supported");
                sandbox.look(run);
            }
            (Rests::Started, 15 | 16) => sandbox.mark(run),
            (Rests::Started, _) if by_http => {
                let ended = self.http(sandbox, "/stop", "");
                self.check(sandbox, ended, Rests::Stopped);
            }
            (Rests::Started, _) => {
                let ended = self.job(sandbox, api.stop_sandbox(&id, None));
                self.check(sandbox, ended, Rests::Stopped);
            }
        }
        (true, None)
    }

    fn copy(&mut self, sandbox: &mut Sandbox, fault: Option<Fault<'_>>, by_http: bool) -> Option<Sandbox> {
        let (run, id, new) = (self.run, sandbox.id.clone(), self.new_id());
        let mut copy = sandbox.copy(&new);
        // What is promised about the memory of a copy of one that is stopped depends on how it was stopped.
        copy.harmed(if sandbox.rests == Rests::Stopped { Harm::Lost } else { sandbox.harm });
        let others = self.chance.percent(15).then(|| Fault::new(run, &new, &mut self.chance));
        copy.harmed(others.as_ref().map_or(Harm::Slow, |fault| fault.harm));
        let api = &run.host.api;
        let rested = sandbox.rests;
        let ended = match by_http {
            true => self.http(sandbox, "/fork", &serde_json::json!({ "newSandboxId": new }).to_string()),
            false if self.chance.percent(30) => self.job(sandbox, api.clone_sandbox(&id, &new)),
            false => self.job(sandbox, api.fork_sandbox(&id, &new)),
        };
        copy.harmed(sandbox.harm);
        drop((fault, others));
        sandbox.look_at(run, rested);
        self.new_one(copy, ended)
    }

    /// A snapshot, a sandbox from it, and both away again.
    fn snapshot(&mut self, sandbox: &mut Sandbox) {
        let (run, id) = (self.run, sandbox.id.clone());
        let api = &run.host.api;
        let (name, memory) = (format!("snap-{}", self.new_id()), self.chance.percent(50));
        let ended = self.job(sandbox, api.snapshot_sandbox(&id, &name, memory));
        let was = sandbox.clone();
        let is_made = matches!(ended, Ended::Well);
        self.check(sandbox, ended, Rests::Started);
        if !is_made {
            return;
        }
        let snapshot = format!("{}/{name}", CreateSpec::new(&id).organization_id);
        let mut second = was.copy(&self.new_id());
        second.harmed(Harm::Lost);
        let spec = CreateSpec { snapshot: snapshot.clone(), ..run.host.spec(&second.id) };
        let ended = self.job(&mut second, api.create_sandbox(&spec));
        if let Some(second) = &mut self.new_one(second, ended) {
            let ended = self.job(second, api.destroy_sandbox(&second.id.clone()));
            assert!(!matches!(ended, Ended::Badly(_)), "{} cannot be destroyed", second.id);
        }
        let ended = self.job(sandbox, api.remove_snapshot(&snapshot));
        assert!(!matches!(ended, Ended::Badly(_)), "{snapshot} cannot be removed");
        sandbox.look(run);
    }

    /// The guest powers itself off or panics, or its VMM is killed while nothing is asked of it.
    fn ends_by_itself(&mut self, sandbox: &mut Sandbox) {
        let Some(before) = pid(self.run, &sandbox.id) else { return };
        let how = *self.chance.one(&["poweroff", "panic", "crash", "kill"]);
        self.run.note(&format!("{}: {how}", sandbox.id));
        self.run.count(format!("guest: {how}"));
        sandbox.harmed(Harm::Lost);
        if how == "kill" {
            murder(self.run, &sandbox.id, Duration::ZERO);
        } else {
            // The answer may be cut off by what it does.
            let _ = guest(&sandbox.id, how);
        }
        // It may not have been asked: the runner was away.
        let is_there = || kill(Pid::from_raw(before), None).is_ok();
        let began = std::time::Instant::now();
        while is_there() && began.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
        }
        sandbox.look(self.run);
    }
}
