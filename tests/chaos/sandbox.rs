//! What is known of a sandbox, and the look that compares it with what is.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Run;
use super::harm::{Harm, view};
use super::load::{guest, request};

/// For what takes a second when all is well: the runner or the API may be away meanwhile.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a sandbox rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rests {
    Started,
    Stopped,
    Paused,
    Error,
}

/// What was seen of a guest's memory.
#[derive(Debug, Clone)]
pub struct Memory {
    boot: String,
    counter: u64,
    mark: String,
}

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub rests: Rests,
    /// None if nothing is promised about it.
    pub memory: Option<Memory>,
    /// Texts of which its block has one: more than one after a write that was not acknowledged.
    pub disk: Vec<String>,
    /// The worst that has happened to it since the last look.
    pub harm: Harm,
    /// State of the volume at the last look.
    full: u64,
    marks: u64,
}

impl Sandbox {
    pub fn new(run: &Run, id: &str) -> Self {
        let (id, rests) = (id.to_owned(), Rests::Started);
        Self { id, rests, memory: None, disk: vec![String::new()], harm: Harm::Slow, full: run.full(), marks: 0 }
    }

    /// A copy has what its source had.
    pub fn copy(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    pub fn harmed(&mut self, by: Harm) {
        self.harm = self.harm.max(by);
    }

    /// The volume was full at some time since the last look.
    pub fn was_full(&self, run: &Run) -> bool {
        self.full % 2 == 1 || self.full != run.full()
    }

    /// A request for it may have failed.
    pub fn may_fail(&self, run: &Run) -> bool {
        self.harm > Harm::Slow || self.was_full(run)
    }

    fn may_forget(&self, run: &Run) -> bool {
        self.harm == Harm::Lost || self.was_full(run)
    }

    /// Waits until it rests, and compares it with what is known of it. It must be there.
    #[track_caller]
    pub fn look(&mut self, run: &Run) {
        let there = self.look_for(run, None);
        assert!(there, "{} is not there any more", self.id);
    }

    /// The same, where it must rest like this unless something has happened to it.
    #[track_caller]
    pub fn look_at(&mut self, run: &Run, wanted: Rests) {
        let there = self.look_for(run, Some(wanted));
        assert!(there, "{} is not there any more, and was {wanted:?}", self.id);
    }

    /// False if there is no such sandbox.
    #[track_caller]
    pub fn look_for(&mut self, run: &Run, wanted: Option<Rests>) -> bool {
        let began = Instant::now();
        loop {
            let Some(shown) = settled(&self.id) else { return false };
            self.rests = rests(&shown);
            let may_fail = self.may_fail(run);
            assert!(may_fail || self.rests != Rests::Error, "{shown}");
            assert!(may_fail || wanted.is_none_or(|wanted| wanted == self.rests), "not {wanted:?}: {shown}");
            if self.rests != Rests::Started || self.compare(run, &shown) {
                break;
            }
            // Nobody answers: the runner is away, or the guest has just ended.
            assert!(began.elapsed() < PATIENCE, "its guest does not answer: {shown}");
        }
        // What has happened to a guest that does not run is seen when it runs again.
        if self.rests == Rests::Started {
            (self.harm, self.full) = (Harm::Slow, run.full());
        }
        true
    }

    /// Compares memory and disk with what is known; false if the guest does not answer.
    fn compare(&mut self, run: &Run, shown: &Value) -> bool {
        let id = self.id.clone();
        let ask = "boot-id; counter; cat /tmp/mark || echo none; read-block 7";
        let Some((told, _)) = guest(&id, ask) else { return false };
        let mut lines = told.lines();
        let mut line = || lines.next().unwrap_or_default().to_owned();
        let (boot, counter, mut mark) = (line(), line(), line());
        if mark.starts_with("cat:") {
            mark = line();
        }
        let block = line();
        let counter: u64 = counter.parse().unwrap_or_else(|_| panic!("{id}: {told:?}"));
        assert!(self.disk.contains(&block), "{id}: its disk has {block:?} and not one of {:?}; {shown}", self.disk);
        self.disk = vec![block];
        if let Some(known) = &self.memory {
            let same = known.boot == boot && known.counter <= counter && known.mark == mark;
            // Also from memory: after a restart it may have been stopped. The same boot never goes back.
            let anew = known.boot != boot;
            assert!(
                same || (anew && self.may_forget(run)),
                "{id} had {known:?} and has boot {boot}, counter {counter}, mark {mark:?}, harm {:?}: {shown}",
                self.harm
            );
            run.count(if same { "look: memory kept" } else { "look: memory lost with a cause" });
        }
        self.memory = Some(Memory { boot, counter, mark });
        true
    }

    /// Leaves new marks in its memory and on its disk.
    pub fn mark(&mut self, run: &Run) {
        self.marks += 1;
        let text = format!("{}-{}", self.id, self.marks);
        let Some(known) = &mut self.memory else { return };
        self.disk.push(text.clone());
        let memory = guest(&self.id, &format!("echo {text} > /tmp/mark"));
        match memory {
            Some((_, 0)) => known.mark.clone_from(&text),
            // It may have been carried out or not.
            _ => {
                self.memory = None;
                return;
            }
        }
        if matches!(guest(&self.id, &format!("write-block 7 {text} && sync")), Some((_, 0))) {
            self.disk = vec![text];
            run.count("marked");
        }
    }
}

fn rests(shown: &Value) -> Rests {
    match shown["state"].as_str() {
        Some("started") => Rests::Started,
        Some("stopped") => Rests::Stopped,
        Some("paused") => Rests::Paused,
        Some("error") => Rests::Error,
        _ => panic!("no state to rest in: {shown}"),
    }
}

/// The sandbox when the runner has recovered and nothing is under way with it; none if it is not there.
#[track_caller]
pub fn settled(id: &str) -> Option<Value> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < PATIENCE {
        match at_rest(id) {
            Ok(shown) => return shown,
            Err(why) => last = why,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{id} does not come to rest: {last}");
}

fn at_rest(id: &str) -> Result<Option<Value>, String> {
    let ask = |path: &str| request("GET", path, "").map_err(|error| error.to_string());
    let root = ask("/")?;
    if !root.body.contains("\"ok\"") {
        return Err(root.body);
    }
    let drain = ask("/drain")?;
    let under_way = drain.json();
    let is_busy = under_way["unsettled"].as_array().is_some_and(|ids| ids.iter().any(|busy| busy == id))
        || under_way["requests"].as_array().is_some_and(|requests| requests.iter().any(|one| one["object"] == id));
    if is_busy {
        return Err(drain.body);
    }
    match view(id)? {
        // One whose VMM is being replaced runs and has a checkpoint.
        Some(shown) if shown["state"] == "started" && shown["checkpoint"] == true => Err(shown.to_string()),
        Some(shown) if ["started", "stopped", "paused", "error"].iter().any(|state| shown["state"] == *state) => {
            Ok(Some(shown))
        }
        Some(shown) => Err(shown.to_string()),
        None => Ok(None),
    }
}
