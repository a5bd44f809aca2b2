//! The commands of the store.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::runner::Runner;
use super::{Error, QuarantineCommand, StoreCommand};
use crate::config::{offline, process_env};
use crate::pressure::Pressure;
use crate::store::backup::{self, Header};
use crate::store::restore::restore;
use crate::store::{self, Engine};

pub(super) fn run(command: StoreCommand) -> Result<(), Error> {
    let state = offline::state_path(process_env())?;
    match command {
        StoreCommand::Backup { file } => save(&state, &file),
        StoreCommand::Restore { file, replace } => bring_back(&state, &file, replace),
        StoreCommand::Check => check(&state),
        StoreCommand::Quarantine(command) => quarantine(&state, command),
    }
}

/// The runner that has the store open; none if nobody has.
fn holder(state: &Path) -> Result<Option<Runner>, Error> {
    let failed = |source| Error::File { what: "lock", path: state.to_owned(), source };
    if !state.join("db").exists() {
        return Err(Error::NoStore(state.to_owned()));
    }
    if store::is_in_use(state).map_err(failed)? {
        return Ok(Some(Runner::new(&offline::runner_access(process_env())?)?));
    }
    Ok(None)
}

fn open(state: &Path) -> Result<Engine, Error> {
    // No reserve is made; one that is there is used if the volume is full.
    Ok(Engine::open(state, 0, Pressure::default())?)
}

/// Alone, or not at all.
fn open_alone(state: &Path) -> Result<Engine, Error> {
    match holder(state)? {
        Some(_) => Err(Error::InUse(state.to_owned())),
        None => open(state),
    }
}

fn save(state: &Path, file: &Path) -> Result<(), Error> {
    let runner = holder(state)?;
    let path = partial(file);
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    };
    let new = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed("make", &path))?;
    let done = fill(state, runner.as_ref(), new, &path).and_then(|header| {
        std::fs::rename(&path, file).map_err(failed("name", file))?;
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))?;
        Ok(header)
    });
    match done {
        Ok(header) => {
            println!("saved {} of {} to {}", words(&header), state.display(), file.display());
            if let Some(runner) = runner {
                println!("the runner on {} has the store open and made the backup", runner.address());
            }
            Ok(())
        }
        Err(error) => {
            // It is not whole, and nobody asked for its name.
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Writes the backup and reads it again before it gets its name.
fn fill(state: &Path, runner: Option<&Runner>, mut new: File, path: &Path) -> Result<Header, Error> {
    let failed = |source| Error::File { what: "write", path: path.to_owned(), source };
    match runner {
        Some(runner) => runner.backup(&mut new, path)?,
        None => {
            let mut out = BufWriter::new(&new);
            open(state)?.dump(&mut out)?;
            out.flush().map_err(failed)?;
        }
    }
    new.sync_all().map_err(failed)?;
    let written = File::open(path).map_err(failed)?;
    backup::read(BufReader::new(written), |_| Ok(())).map_err(Error::Incomplete)
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    file.with_file_name(name)
}

fn words(header: &Header) -> String {
    let counts: Vec<_> = header.records.iter().map(|(tree, count)| format!("{count} {tree}")).collect();
    format!("{} (format {})", counts.join(", "), header.store_format)
}

fn bring_back(state: &Path, file: &Path, replace: bool) -> Result<(), Error> {
    let restored = restore(file, state, replace, &stamp())?;
    let header = &restored.header;
    println!("restored {} to {}", words(header), state.display());
    println!("the backup was made by runner-ch {} on {}", header.runner, text_of(header.at));
    if let Some(aside) = restored.aside {
        println!("the store that was there is kept in {}", aside.display());
    }
    Ok(())
}

fn check(state: &Path) -> Result<(), Error> {
    let summary = match holder(state)? {
        Some(runner) => {
            println!("the runner on {} has the store open and says:", runner.address());
            runner.summary()?
        }
        None => serde_json::to_value(open(state)?.summary()?).unwrap_or_default(),
    };
    println!("store    {}", summary["path"].as_str().unwrap_or_default());
    println!("format   {} (this version writes {})", summary["format"], store::format::STORE);
    for (tree, count) in summary["records"].as_object().into_iter().flatten() {
        println!("records  {count} {tree}");
    }
    println!("on disk  {} bytes", summary["bytesOnDisk"]);
    let space = &summary["space"];
    let held = if space["reserveHeld"] == true { "a reserve is held" } else { "no reserve is held" };
    println!("volume   {} bytes free, {held}", space["freeBytes"]);
    if let Some(low) = space["low"].as_str() {
        println!("         {low}");
    }
    match list(&summary) {
        0 => {
            println!("every record can be read");
            Ok(())
        }
        count => Err(Error::Unreadable(count)),
    }
}

/// Prints what is set aside and counts it.
fn list(summary: &serde_json::Value) -> usize {
    let set_aside = summary["setAside"].as_array().map(Vec::as_slice).unwrap_or_default();
    for one in set_aside {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let since = one["at"].as_u64().map_or("not in quarantine".to_owned(), |at| format!("since {}", text_of(at)));
        println!("{}: {} ({} bytes, {since})", text("key"), text("reason"), one["bytes"]);
    }
    set_aside.len()
}

fn quarantine(state: &Path, command: QuarantineCommand) -> Result<(), Error> {
    match command {
        QuarantineCommand::List => {
            let summary = match holder(state)? {
                Some(runner) => runner.summary()?,
                None => serde_json::to_value(open(state)?.summary()?).unwrap_or_default(),
            };
            if list(&summary) == 0 {
                println!("every record can be read");
            }
        }
        QuarantineCommand::Show { key } => {
            let found = open_alone(state)?.quarantined_one(&key)?;
            println!("record   {}", key);
            println!("reason   {}", found.reason);
            println!("since    {}", text_of(found.at));
            println!("bytes    {}", found.bytes.escape_ascii());
        }
        QuarantineCommand::Restore { key } => {
            open_alone(state)?.restore_quarantined(&key)?;
            println!("{key} is back in its place");
        }
        QuarantineCommand::Discard { key } => {
            open_alone(state)?.discard_quarantined(&key)?;
            println!("{key} is gone; what its sandbox has left on the host is not touched by this");
        }
    }
    Ok(())
}

/// This time as it can stand in a file's name.
fn stamp() -> String {
    let now = OffsetDateTime::now_utc();
    let (date, time) = (now.date(), now.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

fn text_of(millis: u64) -> String {
    use time::format_description::well_known::Rfc3339;
    let time = OffsetDateTime::from_unix_timestamp((millis / 1000).try_into().unwrap_or(i64::MAX));
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{millis} ms"))
}
