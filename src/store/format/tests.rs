use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::disk::{Format, RootDisk, SandboxDisks, Stamp};
use crate::fork::Report;
use crate::fork::plan::Recipe;
use crate::hypervisor::snapshot::RestoreMode;
use crate::hypervisor::wire::MemoryLayout;
use crate::hypervisor::{Known, ProcessIdentity, Version};
use crate::jobs::journal::Progress;
use crate::jobs::outcome::Outcome;
use crate::jobs::payload::CreateSpec;
use crate::net::Slot;
use crate::sandbox::record::{Begin, Checkpoint, Origin, Phase, Size};

/// The files below tests/fixtures/store were written by the runner of that format, as files of the JSON alone.
fn fixture(format: u8, file: &str) -> (Vec<u8>, Vec<u8>) {
    let path = format!("{}/tests/fixtures/store/format-{format}/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let value: Value = serde_json::from_slice(&json).unwrap();
    let key = if file.starts_with("jobs") { &value["job"]["id"] } else { &value["id"] };
    (key.as_str().unwrap().as_bytes().to_owned(), [vec![format], json].concat())
}

fn sandbox(format: u8, file: &str) -> Record {
    let (key, bytes) = fixture(format, &format!("sandboxes/{file}"));
    decode(Kind::Sandbox, &key, &bytes).unwrap_or_else(|error| panic!("{file}: {}", crate::error::chain(&error)))
}

fn job(format: u8, file: &str) -> Entry {
    let (key, bytes) = fixture(format, &format!("jobs/{file}"));
    decode(Kind::Job, &key, &bytes).unwrap_or_else(|error| panic!("{file}: {}", crate::error::chain(&error)))
}

#[test]
fn sandboxes_of_format_1() {
    let started = sandbox(1, "started");
    assert_eq!((started.phase, started.slot), (Phase::Started, Some(Slot(1))));
    assert!(matches!(started.layout, Some(MemoryLayout::Private { .. })), "{:?}", started.layout);
    assert_eq!(started.disks.unwrap().root.layers.len(), 1);

    let stopped = sandbox(1, "stopped");
    assert_eq!((stopped.phase, stopped.slot, stopped.vmm), (Phase::Stopped, None, None));
    let checkpoint = stopped.checkpoint.expect("the memory it goes on from");
    assert_eq!(checkpoint.mode, RestoreMode::Map);
    assert!(checkpoint.stamp.is_some_and(|stamp| stamp.modified > 1_700_000_000_000_000_000));

    let forked = sandbox(1, "forked");
    assert_eq!(forked.origin, Some(Origin::Sandbox { id: "box-started".parse().unwrap() }));
    assert!(forked.begin.warm && forked.begin.copy.is_some() && forked.mac.is_some());
    assert_eq!(forked.begin.identity, Some(Ok(())));

    assert_eq!(sandbox(1, "creating").phase, Phase::Creating);

    // As it was written before there were copies and private memory.
    let older = sandbox(1, "older");
    assert_eq!(older.layout, Some(MemoryLayout::Shared));
    assert_eq!((older.begin, older.running, older.mac), (Begin::default(), None, None));
}

/// Fields that are added to a record later must have a default, or a format of their own.
#[test]
fn sandboxes_of_format_2() {
    for name in ["creating", "started", "stopped", "forked"] {
        assert_eq!(sandbox(2, name), sandbox(1, name), "{name}");
    }
}

#[test]
fn jobs_of_format_1() {
    assert_eq!(job(1, "running").progress, Progress::Running);
    assert!(matches!(job(1, "finished").progress, Progress::Finished { outcome: Outcome::Completed { .. } }));
    assert!(matches!(job(1, "reported").progress, Progress::Reported { outcome: Outcome::Completed { .. } }));
    assert!(matches!(job(1, "failed").progress, Progress::Reported { outcome: Outcome::Failed { .. } }));
    assert_eq!(job(1, "running").job.job_type, "CREATE_SANDBOX");
}

#[test]
fn an_upgrade_is_done_once() {
    let (key, bytes) = fixture(1, "sandboxes/older");
    let new = upgraded(Kind::Sandbox, &key, &bytes).unwrap().expect("there is something to do");
    assert_eq!(new[0], migrate::newest(Kind::Sandbox));
    assert_eq!(upgraded(Kind::Sandbox, &key, &new).unwrap(), None);
    assert_eq!(decode::<Record>(Kind::Sandbox, &key, &new).unwrap(), sandbox(1, "older"));
}

#[test]
fn each_kind_of_damage_has_its_name() {
    let (key, bytes) = fixture(1, "sandboxes/started");
    let error = |key: &[u8], bytes: &[u8]| decode::<Record>(Kind::Sandbox, key, bytes).unwrap_err();
    let mut newer = bytes.clone();
    newer[0] = migrate::newest(Kind::Sandbox) + 1;
    assert!(matches!(error(&key, &newer), Error::NewerRecord { found: 3, known: 2, .. }));
    assert!(matches!(error(b"box-other", &bytes), Error::Misplaced { inside, .. } if inside == "box-started"));
    assert!(matches!(error(&key, &bytes[..bytes.len() - 1]), Error::Corrupt { .. }));
    assert!(matches!(error(&key, b"\x02{\"id\":7}"), Error::Corrupt { .. }));
    assert!(matches!(error(&key, b""), Error::Unfit { .. }));
    assert!(matches!(error(&key, b"\x00{}"), Error::Unfit { .. }));
    let escaped = error(b"a\nb", b"").to_string();
    assert!(escaped.contains("a\\nb"), "{escaped}");
}

fn size() -> impl Strategy<Value = Size> {
    (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(vcpus, memory, disk)| Size { vcpus, memory, disk })
}

fn version() -> impl Strategy<Value = Version> {
    (44_u32..99, 0_u32..9).prop_map(|(major, minor)| Version::parse(&format!("v{major}.{minor}")).unwrap())
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::*;
    prop::sample::select(vec![
        Creating, Stopped, Starting, Waking, Started, Pausing, Paused, Capturing, Replacing, Stopping, Destroying,
        Broken,
    ])
}

fn layout() -> impl Strategy<Value = MemoryLayout> {
    prop_oneof![
        Just(MemoryLayout::Shared),
        Just(MemoryLayout::Anonymous),
        "/[a-z]{1,9}".prop_map(|path| MemoryLayout::File { path: path.into() }),
        "/[a-z]{1,9}".prop_map(|path| MemoryLayout::Private { path: path.into() }),
    ]
}

fn disks() -> impl Strategy<Value = SandboxDisks> {
    (any::<bool>(), any::<u64>(), vec("/[a-z]{1,5}", 0..3)).prop_map(|(raw, size, layers)| SandboxDisks {
        root: RootDisk {
            path: "/d".into(),
            format: if raw { Format::Raw } else { Format::Qcow2 },
            backed: !raw,
            size,
            base: "/b".into(),
            layers: layers.into_iter().map(Into::into).collect(),
        },
        seed: "/s".into(),
    })
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let stamp = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(inode, length, modified)| Stamp {
        inode,
        length,
        modified: modified.into(),
    });
    (version(), of(stamp), of("[a-f0-9]{8}"), size(), any::<bool>(), any::<u64>()).prop_map(
        |(version, stamp, boot, size, map, taken_at)| Checkpoint {
            version,
            stamp,
            boot,
            size,
            mode: if map { RestoreMode::Map } else { RestoreMode::Copy },
            taken_at,
        },
    )
}

fn begin() -> impl Strategy<Value = Begin> {
    let identity = prop_oneof![Just(Ok(())), any::<String>().prop_map(Err)];
    let report = (any::<bool>(), any::<String>(), any::<u64>()).prop_map(|(replaced, why, n)| Report {
        recipe: Recipe::Delta,
        replaced,
        why,
        pause_micros: n,
        paused_after_micros: n,
        device_micros: n,
        memory_micros: n,
        memory_bytes: n,
        disk_micros: n,
        prepare_micros: n,
        keep_micros: n,
    });
    (any::<bool>(), of(any::<String>()), of(identity), of(any::<u64>()), of(report))
        .prop_map(|(warm, note, identity, mapped, copy)| Begin { warm, note, identity, mapped, copy })
}

fn spec() -> impl Strategy<Value = CreateSpec> {
    let texts = btree_map("[A-Z]{1,4}", any::<String>(), 0..3);
    ("[a-z0-9]{1,12}", of(any::<String>()), texts, of(1_u32..255), vec(any::<String>(), 0..3)).prop_map(
        |(id, name, env, vcpus, entrypoint)| CreateSpec {
            id: id.parse().unwrap(),
            name,
            user_id: None,
            organization_id: None,
            snapshot: Some("org/base.1".parse().unwrap()),
            os_user: "daytona".to_owned(),
            vcpus,
            memory_gib: None,
            disk_gib: Some(1),
            env: env.clone(),
            auth_token: None,
            network_block_all: true,
            network_allow_list: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            domain_allow_list: None,
            volumes: vec![serde_json::json!({ "volumeId": "v" })],
            entrypoint,
            metadata: env,
            skip_start: false,
            linked_sandbox_id: None,
            sandbox_class: None,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let process = (any::<i32>(), any::<u64>(), version()).prop_map(|(pid, start_ticks, version)| Known {
        process: ProcessIdentity { pid, start_ticks, boot_id: "boot".to_owned() },
        version,
    });
    let origin = prop_oneof![
        Just(Origin::Sandbox { id: "box".parse().unwrap() }),
        Just(Origin::Snapshot { reference: "a/b".parse().unwrap() }),
    ];
    let place = (phase(), of(any::<u32>().prop_map(Slot)), of(disks()), of(process), of(layout()), of(size()));
    let past = (of(any::<[u8; 6]>()), of(checkpoint()), of(origin), begin(), any::<u64>(), of(any::<String>()));
    (spec(), size(), place, past, any::<(u64, u64)>()).prop_map(|(spec, size, place, past, (created_at, since))| {
        let (phase, slot, disks, vmm, layout, running) = place;
        let (mac, checkpoint, origin, begin, run, error) = past;
        Record {
            phase,
            slot,
            disks,
            vmm,
            layout,
            running,
            mac,
            checkpoint,
            origin,
            begin,
            run,
            error,
            created_at,
            since,
            ..Record::new(spec, size, 0)
        }
    })
}

proptest! {
    #[test]
    fn any_record_comes_back_as_it_was(record in record()) {
        let bytes = encode(Kind::Sandbox, record.key(), &record).unwrap();
        prop_assert_eq!(decode::<Record>(Kind::Sandbox, record.key().as_bytes(), &bytes).unwrap(), record);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(format in 0_u8..4, bytes in vec(any::<u8>(), 0..64)) {
        let bytes = [vec![format], bytes].concat();
        for kind in Kind::ALL {
            let _ = upgraded(kind, b"key", &bytes);
        }
        prop_assert!(decode::<Record>(Kind::Sandbox, b"key", &bytes).is_err());
    }
}
