//! Commands of the shell that only need text and the disk.

use super::machine::Machine;
use crate::disk::BLOCK_BYTES;

/// `printf FORMAT ARGS...` with `%s`, `%d`, `%%` and the usual escapes.
pub fn printf(args: &[String]) -> String {
    let Some((format, rest)) = args.split_first() else {
        return String::new();
    };
    let mut rest = rest.iter();
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\' || c == '%') {
            (_, false) => text.push(c),
            (marker, _) => match (marker, chars.next()) {
                ('\\', Some('n')) => text.push('\n'),
                ('\\', Some('t')) => text.push('\t'),
                ('%', Some('s' | 'd')) => text.push_str(rest.next().map_or("", String::as_str)),
                (_, Some(other)) => text.push(other),
                (marker, None) => text.push(marker),
            },
        }
    }
    text
}

/// `write-block N TEXT`, `read-block N`, `sync`: the guest's disk.
pub fn block(name: &str, args: &[String], machine: &mut Machine) -> std::io::Result<String> {
    let missing = || std::io::Error::other("no writable disk");
    let disk = machine.disk.clone().ok_or_else(missing)?;
    let mut disk = disk.lock().map_err(|_| std::io::Error::other("disk is unusable"))?;
    if name == "sync" {
        return disk.flush().map(|()| String::new());
    }
    let index = args.first().and_then(|text| text.parse().ok());
    let index = index.ok_or_else(|| std::io::Error::other("usage: N [TEXT]"))?;
    if name == "read-block" {
        let block = disk.read_block(index)?;
        let end = block.iter().position(|byte| *byte == 0).unwrap_or(BLOCK_BYTES);
        return Ok(format!("{}\n", String::from_utf8_lossy(&block[..end])));
    }
    let text = args[1..].join(" ");
    let mut block = [0; BLOCK_BYTES];
    let length = text.len().min(BLOCK_BYTES);
    block[..length].copy_from_slice(&text.as_bytes()[..length]);
    disk.write_block(index, &block).map(|()| String::new())
}
