//! What was written where: the defaults that are compiled in, then the file that RUNNER_CONFIG_FILE
//! names, then the environment. Values stay text here; [`super::check`] gives them a meaning, because
//! a typed read would stop at the first value of a wrong type and hide the others.

use std::collections::BTreeMap;

use config::{Config as Layers, Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::problem::{Problem, masked, shown};

/// The defaults, and by that also the list of all known settings.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Variable that names the configuration file.
pub(super) const FILE_VARIABLE: &str = "RUNNER_CONFIG_FILE";

/// Settings where an empty text is a value of its own and not "not set".
const EMPTY_IS_A_VALUE: &[&str] = &["CH_INITRAMFS_PATH"];

/// Settings whose values are never shown.
const SECRETS: &[&str] = &[
    "API_TOKEN",
    "DAYTONA_RUNNER_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    // Public if it is right; a private key may be there by mistake.
    "SSH_PUBLIC_KEY",
];

/// Origin that the `config` crate gives to values of its environment source.
const ENVIRONMENT: &str = "the environment";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// config/default.toml.
    Default,
    /// The file that RUNNER_CONFIG_FILE names.
    File(String),
    /// The environment.
    Environment,
}

/// One setting as text.
#[derive(Clone)]
pub(super) struct Setting {
    /// The value, without blanks around it.
    pub text: String,
    /// Where it was found.
    pub origin: Origin,
}

/// All known settings by variable name.
pub(super) struct Raw {
    settings: BTreeMap<String, Setting>,
    /// Things worth a log line.
    pub warnings: Vec<String>,
    /// What is wrong already.
    pub problems: Vec<Problem>,
}

impl Raw {
    /// Reads all layers. Faults are in `problems`; what could be read is there all the same, so that
    /// the checks can go on and tell the rest.
    pub fn read(env: impl Iterator<Item = (String, String)>) -> Self {
        let mut raw = Raw { settings: BTreeMap::new(), warnings: Vec::new(), problems: Vec::new() };
        match raw.layers(env) {
            Ok(values) => raw.settings = values.into_iter().filter_map(setting).collect(),
            Err(reason) => raw.problems.push(Problem::new("the configuration", reason)),
        }
        raw.refuse_control_characters();
        raw
    }

    /// The setting; every name that the checks use stands in config/default.toml, which a test proves.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    /// True when somebody other than the defaults gave a value.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|setting| setting.origin != Origin::Default)
    }

    /// A problem with a setting's value.
    pub fn problem(&self, name: &str, expected: String) -> Problem {
        let setting = self.get(name).filter(|setting| !setting.text.is_empty());
        let value = setting
            .map(|setting| if is_secret(name, &setting.text) { masked(&setting.text) } else { shown(&setting.text) });
        let file = setting.and_then(|setting| match &setting.origin {
            Origin::File(path) => Some(path.clone()),
            Origin::Default | Origin::Environment => None,
        });
        Problem { subject: name.to_owned(), value, file, expected }
    }

    fn layers(&mut self, env: impl Iterator<Item = (String, String)>) -> Result<Map<String, Value>, String> {
        let defaults = toml(DEFAULTS)?;
        let env = self.known_variables(&defaults, env);
        let file = match env.get(FILE_VARIABLE) {
            Some(path) => self.read_file(&defaults, path),
            None => Map::new(),
        };
        Layers::builder()
            .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
            .add_source(Checked(file))
            .add_source(Environment::default().source(Some(env)))
            .build()
            .and_then(|layers| layers.collect())
            .map_err(|error| error.to_string())
    }

    fn known_variables(
        &mut self,
        defaults: &Map<String, Value>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Map<String, String> {
        let mut known = Map::new();
        for (name, value) in env {
            let value = value.trim();
            if !is_variable(defaults, &name) {
                self.warn_of_typo(defaults, &name);
            } else if !value.is_empty() || EMPTY_IS_A_VALUE.contains(&name.as_str()) {
                known.insert(name, value.to_owned());
            }
        }
        known
    }

    /// The environment is full of other programs' variables; only these two prefixes are ours alone.
    fn warn_of_typo(&mut self, defaults: &Map<String, Value>, name: &str) {
        if name.starts_with("CH_") || name.starts_with("RUNNER_") {
            let hint = nearest(defaults, name).map(|known| format!("; did you mean {}?", known.to_uppercase()));
            let hint = hint.unwrap_or_default();
            self.warnings.push(format!("{name} is not a variable of this runner and has no effect{hint}"));
        }
    }

    fn read_file(&mut self, defaults: &Map<String, Value>, path: &str) -> Map<String, Value> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("expected a readable TOML file: {error}"));
        let values = match text.and_then(|text| toml(&text).map_err(|reason| format!("expected a TOML file: {reason}")))
        {
            Ok(values) => values,
            Err(expected) => {
                self.problems.push(Problem { value: Some(shown(path)), ..Problem::new(FILE_VARIABLE, expected) });
                return Map::new();
            }
        };
        let mut usable = Map::new();
        for (key, value) in values {
            match file_value(defaults, &key, value) {
                Ok(text) if text.is_empty() && !EMPTY_IS_A_VALUE.contains(&key.to_uppercase().as_str()) => {}
                Ok(text) => drop(usable.insert(key, Value::new(Some(&path.to_owned()), text))),
                Err(expected) => {
                    self.problems.push(Problem { file: Some(path.to_owned()), ..Problem::new(key, expected) });
                }
            }
        }
        usable
    }

    /// Line breaks and their like have no place in any setting; in a log line or a kernel command line
    /// they would pretend to be something else.
    fn refuse_control_characters(&mut self) {
        let bad = |text: &str| text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER);
        let names = self.settings.iter().filter(|(_, setting)| bad(&setting.text)).map(|(name, _)| name);
        let found: Vec<Problem> =
            names.map(|name| self.problem(name, "expected UTF-8 text without control characters".into())).collect();
        self.problems.extend(found);
    }
}

/// The values of the configuration file, after their keys were checked.
#[derive(Debug, Clone)]
struct Checked(Map<String, Value>);

impl Source for Checked {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// A URL with a user name in it may hold a password too.
fn is_secret(name: &str, text: &str) -> bool {
    SECRETS.contains(&name) || (text.contains("://") && text.contains('@'))
}

fn is_variable(defaults: &Map<String, Value>, name: &str) -> bool {
    defaults.contains_key(&name.to_lowercase()) && name == name.to_uppercase()
}

/// The value of a key of the file as text, or what would have been right.
fn file_value(defaults: &Map<String, Value>, key: &str, value: Value) -> Result<String, String> {
    if key.eq_ignore_ascii_case(FILE_VARIABLE) {
        return Err("expected no such key here: one configuration file cannot name another, set the variable".into());
    }
    if !defaults.contains_key(key) {
        let hint = nearest(defaults, key).map(|known| format!("; did you mean {known}?"));
        return Err(format!("there is no such setting{}", hint.unwrap_or_default()));
    }
    text(value).ok_or_else(|| "expected a text, a number, true, false, or a list of texts".into())
}

fn setting((key, value): (String, Value)) -> Option<(String, Setting)> {
    let origin = match value.origin() {
        None => Origin::Default,
        Some(ENVIRONMENT) => Origin::Environment,
        Some(path) => Origin::File(path.to_owned()),
    };
    text(value).map(|text| (key.to_uppercase(), Setting { text, origin }))
}

fn text(value: Value) -> Option<String> {
    match value.kind {
        ValueKind::Array(items) => items.into_iter().map(text).collect::<Option<Vec<_>>>().map(|texts| texts.join(",")),
        ValueKind::Table(_) | ValueKind::Nil => None,
        _ => value.into_string().ok().map(|text| text.trim().to_owned()),
    }
}

fn toml(text: &str) -> Result<Map<String, Value>, String> {
    let layer = Layers::builder().add_source(File::from_str(text, FileFormat::Toml)).build();
    layer.and_then(|layer| layer.collect()).map_err(|error| without_excerpt(&error.to_string()))
}

/// The parser shows the line it stumbled over, and that may be the one with the token: keep the place
/// and the reason only.
fn without_excerpt(error: &str) -> String {
    let kept: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|')).collect();
    kept.join(": ")
}

/// The known setting that a mistyped name probably meant.
fn nearest(defaults: &Map<String, Value>, name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let best = defaults.keys().map(|key| (distance(key, &name), key)).min()?;
    (best.0 <= 1 + name.len() / 6).then(|| best.1.clone())
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Raw {
        Raw::read(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = file("api_port = 1111\npoll_limit = 7\nrunner_network_deny = [\"10.0.0.0/8\", \"172.16.0.0/12\"]\n");
        let path = file.path().to_str().unwrap();
        let raw = read(&[("RUNNER_CONFIG_FILE", path), ("API_PORT", " 2222 ")]);
        assert!(raw.problems.is_empty(), "{:?}", raw.problems);
        let of = |name: &str| raw.get(name).map(|s| (s.text.clone(), s.origin.clone())).unwrap();
        assert_eq!(of("API_PORT"), ("2222".into(), Origin::Environment));
        assert_eq!(of("POLL_LIMIT"), ("7".into(), Origin::File(path.into())));
        assert_eq!(of("RUNNER_NETWORK_DENY").0, "10.0.0.0/8,172.16.0.0/12");
        assert_eq!(of("CH_BRIDGE_NAME"), ("br0".into(), Origin::Default));
        assert!(raw.is_set("POLL_LIMIT") && !raw.is_set("CH_BRIDGE_NAME"));
    }

    #[test]
    fn an_empty_variable_is_not_set_but_for_the_initramfs() {
        let raw = read(&[("API_PORT", ""), ("CH_INITRAMFS_PATH", "")]);
        assert_eq!(raw.get("API_PORT").unwrap().text, "3006");
        assert_eq!(raw.get("CH_INITRAMFS_PATH").unwrap().text, "");
        let file = file("ch_initramfs_path = \"\"\napi_port = \"\"\n");
        let raw = read(&[("RUNNER_CONFIG_FILE", file.path().to_str().unwrap())]);
        assert_eq!(raw.get("API_PORT").unwrap().text, "3006");
        assert_eq!(raw.get("CH_INITRAMFS_PATH").unwrap().text, "");
    }

    #[test]
    fn wrong_keys_of_the_file_are_all_named() {
        let file = file("api_prot = 1\nAPI_PORT = 2\n[api]\nport = 3\n[ch_bridge_name]\nx = 1\n");
        let raw = read(&[("RUNNER_CONFIG_FILE", file.path().to_str().unwrap())]);
        let mut found: Vec<String> = raw.problems.iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].contains("API_PORT") && found[0].ends_with("did you mean api_port?"), "{}", found[0]);
        assert!(found[1].starts_with("api (in ") && found[1].contains("no such setting"), "{}", found[1]);
        assert!(found[2].ends_with("did you mean api_port?"), "{}", found[2]);
        assert!(found[3].contains("expected a text"), "{}", found[3]);
    }

    #[test]
    fn a_broken_file_tells_the_place_but_not_the_token() {
        let file = file("# x\napi_token = hunter2-hunter2-hunter2\n");
        let raw = read(&[("RUNNER_CONFIG_FILE", file.path().to_str().unwrap())]);
        let text = raw.problems[0].to_string();
        assert!(text.contains("line 2") && !text.contains("hunter2"), "{text}");
        let raw = read(&[("RUNNER_CONFIG_FILE", "/nowhere/runner.toml")]);
        assert!(raw.problems[0].to_string().contains("No such file"), "{}", raw.problems[0]);
    }

    #[test]
    fn a_mistyped_variable_is_warned_of() {
        let raw = read(&[("CH_BRIDGE_NAM", "x"), ("HOME", "/root"), ("RUNNER_OS", "Linux"), ("api_port", "1")]);
        assert_eq!(raw.warnings.len(), 2, "{:?}", raw.warnings);
        assert!(raw.warnings[0].ends_with("did you mean CH_BRIDGE_NAME?"), "{}", raw.warnings[0]);
        assert_eq!(raw.get("API_PORT").unwrap().text, "3006");
    }

    #[test]
    fn control_characters_are_refused_and_secrets_masked() {
        let raw = read(&[("CH_KERNEL_CMDLINE", "root=a\nroot=b"), ("API_TOKEN", "hunter2\u{FFFD}")]);
        let text: Vec<String> = raw.problems.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 2);
        assert!(text[0].starts_with("API_TOKEN = *** (8 characters): expected"), "{}", text[0]);
        assert!(text[1].contains("root=a\\nroot=b"), "{}", text[1]);
    }

    #[test]
    fn distances() {
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")), (3, 3, 0));
    }
}
