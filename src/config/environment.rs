//! Options from the environment: `GATEPOST_` and the option's name in capitals, `_` for `-`.
//!
//! The items of a repeatable option have white space between them. An empty variable is one that is
//! not set, as in a service manager's file where somebody took the value out. A variable that begins
//! so and is no option is a mistake, unless it is of those that Kubernetes puts into every pod beside a
//! Service with this program's name.

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

/// Whether a variable is one that Kubernetes makes for a Service called gatepost: `GATEPOST_SERVICE_HOST`,
/// `GATEPOST_PORT_25_TCP_ADDR`. No option is called so.
fn is_of_a_service(name: &str) -> bool {
    name == "PORT" || name.starts_with("PORT_") || name.starts_with("SERVICE_")
}

/// Whether a variable orders a fault, in a build that takes such orders.
fn is_a_fault(name: &str) -> bool {
    cfg!(feature = "fault-injection") && name.starts_with("FAULT_")
}

/// Reads the variables; others than ours are passed over.
pub fn read(variables: &[(OsString, OsString)], problems: &mut Problems) -> Environment {
    let mut environment = Environment::default();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        let is_ours = |name: &&str| !is_of_a_service(name) && !is_a_fault(name);
        let Some(option) = name.strip_prefix(PREFIX).filter(is_ours) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_brings_along_is_no_mistake() {
        let names =
            ["GATEPOST_SERVICE_HOST", "GATEPOST_SERVICE_PORT_SMTP", "GATEPOST_PORT", "GATEPOST_PORT_25_TCP_ADDR"];
        let variables: Vec<_> = names.iter().map(|&name| (name.into(), "tcp://10.0.0.1:25".into())).collect();
        let mut problems = Problems::default();
        assert!(read(&variables, &mut problems).given.is_empty());
        assert!(problems.into_result().is_ok());
        assert!(
            table::options()
                .iter()
                .all(|spec| spec.variable.strip_prefix(PREFIX).is_some_and(|name| !is_of_a_service(name)))
        );
    }
}
