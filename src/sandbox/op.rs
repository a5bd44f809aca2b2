//! What can be asked of a sandbox, and the fixed row of stages that each operation is.

/// How a new sandbox is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// From a base, without starting it: the job's `skipStart`.
    Idle,
    /// From a base, booted.
    Boot,
    /// From another sandbox's or a snapshot's disk, booted.
    Copy,
    /// From another sandbox's disk and memory: it wakes up as a copy of that guest.
    Revive,
    /// From a snapshot's disk and memory; booted from the disk where the memory cannot be used.
    Warm,
}

/// How a sandbox is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Its memory is kept on disk, and the next start goes on from there.
    Checkpoint,
    /// The guest is asked to shut down, and ended when it does not.
    Shutdown,
    /// Its VMM is ended at once.
    Kill,
    /// As the operator configured it (`RUNNER_STOP_MODE`).
    Usual,
}

/// What can be asked of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Make it. On an existing sandbox the same as [`Ask::Start`], as in the original (PROTOCOL.md 5,
    /// CREATE_SANDBOX).
    Create(Make),
    /// Start or resume it; already running is success.
    Start,
    /// Start it by booting, even if a checkpoint is there, which is then lost.
    Boot,
    /// Bring a source that was paused back to that, after its VMM was ended in vain for a copy. Asked by itself only.
    Recall,
    /// Stop it; already stopped is success.
    Stop(StopMode),
    /// Pause its virtual CPUs; already paused is success.
    Pause,
    /// Freeze a point in time of it for somebody else; it rests where it was.
    Capture,
    /// Change its resources.
    Resize,
    /// Remove it with its disk; not there is success.
    Destroy,
}

impl Ask {
    /// Verb for errors.
    pub fn verb(self) -> &'static str {
        match self {
            Ask::Create(_) => "create",
            Ask::Start | Ask::Boot | Ask::Recall => "start",
            Ask::Stop(_) => "stop",
            Ask::Pause => "pause",
            Ask::Capture => "capture",
            Ask::Resize => "resize",
            Ask::Destroy => "destroy",
        }
    }

    /// Ends what is being built up.
    pub fn tears_down(self) -> bool {
        matches!(self, Ask::Stop(_) | Ask::Destroy)
    }
}

/// Where a sandbox rests when nothing is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing of it exists.
    Absent,
    /// Disk and record exist, no VMM, no network.
    Stopped,
    /// The VMM runs.
    Started,
    /// The VMM is there with its memory, and its virtual CPUs do not run.
    Paused,
    /// A tear-down failed: something may be left on the host. Stop and destroy try again.
    Broken,
    /// What became of it cannot be found out: it may run. Left alone and looked at again; stop and destroy act.
    Unknown,
}

impl Rest {
    /// It has a VMM.
    pub fn lives(self) -> bool {
        matches!(self, Rest::Started | Rest::Paused)
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Being made.
    Create(Make),
    /// Being started.
    Start {
        /// From its checkpoint.
        warm: bool,
    },
    /// Being restored from its checkpoint; it stays paused, and the checkpoint unused.
    Recall,
    /// Being booted, because the memory that it should go on from could not be used.
    Rescue {
        /// It did not exist before.
        create: bool,
    },
    /// A VM that was restored or paused runs on: what a restart of the runner finds in between.
    Awake,
    /// Being stopped on request.
    Stop(StopMode),
    /// Being paused.
    Pause,
    /// Being resumed.
    Resume,
    /// A point in time of it is being frozen; it rests as given.
    Capture(Rest),
    /// The same, and a new VMM takes over.
    Replace(Rest),
    /// Its resources are being changed.
    Resize(Rest),
    /// Being removed on request.
    Destroy,
    /// A creation that failed is being removed.
    UndoCreate,
    /// A start that failed is being taken back.
    UndoStart,
    /// The VMM died by itself; its network is being removed.
    Clear,
}

/// One step on the host. The order inside an operation is fixed by [`Op::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Wait for a place among the few that may start at once.
    Gate,
    /// Root disk and seed.
    Disk,
    /// Namespace, links, addresses, rules.
    Network,
    /// Disk and network side by side.
    Provide,
    /// The network and an empty directory: all that can be ready before there is a disk.
    Room,
    /// The VMM process.
    Launch,
    /// Disk and memory, as soon as the source has frozen them.
    Graft,
    /// `vm.create`.
    Configure,
    /// `vm.boot`.
    Boot,
    /// `vm.restore`.
    Restore,
    /// `vm.resume`.
    Wake,
    /// The guest's toolbox answers.
    Ready,
    /// The guest gets an identity of its own.
    Identify,
    /// Store the result; only then is it true.
    Commit,
    /// Pause, and take memory and device state into the checkpoint. The VM stays paused.
    Suspend,
    /// Freeze the disk of a VM that has ended, and hand the frozen point in time on.
    Layer,
    /// `vm.pause`.
    Pause,
    /// Pause, take memory, device state and disk, resume: all in one stage.
    Capture,
    /// Change resources.
    Resize,
    /// Ask the guest to power off and wait for it.
    PowerOff,
    /// End the VMM process.
    End,
    /// Remove the network.
    Unplug,
    /// Remove disk and directory.
    Erase,
}

impl Stage {
    /// Name in logs, timings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Gate => "gate",
            Stage::Disk => "disk",
            Stage::Network => "network",
            Stage::Provide => "provide",
            Stage::Room => "room",
            Stage::Launch => "launch",
            Stage::Graft => "graft",
            Stage::Configure => "vm.create",
            Stage::Boot => "vm.boot",
            Stage::Restore => "vm.restore",
            Stage::Wake => "vm.resume",
            Stage::Ready => "ready",
            Stage::Identify => "identify",
            Stage::Commit => "commit",
            Stage::Suspend => "suspend",
            Stage::Layer => "layer",
            Stage::Pause => "vm.pause",
            Stage::Capture => "capture",
            Stage::Resize => "resize",
            Stage::PowerOff => "power-off",
            Stage::End => "end",
            Stage::Unplug => "unplug",
            Stage::Erase => "erase",
        }
    }
}

impl Op {
    /// The stages of this operation, in order.
    pub fn stages(self) -> &'static [Stage] {
        use Stage as S;
        match self {
            Op::Create(Make::Boot) => &[S::Gate, S::Provide, S::Launch, S::Configure, S::Boot, S::Ready, S::Commit],
            Op::Create(Make::Idle) => &[S::Gate, S::Disk, S::Commit],
            // The gate comes late: whoever waits for a source must not hold a place.
            Op::Create(Make::Copy) => {
                &[S::Room, S::Launch, S::Graft, S::Gate, S::Configure, S::Boot, S::Ready, S::Identify, S::Commit]
            }
            Op::Create(Make::Revive | Make::Warm) => {
                &[S::Room, S::Launch, S::Graft, S::Gate, S::Restore, S::Wake, S::Ready, S::Identify, S::Commit]
            }
            Op::Start { warm: false } => &[S::Gate, S::Network, S::Launch, S::Configure, S::Boot, S::Ready, S::Commit],
            Op::Start { warm: true } => &[S::Gate, S::Network, S::Launch, S::Restore, S::Wake, S::Ready, S::Commit],
            Op::Recall => &[S::Gate, S::Network, S::Launch, S::Restore, S::Commit],
            Op::Rescue { .. } => &[S::End, S::Launch, S::Configure, S::Boot, S::Ready, S::Commit],
            Op::Awake => &[S::Wake, S::Commit],
            Op::Stop(StopMode::Shutdown | StopMode::Usual) => &[S::PowerOff, S::End, S::Unplug],
            Op::Stop(StopMode::Checkpoint) => &[S::Suspend, S::End, S::Unplug],
            Op::Stop(StopMode::Kill) | Op::UndoStart | Op::Clear => &[S::End, S::Unplug],
            Op::Pause => &[S::Pause],
            Op::Resume => &[S::Wake],
            Op::Capture(_) => &[S::Capture],
            // The gate comes first: a source that is paused must not wait.
            Op::Replace(Rest::Paused) => &[S::Gate, S::Suspend, S::End, S::Layer, S::Launch, S::Restore, S::Commit],
            Op::Replace(_) => &[S::Gate, S::Suspend, S::End, S::Layer, S::Launch, S::Restore, S::Wake, S::Commit],
            Op::Resize(_) => &[S::Resize],
            Op::Destroy | Op::UndoCreate => &[S::End, S::Unplug, S::Erase],
        }
    }

    /// Whether this operation makes things (and must be undone when it fails).
    pub fn builds(self) -> bool {
        matches!(self, Op::Create(_) | Op::Start { .. } | Op::Recall | Op::Rescue { .. })
    }

    /// Whether it holds its place at the gate until a VM runs.
    pub fn holds_place(self) -> bool {
        self.builds() || matches!(self, Op::Replace(_))
    }

    /// Whether an intent that cannot be stored fails the stage. A tear-down goes on without: it frees space, and is
    /// repeated after a restart if its end is not stored.
    pub fn must_save(self) -> bool {
        !matches!(
            self,
            Op::Stop(StopMode::Shutdown | StopMode::Usual | StopMode::Kill)
                | Op::UndoStart
                | Op::UndoCreate
                | Op::Clear
                | Op::Destroy
        )
    }

    pub(super) fn rests_at(self) -> Rest {
        match self {
            Op::Create(Make::Boot | Make::Copy | Make::Revive | Make::Warm)
            | Op::Start { .. }
            | Op::Rescue { .. }
            | Op::Awake
            | Op::Resume => Rest::Started,
            Op::Create(Make::Idle) | Op::Stop(_) | Op::UndoStart | Op::Clear => Rest::Stopped,
            Op::Pause | Op::Recall => Rest::Paused,
            Op::Capture(rest) | Op::Replace(rest) | Op::Resize(rest) => rest,
            Op::Destroy | Op::UndoCreate => Rest::Absent,
        }
    }

    pub(super) fn undone_by(self) -> Op {
        if matches!(self, Op::Create(_) | Op::Rescue { create: true }) { Op::UndoCreate } else { Op::UndoStart }
    }

    /// What a busy sandbox is doing, for errors.
    pub fn doing(self) -> &'static str {
        match self {
            Op::Create(_) | Op::Rescue { create: true } => "being created",
            Op::Start { .. } | Op::Recall | Op::Rescue { .. } | Op::Awake | Op::Resume => "being started",
            Op::Stop(_) | Op::UndoStart | Op::Clear => "being stopped",
            Op::Pause => "being paused",
            Op::Capture(_) | Op::Replace(_) => "being copied",
            Op::Resize(_) => "being resized",
            Op::Destroy | Op::UndoCreate => "being removed",
        }
    }
}
