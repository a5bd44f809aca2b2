//! The NoCloud seed: a small vfat or ISO image labelled CIDATA among the disks.

use std::io::{Cursor, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use super::iso;
use super::state::State;
use super::yaml;
use crate::disk::Image;

/// Largest image that is looked into.
const SEED_LIMIT: u64 = 32 << 20;
/// Label of a seed, in any case.
const LABEL: &str = "cidata";

/// Files of a seed; missing ones are empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seed {
    meta_data: String,
    user_data: String,
    network_config: String,
}

/// The first seed among the disks and its index.
pub fn find(disks: &[(Arc<Mutex<Image>>, bool)]) -> Option<(usize, Seed)> {
    let mut found = disks.iter().enumerate().filter_map(|(index, (image, _))| {
        let image = image.lock().ok()?;
        let file = image.raw_file()?;
        let length = file.metadata().ok()?.len();
        if length == 0 || length > SEED_LIMIT || !has_label(file) {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Some((index, Seed::read(bytes)?))
    });
    found.next()
}

/// Cheap look at the places where FAT and ISO 9660 keep the label.
fn has_label(file: &std::fs::File) -> bool {
    let at = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim_end().to_ascii_lowercase();
        (text == LABEL).then_some(())
    };
    at(43, 11).or_else(|| at(71, 11)).or_else(|| at(16 * 2048 + 40, 32)).is_some()
}

impl Seed {
    /// Reads the files of an image.
    pub fn read(image: Vec<u8>) -> Option<Self> {
        if iso::is_iso(&image) {
            let text = |name: &str| {
                let bytes = iso::file(&image, name).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            return Some(Self {
                meta_data: text("meta-data"),
                user_data: text("user-data"),
                network_config: text("network-config"),
            });
        }
        let fat = fatfs::FileSystem::new(Cursor::new(image), fatfs::FsOptions::new()).ok()?;
        let root = fat.root_dir();
        let text = |name: &str| {
            let mut bytes = Vec::new();
            if let Ok(mut file) = root.open_file(name) {
                // A damaged file counts as far as it can be read.
                let _ = file.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Some(Self {
            meta_data: text("meta-data"),
            user_data: text("user-data"),
            network_config: text("network-config"),
        })
    }

    /// Carries the seed out, as cloud-init would on the first boot.
    pub fn apply(&self, state: &mut State) {
        let hostname =
            yaml::scalar(&self.user_data, "hostname").or_else(|| yaml::scalar(&self.meta_data, "local-hostname"));
        if let Some(hostname) = hostname {
            state.hostname = hostname;
        }
        for file in yaml::write_files(&self.user_data) {
            let path = super::fs::resolve("/", &file.path);
            if state.files.write(&path, &file.content, file.append).is_ok() {
                read_environment(&path, &file.content, state);
            }
        }
        let hosts = format!("{}\n", state.hostname);
        // The root file system has room for a host name.
        let _ = state.files.write("/etc/hostname", hosts.as_bytes(), false);
        if let Some(address) = yaml::address(&self.network_config) {
            state.address = address;
        }
        if let Some(gateway) = yaml::gateway(&self.network_config) {
            state.gateway = gateway;
        }
    }
}

/// Environment files become variables: `/etc/environment`, other files of that name, `*.env`, and what
/// `/etc/profile.d` exports.
fn read_environment(path: &str, content: &[u8], state: &mut State) {
    let known = path.ends_with("/environment") || path.ends_with(".env") || path.starts_with("/etc/profile.d/");
    if known {
        state.env.extend(variables(&String::from_utf8_lossy(content)));
    }
}

/// Reads `NAME=value` as systemd's EnvironmentFile and shells do: a value may stand in quotes, go over
/// several lines there, and escape a character by a backslash in double quotes.
fn variables(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let line_start = name.rfind('\n').map_or(0, |at| at + 1);
        let name = name[line_start..].trim().trim_start_matches("export ");
        let (value, after) = value(after);
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            found.push((name.to_owned(), value));
        }
        rest = after;
    }
    found
}

/// The value at the beginning of a text, and the text behind its line.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '\n') => return (value, &text[at + 1..]),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Parses `192.168.0.2/24`; a missing prefix is 24.
pub fn parse_address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
    Some((ip.parse().ok()?, prefix.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::Seed;
    use crate::guest::state::State;

    fn fat_image(files: &[(&str, &str)]) -> Vec<u8> {
        let mut image = Cursor::new(vec![0; 128 << 10]);
        let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
        fatfs::format_volume(&mut image, options).unwrap();
        {
            let fs = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).unwrap();
            for (name, text) in files {
                let mut file = fs.root_dir().create_file(name).unwrap();
                file.write_all(text.as_bytes()).unwrap();
            }
        }
        image.into_inner()
    }

    #[test]
    fn a_vfat_seed_sets_host_name_files_environment_and_address() {
        let image = fat_image(&[
            ("meta-data", "instance-id: i-1\nlocal-hostname: box-7\n"),
            (
                "user-data",
                "#cloud-config\nwrite_files:\n  - path: /etc/sandbox.env\n    content: |\n      A=1\n      B=\"two\"\n",
            ),
            (
                "network-config",
                "version: 2\nethernets:\n  id0:\n    addresses: [192.168.0.9/24]\n    routes:\n      - to: default\n        via: 192.168.0.254\n",
            ),
        ]);
        let mut state = State::default();
        Seed::read(image).unwrap().apply(&mut state);
        assert_eq!(state.hostname, "box-7");
        assert_eq!(state.files.read("/etc/sandbox.env").unwrap(), b"A=1\nB=\"two\"\n");
        assert_eq!(state.env.get("B").map(String::as_str), Some("two"));
        assert_eq!(state.address.0.to_string(), "192.168.0.9");
        assert_eq!(state.gateway.to_string(), "192.168.0.254");
    }
}
