//! Payloads of both dialects, and a table of bad ones.

use serde_json::{Value, json};

use super::*;
use crate::control_plane::Job;

fn job(kind: &str, payload: Option<String>) -> Job {
    let job =
        json!({"id": "job-1", "type": kind, "resourceType": "SANDBOX", "resourceId": "box-1", "payload": payload});
    Job::from_json(&job).unwrap()
}

fn parse_json(kind: &str, payload: &Value) -> Result<Command, PayloadError> {
    parse(&job(kind, Some(payload.to_string())))
}

fn created(payload: &Value) -> CreateSpec {
    match parse_json("CREATE_SANDBOX", payload).unwrap() {
        Command::Create(spec) => *spec,
        other => panic!("{other:?}"),
    }
}

fn full() -> Value {
    json!({
        "id": "box-1", "name": "my-box", "userId": "org", "snapshot": "reg.local:5000/daytona/ubuntu:22.04",
        "osUser": "daytona", "cpuQuota": 2, "gpuQuota": 0, "memoryQuota": 4, "storageQuota": 10,
        "env": {"A": "1", "EMPTY": "", "GONE": null},
        "registry": {"url": "reg.local:5000", "project": "daytona", "username": "u", "password": "p"},
        "entrypoint": ["sleep", "infinity"],
        "volumes": [{"volumeId": "v", "mountPath": "/data", "subpath": "s"}],
        "networkBlockAll": false, "networkAllowList": "10.0.0.0/8, 192.0.2.9/32,,", "domainAllowList": "example.com",
        "metadata": {"organizationId": "org", "limitNetworkEgress": "false", "odd": 3},
        "authToken": "t0ps3cret", "otelEndpoint": "http://otel", "skipStart": true, "organizationId": "org",
        "regionId": "eu", "linkedSandboxId": "box-0", "sandboxClass": "linux-vm", "fieldOfTomorrow": {"x": 1}
    })
}

#[test]
fn the_current_dialect_is_read() {
    let spec = created(&full());
    assert_eq!((spec.vcpus, spec.memory_gib, spec.disk_gib), (Some(2), Some(4), Some(10)));
    assert_eq!(spec.snapshot.as_ref().unwrap().as_str(), "reg.local:5000/daytona/ubuntu:22.04");
    assert_eq!(spec.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), [("A", "1"), ("EMPTY", "")]);
    let networks: Vec<_> = spec.network_allow_list.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.0.2.9/32"]);
    assert_eq!(spec.metadata["odd"], "3");
    assert_eq!(spec.linked_sandbox_id.as_ref().unwrap().as_str(), "box-0");
    assert_eq!(spec.auth_token.as_deref(), Some("t0ps3cret"));
    assert!(spec.skip_start && spec.volumes.len() == 1 && spec.entrypoint.len() == 2);
}

#[test]
fn the_original_dialect_is_read_and_defaults_stay_open() {
    let spec = created(&json!({
        "id": "box-1", "userId": "u", "snapshot": "org/name", "osUser": "", "cpuQuota": 0, "memoryQuota": 2.0,
        "storageQuota": null, "volumes": [], "networkAllowList": "", "gpuDevices": []
    }));
    assert_eq!((spec.vcpus, spec.memory_gib, spec.disk_gib), (None, Some(2), None));
    assert_eq!((spec.os_user.as_str(), spec.network_allow_list), ("daytona", Some(Vec::new())));
    let least = created(&json!({"id": "box-1"}));
    assert_eq!((least.snapshot, least.network_allow_list, least.skip_start), (None, None, false));
}

#[test]
fn networks_of_the_allow_list_are_checked_one_by_one() {
    for (text, expected) in
        [("192.0.2.77/24", "192.0.2.0/24"), ("1.2.3.4/32", "1.2.3.4/32"), ("9.9.9.9/0", "0.0.0.0/0")]
    {
        let spec = created(&json!({"id": "box-1", "networkAllowList": text}));
        assert_eq!(spec.network_allow_list.unwrap()[0].to_string(), expected);
    }
    for bad in
        ["10.0.0.0", "10.0.0.0/", "10.0.0/8", "10.0.0.0/33", "10.0.0.0/-1", "::/0", "a/8", "1.2.3.4/+8", "1.2.3.4/008"]
    {
        let list = format!("10.0.0.0/8,{bad}");
        let error = parse_json("CREATE_SANDBOX", &json!({"id": "box-1", "networkAllowList": list})).unwrap_err();
        assert_eq!((error.field.as_str(), error.got), ("networkAllowList", format!("{bad:?}")));
    }
}

#[test]
fn secrets_do_not_show() {
    let mut payload = full();
    payload["env"] = json!({"PASSWORD": "hunter2"});
    let create = format!("{:?}", parse_json("CREATE_SANDBOX", &payload).unwrap());
    let start = format!("{:?}", parse_json("START_SANDBOX", &json!({"authToken": "t0ps3cret"})).unwrap());
    for text in [create, start] {
        assert!(!text.contains("t0ps3cret") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_stored_spec_reads_back() {
    let spec = created(&full());
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<CreateSpec>(&text).unwrap(), spec);
}

#[test]
fn bad_fields_are_refused_by_name() {
    let long = "x".repeat(200_000);
    let eleven = "10.0.0.0/8,".repeat(11);
    let cores = "1 to 255 whole cores";
    let table = [
        (json!({"id": "other"}), "id: expected the job's resourceId box-1, got other"),
        (json!({"id": null}), "id: expected a sandbox id, got nothing"),
        (json!({"id": 5}), "id: expected text, got 5"),
        (json!({"id": "../etc"}), "id: expected a sandbox id (sandbox id has '.'"),
        (json!({"cpuQuota": -1}), &format!("cpuQuota: expected {cores}, got -1")),
        (json!({"cpuQuota": 256}), &format!("cpuQuota: expected {cores}, got 256")),
        (json!({"cpuQuota": 0.5}), &format!("cpuQuota: expected {cores}, got 0.5")),
        (json!({"cpuQuota": "2"}), &format!("cpuQuota: expected {cores}, got \"2\"")),
        (json!({"cpuQuota": 1e300}), &format!("cpuQuota: expected {cores}, got 1e+300")),
        (json!({"cpuQuota": [2]}), &format!("cpuQuota: expected {cores}, got an array")),
        (json!({"memoryQuota": 4097}), "memoryQuota: expected 1 to 4096 whole GiB, got 4097"),
        (json!({"storageQuota": 65_537}), "storageQuota: expected 1 to 65536 whole GiB, got 65537"),
        (json!({"gpuQuota": 1}), "gpuQuota: expected 0, as this runner passes no GPU through, got 1"),
        (json!({"gpuQuota": -1}), "gpuQuota: expected"),
        (json!({"gpuDevices": ["0000:01:00.0"]}), "gpuDevices: expected none"),
        (json!({"fromVolumeId": "v"}), "fromVolumeId: expected none"),
        (json!({"osUser": "Root"}), "osUser: expected a Linux user name"),
        (json!({"osUser": "a b"}), "osUser: expected"),
        (json!({"osUser": "-a"}), "osUser: expected"),
        (json!({"osUser": "x".repeat(33)}), "osUser: expected"),
        (json!({"snapshot": "a/../b"}), "snapshot: expected a snapshot reference"),
        (json!({"snapshot": ["a"]}), "snapshot: expected text, got an array"),
        (json!({"env": ["A=1"]}), "env: expected an object, got an array"),
        (json!({"env": {"A": 1}}), "env.A: expected text, got a number"),
        (json!({"env": {"A": "x\0"}}), "env.A: expected text without NUL"),
        (json!({"env": {"A": long}}), "env.A: expected less than 131072 bytes"),
        (json!({"env": {"A\nB": "x"}}), "env: expected a variable name"),
        (json!({"env": {"1A": "x"}}), "env: expected a variable name"),
        (json!({"env": {"": "x"}}), "env: expected a variable name"),
        (json!({"authToken": 77}), "authToken: expected text, got a number"),
        (json!({"networkBlockAll": "true"}), "networkBlockAll: expected true or false, got \"true\""),
        (json!({"networkAllowList": ["10.0.0.0/8"]}), "networkAllowList: expected comma-separated IPv4 networks"),
        (json!({"networkAllowList": "10.0.0.0"}), "networkAllowList: expected an IPv4 network"),
        (json!({"networkAllowList": eleven}), "networkAllowList: expected at most 10 networks, got 11"),
        (json!({"volumes": {}}), "volumes: expected an array, got an object"),
        (json!({"entrypoint": "sleep"}), "entrypoint: expected an array, got \"sleep\""),
        (json!({"entrypoint": ["a", 1]}), "entrypoint[1]: expected text without NUL, got 1"),
        (json!({"metadata": "x"}), "metadata: expected an object, got \"x\""),
        (json!({"skipStart": 1}), "skipStart: expected true or false, got 1"),
        (json!({"linkedSandboxId": "a b"}), "linkedSandboxId: expected a sandbox id"),
    ];
    for (bad, expected) in table {
        let mut payload = full();
        payload.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        let error = parse_json("CREATE_SANDBOX", &payload).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error:?} must start with {expected:?}");
        assert!(error.len() < 400, "{error}");
    }
}

#[test]
fn payloads_that_are_no_object_are_refused() {
    for (text, expected) in [("[]", "got an array"), ("{", "not JSON"), ("5", "got a number"), ("\"{}\"", "got text")] {
        let error = parse(&job("STOP_SANDBOX", Some(text.into()))).unwrap_err().to_string();
        assert!(error.starts_with("payload: expected a JSON object") && error.contains(expected), "{error}");
    }
    assert_eq!(parse(&job("CREATE_SANDBOX", None)).unwrap_err().field, "id");
}

#[test]
fn both_forms_of_start_are_read() {
    let metadata = |command| match command {
        Command::Start { auth_token, metadata } => (auth_token.as_deref().map(str::to_owned), metadata),
        other => panic!("{other:?}"),
    };
    let start = |payload: &Value| metadata(parse_json("START_SANDBOX", payload).unwrap());
    let (token, wrapped) = start(&json!({"authToken": "t", "metadata": {"organizationId": "o", "volumes": "[]"}}));
    assert_eq!((token.as_deref(), wrapped["organizationId"].as_str()), (Some("t"), "o"));
    let (token, resumed) = start(&json!({"authToken": "t"}));
    assert_eq!((token.as_deref(), resumed.len()), (Some("t"), 0));
    let (token, no_token) = start(&json!({"metadata": {"organizationId": "o"}}));
    assert_eq!((token, no_token["organizationId"].as_str()), (None, "o"));
    let (token, flat) = start(&json!({"organizationId": "o", "metadata": "a text", "limitNetworkEgress": "false"}));
    assert_eq!((token, flat.len(), flat["metadata"].as_str()), (None, 3, "a text"));
    for empty in [None, Some(String::new()), Some("null".into()), Some("{}".into())] {
        let (token, none) = metadata(parse(&job("START_SANDBOX", empty)).unwrap());
        assert!(token.is_none() && none.is_empty());
    }
    let error = parse_json("START_SANDBOX", &json!({"authToken": "t", "metadata": []})).unwrap_err();
    assert_eq!(error.to_string(), "metadata: expected an object, got an array");
}

#[test]
fn stop_destroy_and_unknown_types() {
    let stop = |payload: Option<&str>| parse(&job("STOP_SANDBOX", payload.map(Into::into)));
    for (payload, force) in
        [(None, false), (Some("{}"), false), (Some(r#"{"force":true}"#), true), (Some(r#"{"force":null}"#), false)]
    {
        assert_eq!(stop(payload), Ok(Command::Stop { force }));
    }
    assert_eq!(stop(Some(r#"{"force":"yes"}"#)).unwrap_err().to_string(), "force: expected true or false, got \"yes\"");
    assert_eq!(parse(&job("DESTROY_SANDBOX", Some("junk".into()))), Ok(Command::Destroy));
    assert_eq!(parse(&job("DANCE", Some("junk".into()))), Ok(Command::Unknown("DANCE".into())));
}

#[test]
fn a_resource_id_that_could_leave_its_directory_is_refused() {
    for kind in ["CREATE_SANDBOX", "START_SANDBOX", "STOP_SANDBOX", "DESTROY_SANDBOX"] {
        let mut job = job(kind, None);
        job.resource_id = "../../etc".into();
        assert_eq!(parse(&job).unwrap_err().field, "resourceId", "{kind}");
    }
}
