//! Options from a file in TOML: a key for each, with the flag's name.
//!
//! On failure: every key that cannot be followed is named, with its line and what to write instead.

use super::settings::{Given, Origin, Problems};
use super::table::{self, CONFIG, Kind, Spec};
use std::fmt;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Reads the text of the file at `path`.
pub fn read(path: &Path, text: &str, problems: &mut Problems) -> Vec<Given> {
    let file = File { path, text };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            problems.add(file.place(error.span().unwrap_or_default().start), file.syntax_error(&error));
            return Vec::new();
        }
    };
    // In the order of the file, as it is read.
    let mut keys: Vec<_> = table.iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);
    let mut given = Vec::new();
    for (key, value) in keys {
        let mut refuse = |at: usize, message: &dyn fmt::Display| {
            problems.add(file.place(at), format!("{}: {message}", key.get_ref()));
        };
        let Some(spec) = table::find(key.get_ref()) else {
            refuse(key.span().start, &unknown(key.get_ref()));
            continue;
        };
        match values(spec, value) {
            Ok(values) => {
                let origin = Origin::File { path: path.to_owned(), line: file.line(key.span().start) };
                given.push(Given { spec, values, origin });
            }
            Err(refused) => refused.iter().for_each(|(at, message)| refuse(*at, message)),
        }
    }
    given
}

fn unknown(key: &str) -> String {
    if key == CONFIG {
        return "a configuration file names no other; give --config FILE".to_owned();
    }
    table::unknown(key, |spec| spec.name.to_owned())
}

/// Where something is wrong, as an offset, and what.
type Refused = Vec<(usize, String)>;

/// The values of an option, each valid alone.
fn values(spec: &Spec, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, Refused> {
    let at = value.span().start;
    if !spec.is_list {
        return one_value(spec, value).map(|value| vec![value]).map_err(|refused| vec![refused]);
    }
    let DeValue::Array(items) = value.get_ref() else {
        return Err(vec![(at, format!("expected an array, as in {}", example(spec)))]);
    };
    if items.is_empty() && !spec.defaults.is_empty() {
        return Err(vec![(at, "an empty array; write an item, or leave the option out".to_owned())]);
    }
    let (mut values, mut refused) = (Vec::new(), Vec::new());
    for item in items {
        match one_value(spec, item) {
            Ok(value) => values.push(value),
            Err(error) => refused.push(error),
        }
    }
    if refused.is_empty() { Ok(values) } else { Err(refused) }
}

fn one_value(spec: &Spec, value: &Spanned<DeValue<'_>>) -> Result<String, (usize, String)> {
    let at = value.span().start;
    let text = match (value.get_ref(), spec.kind) {
        (DeValue::String(text), Kind::Text | Kind::Duration | Kind::Size) => text.clone().into_owned(),
        (DeValue::Integer(number), Kind::Number | Kind::Duration | Kind::Size) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            parsed.map_err(|_| (at, format!("{number}: the number is too large")))?.to_string()
        }
        (other, _) => {
            return Err((at, format!("expected {}, as in {}, not {}", expected(spec), example(spec), kind(other))));
        }
    };
    match table::fault(spec, &text) {
        Some(fault) => Err((at, fault)),
        None => Ok(text),
    }
}

fn expected(spec: &Spec) -> &'static str {
    match spec.kind {
        Kind::Text => "a string",
        Kind::Number => "a number",
        Kind::Duration => "a string or a number of seconds",
        Kind::Size => "a string or a number of octets",
    }
}

/// A line as it could be written.
fn example(spec: &Spec) -> String {
    let value = match (spec.kind, spec.defaults.first()) {
        (Kind::Number, Some(default)) => default.clone(),
        (Kind::Number, None) => "1".to_owned(),
        (_, Some(default)) => format!("{default:?}"),
        (_, None) => "\"...\"".to_owned(),
    };
    if spec.is_list { format!("{} = [{value}]", spec.name) } else { format!("{} = {value}", spec.name) }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A file as it was read.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    /// The line of an offset, counted from 1.
    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|&octet| octet == b'\n').count()
    }

    fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(at))
    }

    /// What is wrong with the text as TOML, and with which part of it.
    fn syntax_error(&self, error: &toml::de::Error) -> String {
        let part = error.span().and_then(|span| self.text.get(span)).and_then(|part| part.lines().next());
        match part.filter(|part| !part.is_empty()) {
            Some(part) => format!("{part}: {}", error.message()),
            None => error.message().to_owned(),
        }
    }
}
