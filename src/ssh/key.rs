//! The key by which the gateway is known, and the one key that it lets in.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey, PublicKeyBase64, decode_secret_key};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// No private key is longer.
const LONGEST: u64 = 64 << 10;
/// Others can read a file with these bits.
const OTHERS: u32 = 0o077;

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {what} {} (SSH_HOST_KEY_PATH)", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "cannot use the host key {} (SSH_HOST_KEY_PATH): {why}; repair it, or move it away and a new one is made",
        path.display()
    )]
    Unusable { path: PathBuf, why: String },
    #[error("cannot make a host key")]
    Make(#[source] russh::keys::ssh_key::Error),
}

/// A host key, and whether something is odd about it.
#[derive(Debug)]
pub(super) struct HostKey {
    pub key: PrivateKey,
    /// Made just now.
    pub new: bool,
    /// Others may read the file.
    pub exposed: bool,
}

/// Reads the host key, or makes an Ed25519 key where there is none. What is there is never overwritten. Blocks on files.
///
/// # Errors
/// The file is there and cannot be used, or cannot be made.
pub(super) fn load_or_make(path: &Path) -> Result<HostKey, Error> {
    match read(path)? {
        Some(found) => Ok(found),
        None => make(path),
    }
}

fn read(path: &Path) -> Result<Option<HostKey>, Error> {
    let failed = |what, source| Error::File { what, path: path.to_owned(), source };
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the host key", error)),
    };
    let metadata = file.metadata().map_err(|error| failed("look at the host key", error))?;
    if !metadata.is_file() {
        return Err(unusable("it is not a file".to_owned()));
    }
    let mut text = String::new();
    let read = file.take(LONGEST).read_to_string(&mut text);
    read.map_err(|error| match error.kind() {
        ErrorKind::InvalidData => unusable("it is not a text".to_owned()),
        _ => failed("read the host key", error),
    })?;
    let key = decode_secret_key(&text, None).map_err(|error| match error {
        russh::keys::Error::KeyIsEncrypted => unusable("it is protected by a passphrase".to_owned()),
        error => unusable(error.to_string()),
    })?;
    Ok(Some(HostKey { key, new: false, exposed: metadata.mode() & OTHERS != 0 }))
}

fn make(path: &Path) -> Result<HostKey, Error> {
    let failed = |what, source| Error::File { what, path: path.to_owned(), source };
    let mut random = russh::keys::key::safe_rng();
    let mut key = PrivateKey::random(&mut random, Algorithm::Ed25519).map_err(Error::Make)?;
    key.set_comment("runner-ch");
    let text = key.to_openssh(LineEnding::LF).map_err(Error::Make)?;

    let dir = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| failed("make the directory of", error))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = write(&temporary, text.as_bytes());
    // A link fails where a rename would replace a key that somebody else has put there meanwhile.
    let placed = written.and_then(|()| std::fs::hard_link(&temporary, path));
    let removed = std::fs::remove_file(&temporary);
    match placed {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return read(path)?.ok_or_else(|| failed("read the host key", ErrorKind::NotFound.into()));
        }
        placed => placed.map_err(|error| failed("write the host key", error))?,
    }
    removed.map_err(|error| failed("tidy up beside", error))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| failed("store the directory of", error))?;
    Ok(HostKey { key, new: true, exposed: false })
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// The key that is let in.
#[derive(Debug)]
pub(super) struct Admitted([u8; 32]);

impl Admitted {
    /// Lets this key in.
    pub fn new(key: &PublicKey) -> Self {
        Self(digest(key))
    }

    /// Whether it is this one, in constant time. Digests are compared, so that lengths do not tell anything either.
    pub fn is(&self, key: &PublicKey) -> bool {
        self.0.ct_eq(&digest(key)).into()
    }
}

fn digest(key: &PublicKey) -> [u8; 32] {
    Sha256::digest(key.public_key_bytes()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::chain;

    #[test]
    fn made_once_and_kept() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b/id_rsa");
        let first = load_or_make(&path).unwrap();
        assert!(first.new && !first.exposed);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let again = load_or_make(&path).unwrap();
        assert!(!again.new && again.key == first.key);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_or_make(&path).unwrap().exposed);
    }

    #[test]
    fn what_a_crash_has_left_is_in_nobodys_way() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("key");
        std::fs::write(top.path().join(format!("key.{}.tmp", std::process::id())), "half").unwrap();
        assert!(load_or_make(&path).unwrap().new);
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_key_is_told_and_left_alone() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("key");
        let told = || chain(&load_or_make(&path).unwrap_err());
        for text in ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"] {
            std::fs::write(&path, text).unwrap();
            let error = told();
            assert!(error.contains("SSH_HOST_KEY_PATH") && error.contains("move it away"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(told().contains("not a text"), "{}", told());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(told().contains("not a file"), "{}", told());
        std::fs::write(top.path().join("file"), "x").unwrap();
        let error = load_or_make(&top.path().join("file/key")).unwrap_err();
        assert!(chain(&error).contains("Not a directory"), "{}", chain(&error));
    }

    /// Keys that other programs have made, of all kinds that the original may have left.
    #[test]
    fn keys_of_ssh_keygen() {
        let top = tempfile::tempdir().unwrap();
        let kinds: &[&[&str]] = &[
            &["-t", "ed25519"],
            &["-t", "ecdsa"],
            &["-t", "rsa", "-b", "2048"],
            &["-t", "rsa", "-b", "2048", "-m", "PEM"],
            &["-t", "rsa", "-b", "2048", "-m", "PKCS8"],
        ];
        for (n, kind) in kinds.iter().enumerate() {
            let path = top.path().join(format!("key{n}"));
            let mut make = std::process::Command::new("ssh-keygen");
            let made = make.args(*kind).args(["-q", "-N", "", "-f"]).arg(&path).status();
            assert!(made.expect("the package openssh-client is installed").success());
            let found = load_or_make(&path).unwrap_or_else(|error| panic!("{kind:?}: {}", chain(&error)));
            let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
            let public = PublicKey::from_openssh(public.trim()).unwrap();
            assert!(Admitted::new(&public).is(found.key.public_key()), "{kind:?}");
        }
        let path = top.path().join("locked");
        let made = std::process::Command::new("ssh-keygen").args(["-q", "-N", "secret", "-f"]).arg(&path).status();
        assert!(made.unwrap().success());
        let error = chain(&load_or_make(&path).unwrap_err());
        assert!(error.contains("passphrase"), "{error}");
    }

    #[test]
    fn one_key_is_let_in() {
        let mut random = russh::keys::key::safe_rng();
        let mut key = || PrivateKey::random(&mut random, Algorithm::Ed25519).unwrap().public_key().clone();
        let (ours, other) = (key(), key());
        let admitted = Admitted::new(&ours);
        let mut renamed = ours.clone();
        renamed.set_comment("somebody");
        assert!(admitted.is(&ours) && admitted.is(&renamed) && !admitted.is(&other));
    }
}
