//! `gatepost user`: who may log in, in the users file that `serve --users` reads. A gateway that
//! runs loads the file again by itself.

use super::{output_failure, password};
use crate::config::options::{NewUser, UserCommand};
use crate::control::preflight::{ExitCode, Failure};
use crate::control::users_file;
use crate::smtp::sasl::ntlm::nt_hash;
use crate::users::{self, Change, NewEntry, User, UserName};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// Runs the subcommand; what it prints goes to `out`.
pub fn run(command: UserCommand, out: &mut impl Write) -> Result<(), Failure> {
    let line = match command {
        UserCommand::Add { users, user } => add(&users.users, user)?,
        UserCommand::List { users, json } => return list(&users.users, json, out),
        UserCommand::Remove { users, name } => remove(&users.users, &name)?,
    };
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| output_failure(&error))
}

fn add(path: &Path, user: NewUser) -> Result<String, Failure> {
    let password = password::read(&user.name.to_string())?;
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)
        .map_err(|error| Failure::new(ExitCode::OsError, format!("no random numbers: {error}")))?;
    let entry = NewEntry {
        password: Zeroizing::new(users::hash_password(password.as_bytes(), &salt)),
        nt_hash: user.ntlm.then(|| Zeroizing::new(*nt_hash(&password))),
        senders: user.sender,
        bindings: user.binding,
        name: user.name,
    };
    let change = users_file::edit(path, true, |text| {
        let (edited, change) = users::add(text, &entry)?;
        Ok((Some(edited), change))
    })?;
    Ok(match change {
        Change::Added => format!("added {}", entry.name),
        Change::Changed => format!("changed {}", entry.name),
    })
}

fn remove(path: &Path, name: &UserName) -> Result<String, Failure> {
    let was_there = users_file::edit(path, false, |text| {
        let edited = users::remove(text, name)?;
        let was_there = edited.is_some();
        Ok((edited, was_there))
    })?;
    if was_there {
        return Ok(format!("removed {name}"));
    }
    let path = path.display();
    let message = format!("{name} is not in {path}; gatepost user list --users {path} shows who is");
    Err(Failure::new(ExitCode::NotThere, message))
}

/// A line of `user list --json`.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    mechanisms: Vec<&'static str>,
    /// Not there: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    senders: Option<Vec<String>>,
    /// Not there: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    bindings: Option<Vec<String>>,
}

impl<'a> Entry<'a> {
    fn new(user: &'a User) -> Self {
        let verified_by =
            [("PLAIN", user.has_password()), ("LOGIN", user.has_password()), ("NTLM", user.has_nt_hash())];
        Entry {
            name: user.name(),
            mechanisms: verified_by.into_iter().filter(|(_, is_so)| *is_so).map(|(name, _)| name).collect(),
            senders: user.senders().map(texts),
            bindings: user.bindings().map(texts),
        }
    }
}

fn texts(items: &[impl Display]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn list(path: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let users = users_file::read_users(path)?;
    let mut print = || -> io::Result<()> {
        for entry in users.iter().map(Entry::new) {
            if json {
                serde_json::to_writer(&mut *out, &entry)?;
                writeln!(out)?;
            } else {
                let shown =
                    |items: Option<Vec<String>>, all: &str| items.map_or(all.to_owned(), |items| items.join(","));
                let mechanisms = entry.mechanisms.join(",");
                let (senders, bindings) = (shown(entry.senders, "any"), shown(entry.bindings, "all"));
                writeln!(out, "{}\t{mechanisms}\tsenders={senders}\tbindings={bindings}", entry.name)?;
            }
        }
        out.flush()
    };
    print().map_err(|error| output_failure(&error))
}
