//! The guest's file system: a map in memory.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes all files together may have.
pub const CAPACITY: usize = 64 << 20;

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub dir: bool,
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: u64,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub content: Vec<u8>,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// Why a file operation fails; the texts are those of errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    #[error("No such file or directory")]
    NotFound,
    #[error("Is a directory")]
    IsDirectory,
    #[error("Not a directory")]
    NotDirectory,
    #[error("Directory not empty")]
    NotEmpty,
    #[error("No space left on device")]
    Full,
}

/// Absolute, normalised paths to nodes. The root itself is always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fs(BTreeMap<String, Node>);

impl Default for Fs {
    fn default() -> Self {
        let mut fs = Self(BTreeMap::new());
        fs.0.insert("/".to_owned(), Node::dir(0o755));
        for path in ["/etc", "/home/daytona", "/root", "/tmp", "/var/log"] {
            // The paths are absolute and there is no file in the way.
            let _ = fs.make_dirs(path, 0o755);
        }
        fs
    }
}

impl Node {
    fn dir(mode: u32) -> Self {
        Self { dir: true, mode, modified: now(), content: Vec::new() }
    }
}

/// Joins a path to a working directory and removes `.`, `..` and double slashes.
pub fn resolve(cwd: &str, path: &str) -> String {
    let joined = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{cwd}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

impl Fs {
    /// The node at an absolute path.
    pub fn get(&self, path: &str) -> Result<&Node, FsError> {
        self.0.get(path).ok_or(FsError::NotFound)
    }

    /// Content of a file.
    pub fn read(&self, path: &str) -> Result<&[u8], FsError> {
        match self.get(path)? {
            node if node.dir => Err(FsError::IsDirectory),
            node => Ok(&node.content),
        }
    }

    /// Replaces or extends a file; its directories are made.
    pub fn write(&mut self, path: &str, bytes: &[u8], append: bool) -> Result<(), FsError> {
        if self.used() + bytes.len() > CAPACITY {
            return Err(FsError::Full);
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_dirs(if parent.is_empty() { "/" } else { parent }, 0o755)?;
        }
        let node = self.0.entry(path.to_owned()).or_insert_with(|| Node {
            dir: false,
            mode: 0o644,
            modified: 0,
            content: Vec::new(),
        });
        if node.dir {
            return Err(FsError::IsDirectory);
        }
        if !append {
            node.content.clear();
        }
        node.content.extend_from_slice(bytes);
        node.modified = now();
        Ok(())
    }

    /// Makes a directory and those above it.
    pub fn make_dirs(&mut self, path: &str, mode: u32) -> Result<(), FsError> {
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = format!("{at}/{part}");
            match self.0.get(&at) {
                Some(node) if !node.dir => return Err(FsError::NotDirectory),
                Some(_) => {}
                None => drop(self.0.insert(at.clone(), Node::dir(mode))),
            }
        }
        Ok(())
    }

    /// Names and nodes in a directory.
    pub fn list(&self, path: &str) -> Result<Vec<(String, &Node)>, FsError> {
        if !self.get(path)?.dir {
            return Err(FsError::NotDirectory);
        }
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        let inside = self.0.iter().filter_map(|(name, node)| {
            let rest = name.strip_prefix(&prefix)?;
            (!rest.is_empty() && !rest.contains('/')).then(|| (rest.to_owned(), node))
        });
        Ok(inside.collect())
    }

    /// Removes a file, or a directory with all in it when `recursive`.
    pub fn remove(&mut self, path: &str, recursive: bool) -> Result<(), FsError> {
        let node = self.get(path)?;
        let below = format!("{path}/");
        if node.dir && !recursive && self.0.keys().any(|name| name.starts_with(&below)) {
            return Err(FsError::NotEmpty);
        }
        self.0.retain(|name, _| name != path && !name.starts_with(&below));
        Ok(())
    }

    fn used(&self) -> usize {
        self.0.values().map(|node| node.content.len()).sum()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::{Fs, FsError, resolve};

    #[test]
    fn paths_are_normalised() {
        assert_eq!(resolve("/home/x", "../y/./z"), "/home/y/z");
        assert_eq!(resolve("/", "//a//b/.."), "/a");
        assert_eq!(resolve("/a", ".."), "/");
    }

    #[test]
    fn files_and_directories() {
        let mut fs = Fs::default();
        fs.write("/a/b/c", b"one", false).unwrap();
        fs.write("/a/b/c", b"two", true).unwrap();
        assert_eq!(fs.read("/a/b/c").unwrap(), b"onetwo");
        assert_eq!(fs.read("/a/b"), Err(FsError::IsDirectory));
        assert_eq!(fs.remove("/a", false), Err(FsError::NotEmpty));
        let names: Vec<String> = fs.list("/").unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a", "etc", "home", "root", "tmp", "var"]);
        fs.remove("/a", true).unwrap();
        assert_eq!(fs.read("/a/b/c"), Err(FsError::NotFound));
        let json = serde_json::to_string(&fs).unwrap();
        assert_eq!(serde_json::from_str::<Fs>(&json).unwrap(), fs);
    }
}
