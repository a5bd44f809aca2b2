//! Files of the guest: toolbox routes below /files, and the file commands of the shell.

use serde_json::{Value, json};

use super::fs::{Fs, FsError, Node, resolve};
use super::http::Head;
use super::toolbox::Reply;

/// Directory that relative paths of requests start from.
pub const WORK_DIR: &str = "/home/daytona";

/// Answers a request below /files; `None` when there is no such route.
pub fn answer(head: &Head, body: &[u8], fs: &mut Fs) -> Option<Reply> {
    let path = head.parameter("path").map(|path| resolve(WORK_DIR, &path));
    let target = path.clone().unwrap_or_else(|| WORK_DIR.to_owned());
    let done = match (head.method.as_str(), head.path()) {
        ("GET", "/files") => fs.list(&target).map(|nodes| {
            let infos = nodes.iter().map(|(name, node)| info(name, node));
            Reply::json(200, &Value::from(infos.collect::<Vec<_>>()))
        }),
        ("DELETE", "/files") => {
            let recursive = head.parameter("recursive").as_deref() == Some("true");
            fs.remove(&target, recursive).map(|()| Reply::empty(204))
        }
        ("GET", "/files/info") => {
            let name = target.rsplit('/').next().unwrap_or_default().to_owned();
            fs.get(&target).map(|node| Reply::json(200, &info(&name, node)))
        }
        ("GET", "/files/download") => {
            fs.read(&target).map(|bytes| Reply::bytes("application/octet-stream", bytes.to_vec()))
        }
        ("POST", "/files/upload") => {
            let content = multipart_file(head, body).unwrap_or_else(|| body.to_vec());
            fs.write(&target, &content, false).map(|()| Reply::json(200, &json!({})))
        }
        ("POST", "/files/folder") => {
            let mode = head.parameter("mode");
            let mode = mode.and_then(|mode| u32::from_str_radix(&mode, 8).ok()).unwrap_or(0o755);
            fs.make_dirs(&target, mode).map(|()| Reply::empty(201))
        }
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| {
        let status = match error {
            FsError::NotFound => 404,
            _ => 400,
        };
        Reply::error(status, &format!("{target}: {error}"), head)
    }))
}

/// `FileInfo` of the toolbox.
fn info(name: &str, node: &Node) -> Value {
    let kind = if node.dir { 'd' } else { '-' };
    let letters = ["---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx"];
    let part = |shift: u32| letters[(node.mode >> shift & 7) as usize];
    let modified = rfc3339(node.modified);
    json!({
        "name": name,
        "size": node.content.len(),
        "isDir": node.dir,
        "mode": format!("{kind}{}{}{}", part(6), part(3), part(0)),
        "permissions": format!("{:04o}", node.mode),
        "modTime": modified,
        "modifiedAt": modified,
        "owner": "daytona",
        "group": "daytona",
    })
}

/// UTC time of day in RFC 3339, from seconds since 1970.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days: years start in March, so the leap day is the last one (proleptic Gregorian).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Content of the part called `file` in a multipart body.
fn multipart_file(head: &Head, body: &[u8]) -> Option<Vec<u8>> {
    let boundary = head.header("content-type")?.split("boundary=").nth(1)?;
    let boundary = boundary.split(';').next()?.trim_matches('"');
    let delimiter = format!("--{boundary}").into_bytes();
    let mut starts = body
        .windows(delimiter.len())
        .enumerate()
        .filter(|(_, window)| *window == delimiter)
        .map(|(at, _)| at)
        .collect::<Vec<_>>();
    starts.push(body.len());
    starts.windows(2).find_map(|pair| {
        let part = body.get(pair[0] + delimiter.len()..pair[1])?;
        let end = part.windows(4).position(|w| w == b"\r\n\r\n")?;
        let headers = String::from_utf8_lossy(&part[..end]);
        let is_file = headers.contains("name=\"file\"") || headers.contains("filename=");
        let content = &part[end + 4..];
        is_file.then(|| content.strip_suffix(b"\r\n").unwrap_or(content).to_vec())
    })
}

/// File commands of the shell; the error is the text on the terminal.
pub fn command(name: &str, args: &[String], cwd: &str, fs: &mut Fs) -> Result<String, String> {
    let recursive = args.iter().any(|arg| arg.starts_with('-') && arg.contains(['r', 'R', 'f']));
    let mut paths = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    if name == "ls" && paths.peek().is_none() {
        return listing(fs, cwd).map_err(|error| format!("ls: {error}\n"));
    }
    let mut output = String::new();
    for given in paths {
        let path = resolve(cwd, given);
        let done = match name {
            "cat" => fs.read(&path).map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
            "ls" => listing(fs, &path),
            "mkdir" => fs.make_dirs(&path, 0o755).map(|()| String::new()),
            "rm" => match fs.remove(&path, recursive) {
                Err(FsError::NotFound) if recursive => Ok(String::new()),
                done => done.map(|()| String::new()),
            },
            "touch" => fs.write(&path, b"", true).map(|()| String::new()),
            _ => fs.get(&path).map(|_| String::new()),
        };
        output += &done.map_err(|error| format!("{output}{name}: {given}: {error}\n"))?;
    }
    Ok(output)
}

fn listing(fs: &Fs, path: &str) -> Result<String, FsError> {
    if !fs.get(path)?.dir {
        return Ok(format!("{path}\n"));
    }
    Ok(fs.list(path)?.iter().map(|(name, _)| format!("{name}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::{answer, command, rfc3339};
    use crate::guest::fs::Fs;
    use crate::guest::http::Head;

    #[test]
    fn times_are_civil() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_600), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn uploads_land_where_the_shell_finds_them() {
        let mut fs = Fs::default();
        let mut wire =
            b"POST /files/upload?path=/tmp/u HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=XX\r\n\r\n"
                .to_vec();
        let head = Head::take(&mut wire).unwrap().unwrap();
        let body =
            b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"u\"\r\n\r\nab\r\ncd\r\n--XX--\r\n";
        answer(&head, body, &mut fs).unwrap();
        let cat = command("cat", &["/tmp/u".to_owned()], "/", &mut fs);
        assert_eq!(cat.as_deref(), Ok("ab\r\ncd"));
        let missing = command("cat", &["nope".to_owned()], "/", &mut fs);
        assert_eq!(missing.unwrap_err(), "cat: nope: No such file or directory\n");
    }
}
