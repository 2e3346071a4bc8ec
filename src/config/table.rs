//! The table of options as files and the environment see it: derived from the flags of `serve`, so
//! that there is one list of options.

use super::options::ServeOptions;
use clap::builder::{OsStr, StyledStr, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command};
use std::any::TypeId;
use std::error::Error;
use std::ffi::OsString;
use std::sync::LazyLock;
use std::time::Duration;

/// The option that names the file. Flag and variable only: a file names no other.
pub const CONFIG: &str = "config";

/// What the variables' names begin with.
pub const PREFIX: &str = "GATEPOST_";

/// How alike two names must be for the one to be suggested for the other: 1 is the same.
const ALIKE: f64 = 0.85;

/// An option that flags, variables and files may give.
#[derive(Debug)]
pub struct Spec {
    /// What clap knows it by.
    pub id: &'static str,
    /// Its name: of the flag without dashes, and of a file's key.
    pub name: &'static str,
    /// The variable's name.
    pub variable: String,
    /// Whether it can be given more than once.
    pub is_list: bool,
    /// What its values are.
    pub kind: Kind,
    /// What holds where nobody gives it.
    pub defaults: Vec<String>,
}

/// What the values of an option are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number.
    Number,
    /// A time, as in `5s`; a number is seconds.
    Duration,
    /// A size, as in `10MB`; a number is octets.
    Size,
}

impl Kind {
    /// The type that the value parses to tells.
    fn of(parser: &ValueParser) -> Self {
        let id = parser.type_id();
        let is_any_of = |types: &[TypeId]| types.iter().any(|other| id == *other);
        if is_any_of(&[TypeId::of::<Duration>()]) {
            return Kind::Duration;
        }
        if is_any_of(&[TypeId::of::<u64>()]) {
            return Kind::Size;
        }
        if is_any_of(&[TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<usize>()]) {
            return Kind::Number;
        }
        Kind::Text
    }
}

/// The flags alone, as `serve` and `check` have them.
static FLAGS: LazyLock<Command> =
    LazyLock::new(|| ServeOptions::augment_args(Command::new("gatepost").no_binary_name(true)));

static OPTIONS: LazyLock<Vec<Spec>> = LazyLock::new(|| {
    let flags = FLAGS.get_arguments().filter_map(|flag| Some((flag, flag.get_long()?)));
    flags
        .filter(|(_, name)| *name != CONFIG)
        .map(|(flag, name)| Spec {
            id: flag.get_id().as_str(),
            name,
            variable: variable(name),
            is_list: matches!(flag.get_action(), ArgAction::Append),
            kind: Kind::of(flag.get_value_parser()),
            defaults: flag.get_default_values().iter().map(text).collect(),
        })
        .collect()
});

fn text(value: &OsStr) -> String {
    value.to_string_lossy().into_owned()
}

/// All of them, in the order of `--help`.
pub fn options() -> &'static [Spec] {
    &OPTIONS
}

/// The option of this name.
pub fn find(name: &str) -> Option<&'static Spec> {
    options().iter().find(|spec| spec.name == name)
}

/// The variable for an option: `GATEPOST_MAX_CONNECTIONS` for `max-connections`.
pub fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// A flag whose help names its variable. (clap would name it too, if it were to read it: but a file
/// comes between the variable and the default.)
pub fn show_variable(flag: Arg) -> Arg {
    let Some(variable) = flag.get_long().map(variable) else { return flag };
    let help = flag.get_help().map(StyledStr::to_string).unwrap_or_default();
    flag.help(format!("{help} [env: {variable}]"))
}

/// What these flags say.
pub fn parse(flags: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
    FLAGS.clone().try_get_matches_from(flags)
}

/// A flag and its value, however the value begins.
pub fn flag(name: &str, value: &str) -> OsString {
    format!("--{name}={value}").into()
}

/// What is wrong with a value, if anything is; not how it relates to others.
pub fn fault(spec: &Spec, value: &str) -> Option<String> {
    let error = parse([flag(spec.name, value)]).err()?;
    Some(match error.source() {
        Some(reason) => format!("{value:?}: {reason}"),
        None if value.is_empty() => "it has no value; leave it out, or write one".to_owned(),
        None => first_paragraph(&error.to_string()),
    })
}

/// What clap says before it points to the help, in one line.
fn first_paragraph(error: &str) -> String {
    let lines: Vec<&str> = error.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

/// What to say of an option that is not known; `shown` is how one that is known is written where it was given.
pub fn unknown(name: &str, shown: impl Fn(&Spec) -> String) -> String {
    let rated = options().iter().map(|spec| (strsim::jaro_winkler(name, spec.name), spec));
    let best = rated.filter(|(likeness, _)| *likeness >= ALIKE).max_by(|one, other| one.0.total_cmp(&other.0));
    let remedy = match best {
        Some((_, spec)) => format!("did you mean {}?", shown(spec)),
        None => "gatepost serve --help names all".to_owned(),
    };
    format!("there is no such option; {remedy}")
}
