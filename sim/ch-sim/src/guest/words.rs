//! Shell text into commands: quotes, variables, redirection, `;`, `&&`, `||`.

use std::collections::BTreeMap;

/// How a command depends on the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Always,
    IfOk,
    IfFailed,
}

/// A command line up to the next link; variables are not expanded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub link: Link,
    pub text: String,
}

/// Words of a command and where its output goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    pub args: Vec<String>,
    /// File for the output, and whether it is appended.
    pub redirect: Option<(String, bool)>,
}

/// Splits a script at `;`, newline, `&&` and `||` outside quotes.
pub fn lines(script: &str) -> Vec<Line> {
    let mut found = Vec::new();
    let mut link = Link::Always;
    let mut text = String::new();
    let mut quote = None;
    let mut chars = script.chars().peekable();
    let mut push = |link, text: &mut String| {
        let line = std::mem::take(text).trim().to_owned();
        if !line.is_empty() {
            found.push(Line { link, text: line });
        }
    };
    while let Some(c) = chars.next() {
        let next = match (quote, c, chars.peek()) {
            (Some(open), _, _) => {
                if c == open {
                    quote = None;
                }
                None
            }
            (None, '\'' | '"', _) => {
                quote = Some(c);
                None
            }
            (None, '&', Some('&')) => Some((Link::IfOk, true)),
            (None, '|', Some('|')) => Some((Link::IfFailed, true)),
            (None, ';' | '\n', _) => Some((Link::Always, false)),
            _ => None,
        };
        match next {
            Some((next_link, double)) => {
                push(link, &mut text);
                link = next_link;
                if double {
                    chars.next();
                }
            }
            None => {
                text.push(c);
                if c == '\\' && quote != Some('\'') {
                    text.extend(chars.next());
                }
            }
        }
    }
    push(link, &mut text);
    found
}

/// Splits one command into words, expanding variables; `status` is `$?`.
pub fn words(text: &str, env: &BTreeMap<String, String>, status: i32) -> Words {
    let mut parser = Parser { words: Words::default(), word: None, target: None };
    let mut chars = text.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                parser.push("");
            }
            (None | Some('"'), '\\') => {
                let escaped = chars.next().unwrap_or('\\');
                let plain = quote.is_none() || matches!(escaped, '"' | '\\' | '$' | '`');
                if !plain {
                    parser.push("\\");
                }
                parser.push(escaped.encode_utf8(&mut [0; 4]));
            }
            (None | Some('"'), '$') => {
                let name = variable(&mut chars);
                match name.as_str() {
                    "" => parser.push("$"),
                    "?" => parser.push(&status.to_string()),
                    name => parser.push(env.get(name).map_or("", String::as_str)),
                }
            }
            (None, '>') => {
                parser.end_word();
                let append = chars.next_if_eq(&'>').is_some();
                parser.target = Some(append);
            }
            (None, c) if c.is_whitespace() => parser.end_word(),
            (_, c) => parser.push(c.encode_utf8(&mut [0; 4])),
        }
    }
    parser.end_word();
    parser.words
}

struct Parser {
    words: Words,
    word: Option<String>,
    /// A redirection waits for its file; true appends.
    target: Option<bool>,
}

impl Parser {
    fn push(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        match self.target.take() {
            // `2>&1` and the like: both outputs are one here.
            Some(_) if word.starts_with('&') => {
                if self.words.args.last().is_some_and(|last| last == "2") {
                    self.words.args.pop();
                }
            }
            Some(append) => self.words.redirect = Some((word, append)),
            None => self.words.args.push(word),
        }
    }
}

fn variable(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    if chars.next_if_eq(&'?').is_some() {
        return "?".to_owned();
    }
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if braced {
        chars.next_if_eq(&'}');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{Link, lines, words};
    use std::collections::BTreeMap;

    #[test]
    fn scripts_are_split_outside_quotes() {
        let found = lines("echo 'a;b' && true || false; pwd\nls");
        let texts: Vec<(Link, &str)> = found.iter().map(|l| (l.link, l.text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (Link::Always, "echo 'a;b'"),
                (Link::IfOk, "true"),
                (Link::IfFailed, "false"),
                (Link::Always, "pwd"),
                (Link::Always, "ls"),
            ]
        );
    }

    #[test]
    fn words_are_quoted_expanded_and_redirected() {
        let env = BTreeMap::from([("A".to_owned(), "x y".to_owned())]);
        let found = words(r#"echo "$A" '$A' ${A}z a\ b "" $? >> /tmp/f 2>&1"#, &env, 3);
        assert_eq!(found.args, ["echo", "x y", "$A", "x yz", "a b", "", "3"]);
        assert_eq!(found.redirect, Some(("/tmp/f".to_owned(), true)));
    }
}
