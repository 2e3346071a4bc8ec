//! Options from the environment: `GATEPOST_` and the option's name in capitals, `_` for `-`.
//!
//! The items of a repeatable option have white space between them. An empty variable is one that is
//! not set, as in a service manager's file where somebody took the value out. A variable that begins
//! so and is no option is a mistake.

use super::settings::{Given, Origin, Problems};
use super::table::{self, CONFIG, PREFIX};
use std::ffi::OsString;
use std::path::PathBuf;

/// What variables say.
#[derive(Debug, Default)]
pub struct Environment {
    /// The file that they name.
    pub config: Option<PathBuf>,
    /// The options.
    pub given: Vec<Given>,
}

/// Reads the variables; others than ours are passed over.
pub fn read(variables: &[(OsString, OsString)], problems: &mut Problems) -> Environment {
    let mut environment = Environment::default();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        let Some(option) = name.strip_prefix(PREFIX) else { continue };
        let spec = table::options().iter().find(|spec| spec.variable == name);
        if spec.is_none() && name != table::variable(CONFIG) {
            let option = option.to_ascii_lowercase().replace('_', "-");
            problems.add(&name, table::unknown(&option, |spec| spec.variable.clone()));
            continue;
        }
        let Some(value) = value.to_str() else {
            problems.add(&name, "its value is not UTF-8; write it in UTF-8");
            continue;
        };
        if value.is_empty() {
            continue;
        }
        let Some(spec) = spec else {
            environment.config = Some(value.into());
            continue;
        };
        let values: Vec<String> = match spec.is_list {
            true => value.split_whitespace().map(str::to_owned).collect(),
            false => vec![value.to_owned()],
        };
        if values.is_empty() {
            continue;
        }
        match values.iter().find_map(|value| table::fault(spec, value)) {
            Some(fault) => problems.add(&name, fault),
            None => environment.given.push(Given { spec, values, origin: Origin::Environment(name.into_owned()) }),
        }
    }
    environment
}
