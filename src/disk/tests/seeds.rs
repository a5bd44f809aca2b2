//! The NoCloud seed, read back by others' eyes: fatfs, blkid, a YAML reader, shells.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::process::{Command, Stdio};

use fatfs::{FatType, FileSystem, FsOptions};
use proptest::prelude::*;

use super::room::{plan, run, text};
use crate::disk::cloud_config::{ENVIRONMENT, PROFILE, quoted, user_data};
use crate::disk::{Seed, seed};
use crate::error::{ErrorCode, Failure};

fn seed_of(env: &[(&str, &str)]) -> Seed {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Seed { env, ..plan("box-1", None, 1).seed }
}

fn read(image: &[u8], name: &str) -> String {
    let system = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();
    let mut content = String::new();
    system.root_dir().open_file(name).unwrap().read_to_string(&mut content).unwrap();
    content
}

/// The scalars that follow `key: ` in our block style, as a JSON reader sees them.
fn scalars(document: &str, key: &str) -> Vec<String> {
    let lines = document.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key));
    lines.map(|line| serde_json::from_str(line.trim_start_matches(": ")).unwrap()).collect()
}

fn file(document: &str, path: &str) -> String {
    let at = scalars(document, "path").iter().position(|found| found == path).unwrap();
    scalars(document, "content").swap_remove(at)
}

/// What a shell has in its environment after reading the file.
fn shell_reads(content: &str, shell: &str) -> BTreeMap<String, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let script = "set -a; . \"$0\"; exec /usr/bin/env -0";
    let output = Command::new(shell).args(["-c", script, text(file.path())]).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let all = String::from_utf8(output.stdout).unwrap();
    all.split_terminator('\0').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect()
}

#[test]
fn the_image_is_a_small_labelled_fat_and_always_the_same() {
    let image = seed::image(&seed_of(&[("A", "b")]), None).unwrap();
    assert_eq!(image, seed::image(&seed_of(&[("A", "b")]), None).unwrap());
    assert!(image.len() <= 12 << 10 && image.len().is_multiple_of(4096), "{} bytes", image.len());
    let system = FileSystem::new(Cursor::new(image.clone()), FsOptions::new()).unwrap();
    assert_eq!(system.fat_type(), FatType::Fat12);
    assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
    let other = Seed { sandbox: "box-2".parse().unwrap(), ..seed_of(&[("A", "b")]) };
    let other = FileSystem::new(Cursor::new(seed::image(&other, None).unwrap()), FsOptions::new()).unwrap();
    assert_ne!(system.volume_id(), other.volume_id());
    let mut disk = tempfile::NamedTempFile::new().unwrap();
    disk.write_all(&image).unwrap();
    let found = run("blkid", &["-p", "-o", "export", text(disk.path())]);
    assert!(found.contains("LABEL=CIDATA") && found.contains("TYPE=vfat"), "{found}");
}

#[test]
fn the_files_say_what_the_guest_needs() {
    let image = seed::image(&seed_of(&[("DAYTONA_SANDBOX_ID", "forged"), ("A", "b")]), Some(1400)).unwrap();
    assert_eq!(read(&image, "meta-data"), "instance-id: \"box-1\"\nlocal-hostname: \"box-1\"\n");
    let network = read(&image, "network-config");
    for words in [
        "version: 2\n",
        "macaddress: \"02:00:00:00:00:01\"",
        "[192.168.0.2/24]",
        "via: 192.168.0.1",
        "[8.8.8.8, 8.8.4.4]",
        "mtu: 1400\n",
    ] {
        assert!(network.contains(words), "{words:?} is not in {network}");
    }
    assert!(!read(&seed::image(&seed_of(&[]), None).unwrap(), "network-config").contains("mtu"));
    let user = read(&image, "user-data");
    assert!(user.starts_with("#cloud-config\n"));
    let environment = file(&user, ENVIRONMENT);
    assert_eq!(environment, "A=\"b\"\nDAYTONA_SANDBOX_ID=\"box-1\"\nDAYTONA_SANDBOX_USER=\"daytona\"\n");
    assert!(file(&user, PROFILE).contains(ENVIRONMENT));
    assert!(user.contains("/etc/systemd/system/daytona-daemon.service.d/10-environment.conf"));
    assert!(user.contains("EnvironmentFile=-/etc/daytona/environment"));
}

#[test]
fn the_scripts_for_the_guest_are_valid_shell() {
    let user = user_data(&seed_of(&[])).unwrap();
    let commands = user.lines().filter_map(|line| line.split_once("sh, -c, ")?.1.strip_suffix(']'));
    let scripts: Vec<String> = commands.map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(scripts.len(), 2);
    for script in scripts.iter().chain([&file(&user, PROFILE)]) {
        run("sh", &["-n", "-c", script]);
    }
}

#[test]
fn the_documents_are_yaml_to_a_reader_of_yaml() {
    let env = [("A", "two\nlines: {x}\t'\"#"), ("B", "\u{85}\u{2028}\u{feff}\u{7f}\u{1b}ü😀"), ("C", "")];
    let image = seed::image(&seed_of(&env), Some(1400)).unwrap();
    let script = "import json, sys\n\
                  try:\n    import yaml\n\
                  except ImportError:\n    sys.exit(77)\n\
                  json.dump(yaml.safe_load(sys.stdin.buffer.read().decode()), sys.stdout)\n";
    for name in ["meta-data", "user-data", "network-config"] {
        let mut reader =
            Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        reader.stdin.take().unwrap().write_all(read(&image, name).as_bytes()).unwrap();
        let output = reader.wait_with_output().unwrap();
        if output.status.code() == Some(77) {
            eprintln!("python3 has no yaml module here: not checked");
            return;
        }
        assert!(output.status.success(), "{name}");
        let parsed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        if name == "user-data" {
            let content = parsed["write_files"][0]["content"].as_str().unwrap();
            assert_eq!(content, file(&read(&image, name), ENVIRONMENT));
            assert_eq!(shell_reads(content, "sh")["B"], env[1].1);
            assert_eq!(parsed["bootcmd"][0][3], "sh");
        } else if name == "network-config" {
            assert_eq!(parsed["ethernets"]["eth0"]["routes"][0]["via"], "192.168.0.1");
            assert_eq!(parsed["ethernets"]["eth0"]["mtu"], 1400);
        }
    }
}

#[test]
fn what_cannot_be_handed_over_is_refused_by_name() {
    for (name, value) in [("", "x"), ("1A", "x"), ("A-B", "x"), ("A B", "x"), ("A=B", "x"), ("ä", "x"), ("NUL", "a\0b")]
    {
        let failure = Failure::from(seed::image(&seed_of(&[(name, value)]), None).unwrap_err());
        assert_eq!(failure.code, ErrorCode::BadRequest, "{name:?}");
        assert!(failure.message.contains(&format!("{name:?}")), "{failure}");
    }
    let long = "x".repeat(2 << 20);
    assert!(seed::image(&seed_of(&[("A", &long)]), None).is_err());
    for hostname in ["", "a b", "a\nb", &"x".repeat(65)] {
        let seed = Seed { hostname: hostname.into(), ..seed_of(&[]) };
        assert!(seed::image(&seed, None).is_err(), "{hostname:?}");
    }
}

#[test]
fn a_large_environment_fits() {
    let value = "v".repeat(100 << 10);
    let image = seed::image(&seed_of(&[("A", &value), ("B", &value), ("C", &value)]), None).unwrap();
    assert_eq!(shell_reads(&file(&read(&image, "user-data"), ENVIRONMENT), "sh")["C"], value);
}

#[test]
fn every_length_around_a_sector_is_read_back() {
    for length in 0..1100 {
        let value = "v".repeat(length);
        let image = seed::image(&seed_of(&[("A", &value)]), None).unwrap();
        assert!(read(&image, "user-data").contains(&format!("A=\\\"{value}\\\"")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn quoted_text_comes_back(text in any::<String>()) {
        let scalar = quoted(&text);
        prop_assert!(!scalar.contains(|c: char| c.is_control()));
        prop_assert_eq!(serde_json::from_str::<String>(&scalar).unwrap(), text);
    }

    #[test]
    fn values_survive_the_whole_way_into_a_shell(
        env in proptest::collection::btree_map("VAR_[A-Za-z0-9_]{0,8}", "[^\0]{0,60}", 0..5)
    ) {
        let pairs: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let image = seed::image(&seed_of(&pairs), None).unwrap();
        let found = shell_reads(&file(&read(&image, "user-data"), ENVIRONMENT), "sh");
        for (name, value) in &env {
            prop_assert_eq!(found.get(name), Some(value));
        }
        prop_assert_eq!(found["DAYTONA_SANDBOX_ID"].as_str(), "box-1");
    }
}
