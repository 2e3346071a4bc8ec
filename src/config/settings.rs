//! What the operator gave, from all places: flags count more than the environment, the environment
//! more than the file, the file more than defaults.
//!
//! A repeatable option that is given at a higher place replaces the whole list of a lower one. On
//! failure: [`LoadError`] has every fault that was found, each with its place (file and line, variable,
//! or flag) and the remedy.

use super::options::ServeOptions;
use super::table::{self, CONFIG, Kind, Spec};
use super::{Config, ConfigError, environment, file, units};
use clap::parser::ValueSource;
use clap::{ArgMatches, FromArgMatches};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Where options come from. Read anew by each [`load`].
#[derive(Clone, Debug)]
pub struct Sources {
    /// The arguments of `serve`, without the program's name and the subcommand.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What the machine is called, for lack of a `--hostname`.
    pub machine_name: String,
    /// Reads the file, and those that options name.
    pub read_file: fn(&Path) -> io::Result<String>,
}

/// What the operator gave, read and checked.
#[derive(Debug)]
pub struct Loaded {
    /// What the gateway does.
    pub config: Config,
    /// The options it was made of.
    pub settings: Settings,
}

/// Every option, in the order of `--help`.
#[derive(Clone, Debug)]
pub struct Settings(Vec<Setting>);

/// An option's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name: that of the flag, without the dashes.
    pub name: &'static str,
    /// Times and sizes in the largest unit that shows them whole. Several if it is repeatable; none if
    /// nobody gave it and it has no default.
    pub values: Vec<String>,
    /// Who gave them.
    pub origin: Origin,
    is_list: bool,
    is_number: bool,
}

/// Where an option was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By a flag.
    Flag,
    /// By the variable of this name.
    Environment(String),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the key, counted from 1.
        line: usize,
    },
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Environment(variable) => f.write_str(variable),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// An option that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it was.
    pub from: Vec<String>,
    /// What it is now.
    pub to: Vec<String>,
}

impl Settings {
    /// All of them, in the order of `--help`.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    /// The options whose values are others in `newer`, wherever they were given.
    #[must_use]
    pub fn changes(&self, newer: &Settings) -> Vec<Change> {
        let pairs = self.0.iter().zip(&newer.0).filter(|(old, new)| old.values != new.values);
        pairs.map(|(old, new)| Change { name: old.name, from: old.values.clone(), to: new.values.clone() }).collect()
    }

    /// Where a fault in an option is, as a message begins.
    fn place(&self, flag: &str) -> String {
        let setting = self.0.iter().find(|setting| Some(setting.name) == flag.strip_prefix("--"));
        match setting.map(|setting| (&setting.origin, setting.name)) {
            Some((Origin::Environment(variable), _)) => variable.clone(),
            Some((origin @ Origin::File { .. }, name)) => format!("{origin}: {name}"),
            _ => flag.to_owned(),
        }
    }
}

/// As a file for `--config`, with origins.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|setting| writeln!(f, "{setting}"))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { name, values, origin, .. } = self;
        let item = |value: &String| match value.parse() {
            Ok(number) if self.is_number => toml::Value::Integer(number),
            _ => toml::Value::String(value.clone()),
        };
        match values.first() {
            _ if self.is_list => write!(f, "{name} = {}", toml::Value::Array(values.iter().map(item).collect()))?,
            Some(value) => write!(f, "{name} = {}", item(value))?,
            None => write!(f, "# {name} is not set")?,
        }
        write!(f, "  # {origin}")
    }
}

/// Faults of what the operator gave; one at least.
#[derive(Debug, PartialEq, Eq)]
pub struct LoadError(Vec<String>);

impl LoadError {
    /// A line for each: place, what is wrong, remedy.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A line for each fault.
impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for LoadError {}

/// The faults so far.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, place: impl fmt::Display, message: impl fmt::Display) {
        self.0.push(format!("{place}: {message}"));
    }

    pub(super) fn into_result(self) -> Result<(), LoadError> {
        if self.0.is_empty() { Ok(()) } else { Err(LoadError(self.0)) }
    }
}

/// An option that somebody gave.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) spec: &'static Spec,
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
}

/// Reads flags, environment and file, and checks each option and all of them together.
///
/// # Errors
/// All faults of single options; and if there are none, those of all of them together.
pub fn load(sources: &Sources) -> Result<Loaded, LoadError> {
    let mut problems = Problems::default();
    let flags = match table::parse(sources.arguments.iter().cloned()) {
        Ok(flags) => flags,
        Err(error) => return Err(LoadError(vec![error.to_string().trim_end().to_owned()])),
    };
    let from_flags = given_by_flags(&flags, &mut problems);
    let environment = environment::read(&sources.environment, &mut problems);
    let path = flags.get_one::<PathBuf>(CONFIG).or(environment.config.as_ref());
    let from_file = match path.map(|path| (path, (sources.read_file)(path))) {
        None => Vec::new(),
        Some((path, Ok(text))) => file::read(path, &text, &mut problems),
        Some((path, Err(error))) => {
            problems.add(
                path.display(),
                format_args!("cannot read the configuration: {error}; name a TOML file that this user may read"),
            );
            Vec::new()
        }
    };
    problems.into_result()?;
    let settings = merge([from_flags, environment.given, from_file]);
    let options = settings.options()?;
    let config = Config::new(options, &sources.machine_name, sources.read_file);
    let placed = |fault: &ConfigError| format!("{}: {}", settings.place(fault.option), fault.message);
    let config = config.map_err(|faults| LoadError(faults.iter().map(placed).collect()))?;
    Ok(Loaded { config, settings })
}

fn given_by_flags(flags: &ArgMatches, problems: &mut Problems) -> Vec<Given> {
    let mut given = Vec::new();
    for spec in table::options() {
        let id = spec.id;
        if flags.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let values: Option<Vec<&str>> = flags.get_raw(id).into_iter().flatten().map(OsStr::to_str).collect();
        match values {
            Some(values) => {
                let values = values.into_iter().map(str::to_owned).collect();
                given.push(Given { spec, values, origin: Origin::Flag });
            }
            None => problems.add(format_args!("--{}", spec.name), "its value is not UTF-8; write it in UTF-8"),
        }
    }
    given
}

/// Every option as the first of the places has it that has it at all.
fn merge(mut places: [Vec<Given>; 3]) -> Settings {
    let setting = |spec: &'static Spec| {
        let mut given = places.iter_mut().filter_map(|place| {
            let index = place.iter().position(|given| given.spec.name == spec.name)?;
            Some(place.swap_remove(index))
        });
        let (values, origin) = match given.next() {
            Some(given) => (given.values, given.origin),
            None => (spec.defaults.clone(), Origin::Default),
        };
        Setting {
            name: spec.name,
            values: values.iter().map(|value| shown(spec.kind, value)).collect(),
            origin,
            is_list: spec.is_list,
            is_number: spec.kind == Kind::Number,
        }
    };
    Settings(table::options().iter().map(setting).collect())
}

/// A value in the form that is the same for all who mean the same.
fn shown(kind: Kind, value: &str) -> String {
    let shown = match kind {
        Kind::Text | Kind::Number => None,
        Kind::Duration => units::duration(value).ok().map(units::show),
        Kind::Size => units::size(value).ok().map(units::show_size),
    };
    shown.unwrap_or_else(|| value.to_owned())
}

impl Settings {
    /// As flags would have said it. Defaults are given too, so that there is one way to them.
    fn options(&self) -> Result<ServeOptions, LoadError> {
        let flags =
            self.0.iter().flat_map(|setting| setting.values.iter().map(|value| table::flag(setting.name, value)));
        let matches = table::parse(flags);
        let options = matches.and_then(|matches| ServeOptions::from_arg_matches(&matches));
        options.map_err(|error| LoadError(vec![error.to_string().trim_end().to_owned()]))
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
