//! What finished jobs do to sandboxes and snapshots (PROTOCOL.md 2.6).

mod common;

use common::{Api, start, start_with};
use daytona_sim::{
    BackupState, CreateSpec, DesiredState, Dialect, Handle, ResourceType, Sandbox, SandboxState, job_type, payload,
};
use serde_json::{Value, json};

const SANDBOX: ResourceType = ResourceType::Sandbox;

fn row(sim: &Handle, id: &str) -> Sandbox {
    sim.sandbox(id).unwrap()
}

/// Hands the job out and reports it.
fn finish(sim: &Handle, job: &str, status: &str, error: &str, result: Value) {
    let api = Api::new(sim);
    assert_eq!(api.poll("timeout=1"), [job]);
    assert_eq!(api.report_full(job, status, error, &result).status, 201);
}

fn started(sim: &Handle, id: &str) {
    let job = sim.create_sandbox(&CreateSpec::new(id)).unwrap();
    assert_eq!(row(sim, id).state, SandboxState::Creating);
    finish(sim, &job, "COMPLETED", "", json!({"daemonVersion": "0.190.0"}));
    assert_eq!(row(sim, id).state, SandboxState::Started);
}

#[test]
fn life_of_a_sandbox() {
    let sim = start();
    started(&sim, "a");
    assert_eq!(row(&sim, "a").daemon_version.as_deref(), Some("0.190.0"));
    let stop = sim.stop_sandbox("a", Some(true)).unwrap();
    assert_eq!((row(&sim, "a").state, row(&sim, "a").pending), (SandboxState::Stopping, true));
    finish(&sim, &stop, "COMPLETED", "", json!({}));
    assert_eq!((row(&sim, "a").state, row(&sim, "a").pending), (SandboxState::Stopped, false));
    let start = sim.start_sandbox("a").unwrap();
    assert_eq!(row(&sim, "a").state, SandboxState::Starting);
    finish(&sim, &start, "COMPLETED", "", json!({"daemonVersion": "0.191.0"}));
    assert_eq!(row(&sim, "a").daemon_version.as_deref(), Some("0.191.0"));
    let destroy = sim.destroy_sandbox("a").unwrap();
    finish(&sim, &destroy, "COMPLETED", "", json!({}));
    let gone = row(&sim, "a");
    assert_eq!((gone.state, gone.runner_id), (SandboxState::Destroyed, None));
}

#[test]
fn failures_carry_reason_and_recoverability() {
    let cases = [
        ("plain text", "plain text", false),
        (r#"{"errorReason":"disk full","recoverable":true}"#, "disk full", true),
        (r#"{"other":1}"#, "Failed to create sandbox", false),
        ("42", "Failed to create sandbox", false),
    ];
    let sim = start();
    for (n, (message, reason, recoverable)) in cases.into_iter().enumerate() {
        let id = format!("f{n}");
        let job = sim.create_sandbox(&CreateSpec::new(&id)).unwrap();
        finish(&sim, &job, "FAILED", message, json!({}));
        let row = row(&sim, &id);
        assert_eq!(row.state, SandboxState::Error);
        assert_eq!(row.error_reason.as_deref(), Some(reason));
        assert_eq!((row.recoverable, row.pending), (recoverable, false));
    }
}

#[test]
fn a_failure_without_message_changes_nothing() {
    let sim = start();
    let job = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    finish(&sim, &job, "FAILED", "", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Creating);
}

#[test]
fn guard_ignores_a_result_that_nobody_wants_any_more() {
    let sim = start();
    let job = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    sim.edit_sandbox("a", |row| row.desired = DesiredState::Destroyed);
    finish(&sim, &job, "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Creating);
}

#[test]
fn repeating_a_final_report_runs_the_handler_again() {
    let sim = start();
    let api = Api::new(&sim);
    started(&sim, "a");
    let create = sim.jobs()[0].id.clone();
    sim.edit_sandbox("a", |row| row.state = SandboxState::Error);
    assert_eq!(api.report(&create, "COMPLETED").status, 201);
    assert_eq!(row(&sim, "a").state, SandboxState::Started);
    let stop = sim.stop_sandbox("a", None).unwrap();
    finish(&sim, &stop, "COMPLETED", "", json!({}));
    assert_eq!(api.report(&create, "COMPLETED").status, 201);
    assert_eq!(row(&sim, "a").state, SandboxState::Stopped, "the sandbox has moved on");
}

#[test]
fn pause_and_resume() {
    let sim = start();
    started(&sim, "a");
    let pause = sim.submit(job_type::PAUSE_SANDBOX, SANDBOX, "a", json!({"sandboxId": "a"}));
    finish(&sim, &pause.unwrap(), "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Paused);
    let resume = sim.start_sandbox("a").unwrap();
    assert_eq!(row(&sim, "a").state, SandboxState::Resuming);
    finish(&sim, &resume, "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Started);
}

#[test]
fn resize_takes_its_figures_from_the_payload() {
    let sim = start();
    started(&sim, "a");
    let resize = |payload| sim.submit(job_type::RESIZE_SANDBOX, SANDBOX, "a", payload).unwrap();
    let job = resize(json!({"cpu": 4}));
    assert_eq!(row(&sim, "a").state, SandboxState::Resizing);
    finish(&sim, &job, "COMPLETED", "", json!({}));
    let grown = row(&sim, "a");
    assert_eq!((grown.cpu, grown.memory, grown.state), (4.0, 1.0, SandboxState::Started));
    finish(&sim, &resize(json!({"cpu": 8})), "FAILED", "no", json!({}));
    let same = row(&sim, "a");
    assert_eq!((same.cpu, same.state, same.error_reason), (4.0, SandboxState::Started, None));
}

#[test]
fn fork_brings_both_sandboxes_to_rest() {
    for (dialect, kind) in [(Dialect::V0190, job_type::FORK_SANDBOX), (Dialect::Branch, job_type::CLONE_SANDBOX)] {
        let sim = start_with(|options| options.dialect = dialect);
        started(&sim, "a");
        let payload = payload::fork(dialect, "a", "b", "started");
        let fork = sim.submit(kind, SANDBOX, "b", payload).unwrap();
        assert_eq!(row(&sim, "a").state, SandboxState::Forking);
        assert_eq!(row(&sim, "b").state, SandboxState::Creating);
        finish(&sim, &fork, "COMPLETED", "", json!({"daemonVersion": "9"}));
        assert_eq!(row(&sim, "a").state, SandboxState::Started);
        assert_eq!(row(&sim, "b").state, SandboxState::Started);
        assert_eq!(row(&sim, "b").daemon_version.as_deref(), Some("9"));
    }
    let sim = start();
    started(&sim, "a");
    let payload = payload::fork(Dialect::V0190, "a", "b", "started");
    let fork = sim.submit(job_type::FORK_SANDBOX, SANDBOX, "b", payload).unwrap();
    finish(&sim, &fork, "FAILED", "out of space", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Started);
    assert_eq!(row(&sim, "b").state, SandboxState::Error);
}

#[test]
fn snapshot_refs() {
    let registry = json!({"url": "reg:5000"});
    let cases = [
        (json!({"name": "n", "registry": registry}), json!({"ref": "r", "hash": "h"}), "r"),
        (
            json!({"name": "n", "registry": registry}),
            json!({"hash": "sha256:ab"}),
            "reg:5000/daytona/daytona-ab:daytona",
        ),
        (json!({"name": "n"}), json!({"Hash": "ab", "size_gb": "2.5"}), "daytona-ab"),
        (json!({"name": "n"}), json!({}), "n"),
    ];
    for (payload, result, wanted) in cases {
        let sim = start();
        started(&sim, "a");
        let job = sim.submit(job_type::SNAPSHOT_SANDBOX, SANDBOX, "a", payload).unwrap();
        assert_eq!(row(&sim, "a").state, SandboxState::Snapshotting);
        finish(&sim, &job, "COMPLETED", "", result);
        assert_eq!(row(&sim, "a").state, SandboxState::Started);
        assert_eq!(sim.snapshots()[0].reference, wanted);
        assert_eq!(sim.snapshots()[0].state, "active");
    }
}

#[test]
fn branch_snapshot_uses_its_path() {
    let sim = start_with(|options| options.dialect = Dialect::Branch);
    started(&sim, "a");
    let kind = job_type::CREATE_SANDBOX_SNAPSHOT;
    let job = sim.submit(kind, SANDBOX, "a", json!({"name": "n", "live": false})).unwrap();
    finish(&sim, &job, "COMPLETED", "", json!({"snapshotPath": "org/n"}));
    assert_eq!(sim.snapshots()[0].reference, "org/n");
}

#[test]
fn pulled_built_and_removed_snapshots() {
    let sim = start();
    let submit = |kind, id| sim.submit(kind, ResourceType::Snapshot, id, ()).unwrap();
    let pull = submit(job_type::PULL_SNAPSHOT, "p");
    assert_eq!(sim.snapshots()[0].runner_state, Some("pulling_snapshot"));
    finish(&sim, &pull, "COMPLETED", "", json!({"sizeGB": 1.5, "hash": "ab"}));
    let pulled = &sim.snapshots()[0];
    assert_eq!((pulled.state, pulled.runner_state, pulled.size_gb), ("active", Some("ready"), Some(1.5)));
    let remove = submit(job_type::REMOVE_SNAPSHOT, "p");
    finish(&sim, &remove, "COMPLETED", "", json!({}));
    assert_eq!(sim.snapshots()[0].runner_state, None);
    let build = submit(job_type::BUILD_SNAPSHOT, "b");
    finish(&sim, &build, "FAILED", "bad Dockerfile", json!({}));
    let built = &sim.snapshots()[0];
    assert_eq!((built.state, built.error_reason.as_deref()), ("error", Some("bad Dockerfile")));
}

#[test]
fn backup_then_archive() {
    let sim = start();
    started(&sim, "a");
    let backup = sim.submit(job_type::CREATE_BACKUP, SANDBOX, "a", json!({"snapshot": "b1"}));
    assert_eq!(row(&sim, "a").backup_state, BackupState::InProgress);
    finish(&sim, &backup.unwrap(), "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").backup_state, BackupState::Completed);
    sim.edit_sandbox("a", |row| {
        (row.state, row.desired) = (SandboxState::Stopped, DesiredState::Archived);
    });
    let destroy = sim.destroy_sandbox("a").unwrap();
    finish(&sim, &destroy, "FAILED", "still archived", json!({}));
    let archived = row(&sim, "a");
    assert_eq!((archived.state, archived.runner_id), (SandboxState::Archived, None));
    let restore = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    assert_eq!(row(&sim, "a").state, SandboxState::Restoring);
    finish(&sim, &restore, "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Started);
}

#[test]
fn superseded_backup_is_ignored_and_stop_forgets_the_backup() {
    let sim = start();
    started(&sim, "a");
    let backup = sim.submit(job_type::CREATE_BACKUP, SANDBOX, "a", json!({"snapshot": "old"}));
    sim.edit_sandbox("a", |row| row.backup_snapshot = Some("new".to_owned()));
    finish(&sim, &backup.unwrap(), "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").backup_state, BackupState::InProgress);
    let stop = sim.stop_sandbox("a", None).unwrap();
    finish(&sim, &stop, "COMPLETED", "", json!({}));
    assert_eq!(row(&sim, "a").backup_state, BackupState::None);
}

#[test]
fn recover_leaves_the_sandbox_stopped() {
    for (skip_start, desired) in [(true, DesiredState::Stopped), (false, DesiredState::Started)] {
        let sim = start();
        started(&sim, "a");
        sim.edit_sandbox("a", |row| row.state = SandboxState::Error);
        let payload = json!({"skipStart": skip_start});
        let job = sim.submit(job_type::RECOVER_SANDBOX, SANDBOX, "a", payload).unwrap();
        finish(&sim, &job, "COMPLETED", "", json!({}));
        let row = row(&sim, "a");
        assert_eq!((row.state, row.desired), (SandboxState::Stopped, desired));
    }
}

#[test]
fn network_settings_are_stored_at_submission() {
    let sim = start();
    started(&sim, "a");
    let payload = json!({"networkBlockAll": true, "networkAllowList": ""});
    let kind = job_type::UPDATE_SANDBOX_NETWORK_SETTINGS;
    let job = sim.submit(kind, SANDBOX, "a", payload).unwrap();
    assert_eq!(row(&sim, "a").network["networkBlockAll"], true);
    finish(&sim, &job, "FAILED", "no", json!({}));
    assert_eq!(row(&sim, "a").state, SandboxState::Started);
}
