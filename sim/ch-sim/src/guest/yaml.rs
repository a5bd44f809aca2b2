//! Just enough YAML for seeds: top-level scalars, `write_files`, addresses. Lenient by design.

use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::seed::parse_address;

/// An entry of `write_files`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileEntry {
    pub path: String,
    pub content: Vec<u8>,
    pub append: bool,
}

/// Value of a top-level key.
pub fn scalar(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = unquote(value.trim());
    (!value.is_empty()).then_some(value)
}

/// Entries of `write_files`, also in flow style (user data may be JSON).
pub fn write_files(text: &str) -> Vec<FileEntry> {
    let json = text.trim_start_matches("#cloud-config").trim_start();
    if json.starts_with('{') {
        return json_files(json);
    }
    let mut entries = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with("write_files:") {
            continue;
        }
        let mut entry: Option<Raw> = None;
        while let Some(line) = lines.next_if(|line| !starts_top_level(line)) {
            let trimmed = line.trim_start();
            let item = trimmed.strip_prefix("- ");
            if item.is_some() {
                entries.extend(entry.take().map(Raw::finish));
                entry = Some(Raw::default());
            }
            let offset = line.len() - trimmed.len() + if item.is_some() { 2 } else { 0 };
            let Some((key, value)) = item.unwrap_or(trimmed).split_once(':') else {
                continue;
            };
            let value = value.trim();
            let value = match value.chars().next() {
                Some('|' | '>') => block(&mut lines, offset, value.ends_with('-')),
                _ => unquote(value),
            };
            if let Some(entry) = &mut entry {
                entry.set(key.trim(), value);
            }
        }
        entries.extend(entry.map(Raw::finish));
    }
    entries
}

#[derive(Default)]
struct Raw {
    path: String,
    content: String,
    encoding: String,
    append: bool,
}

impl Raw {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "path" => self.path = value,
            "content" => self.content = value,
            "encoding" => self.encoding = value,
            "append" => self.append = value == "true",
            _ => {}
        }
    }

    fn finish(self) -> FileEntry {
        let encoded = matches!(self.encoding.as_str(), "b64" | "base64");
        let compact: String = self.content.split_whitespace().collect();
        let decoded = encoded.then(|| STANDARD.decode(compact).ok()).flatten();
        FileEntry {
            path: self.path,
            content: decoded.unwrap_or_else(|| self.content.into_bytes()),
            append: self.append,
        }
    }
}

fn json_files(text: &str) -> Vec<FileEntry> {
    let parsed: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let list = parsed.as_ref().and_then(|value| value.get("write_files")?.as_array());
    let entries = list.into_iter().flatten().map(|item| {
        let mut raw = Raw::default();
        for (key, value) in item.as_object().into_iter().flatten() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            raw.set(key, text);
        }
        raw.finish()
    });
    entries.collect()
}

fn starts_top_level(line: &str) -> bool {
    let first = line.chars().next();
    first.is_some_and(|c| !c.is_whitespace() && c != '-' && c != '#')
}

/// Lines of a block scalar: all that are indented deeper than its key.
fn block<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, key_indent: usize, strip: bool) -> String {
    let indent_of = |line: &str| line.len() - line.trim_start().len();
    let mut indent = None;
    let mut text = String::new();
    while let Some(line) = lines.next_if(|line| line.trim().is_empty() || indent_of(line) > key_indent) {
        if line.trim().is_empty() {
            text.push('\n');
            continue;
        }
        let indent = *indent.get_or_insert(indent_of(line));
        text.push_str(line.get(indent..).unwrap_or(line.trim_start()));
        text.push('\n');
    }
    let kept = text.trim_end_matches('\n');
    if strip || kept.is_empty() { kept.to_owned() } else { format!("{kept}\n") }
}

fn unquote(value: &str) -> String {
    let quoted = |q: char| value.len() > 1 && value.starts_with(q) && value.ends_with(q);
    if quoted('"') {
        return serde_json::from_str(value).unwrap_or_else(|_| value.trim_matches('"').to_owned());
    }
    if quoted('\'') {
        return value[1..value.len() - 1].replace("''", "'");
    }
    value.split(" #").next().unwrap_or(value).trim().to_owned()
}

/// First IPv4 address of a network configuration (version 1 or 2).
pub fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let mut tokens = tokens(text).skip_while(|token| !matches!(*token, "addresses" | "address"));
    tokens.find_map(parse_address)
}

/// Gateway of a network configuration: `gateway4`, `gateway` or the `via` of a route.
pub fn gateway(text: &str) -> Option<Ipv4Addr> {
    let mut tokens = tokens(text).peekable();
    while let Some(token) = tokens.next() {
        if matches!(token, "gateway4" | "gateway" | "via") {
            return tokens.peek()?.parse().ok();
        }
    }
    None
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let separators = [' ', '\n', '\t', '[', ']', ',', '"', '\'', '{', '}'];
    let words = text.split(separators).filter(|word| !word.is_empty() && *word != "-");
    words.map(|word| word.trim_end_matches(':'))
}

#[cfg(test)]
mod tests {
    use super::{address, gateway, scalar, write_files};

    #[test]
    fn files_in_all_usual_spellings() {
        let text = "#cloud-config\nhostname: 'h1'\nwrite_files:\n- path: /a\n  content: |\n    x: 1\n\n    - y\n  permissions: '0644'\n- content: aGk=\n  encoding: b64\n  path: /b\n-   path: \"/c\"\n    content: \"l1\\nl2\"\nruncmd:\n  - [ ls ]\n";
        let files = write_files(text);
        assert_eq!(files.len(), 3, "{files:?}");
        assert_eq!((files[0].path.as_str(), &files[0].content[..]), ("/a", &b"x: 1\n\n- y\n"[..]));
        assert_eq!((files[1].path.as_str(), &files[1].content[..]), ("/b", &b"hi"[..]));
        assert_eq!(&files[2].content[..], b"l1\nl2");
        assert_eq!(scalar(text, "hostname").as_deref(), Some("h1"));
        let json = "#cloud-config\n{\"write_files\":[{\"path\":\"/j\",\"content\":\"v\"}]}";
        assert_eq!(write_files(json)[0].path, "/j");
    }

    #[test]
    fn addresses_of_both_versions() {
        let v1 = "version: 1\nconfig:\n- type: physical\n  subnets:\n  - type: static\n    address: 10.1.2.3/16\n    gateway: 10.1.0.1\n";
        assert_eq!(address(v1).map(|a| (a.0.to_string(), a.1)), Some(("10.1.2.3".to_owned(), 16)));
        assert_eq!(gateway(v1).map(|g| g.to_string()).as_deref(), Some("10.1.0.1"));
        assert_eq!(address("version: 2"), None);
    }
}
