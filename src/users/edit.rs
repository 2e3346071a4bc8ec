//! Changes to the text of a users file: one line is written, every other one stays as it is, with
//! its comments and in its place.

use super::entry::{BINDINGS, NT_HASH, PASSWORD, SENDERS, UserName};
use super::permission::{BindingPattern, SenderPattern};
use super::{BYTE_ORDER_MARK, ParseError, Users};
use crate::limits::KB;
use std::fmt::{self, Write};
use zeroize::Zeroizing;

/// An entry to be written.
pub struct NewEntry {
    /// Whose it is.
    pub name: UserName,
    /// A PHC string, of [`super::hash_password`].
    pub password: Zeroizing<String>,
    /// MD4 of the password in UTF-16LE, where NTLM is to verify the user.
    pub nt_hash: Option<Zeroizing<[u8; 16]>>,
    /// The reverse-paths it may give; none: any.
    pub senders: Vec<SenderPattern>,
    /// The bindings it may use; none: all.
    pub bindings: Vec<BindingPattern>,
}

impl NewEntry {
    /// Writes its line, without a line end.
    fn write(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} {PASSWORD}={}", self.name, self.password.as_str())?;
        if let Some(nt_hash) = &self.nt_hash {
            write!(out, " {NT_HASH}={:032x}", u128::from_be_bytes(**nt_hash))?;
        }
        write_list(out, SENDERS, &self.senders)?;
        write_list(out, BINDINGS, &self.bindings)
    }
}

impl fmt::Debug for NewEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEntry").field("name", &self.name).finish_non_exhaustive()
    }
}

fn write_list(out: &mut String, key: &str, items: &[impl fmt::Display]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index == 0 {
            write!(out, " {key}={item}")?;
        } else {
            write!(out, ",{item}")?;
        }
    }
    Ok(())
}

/// What adding an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There was none of that name: it is the last line.
    Added,
    /// It stands where the one of that name stood.
    Changed,
}

/// The text with this entry: in place of the one of its name, or behind all others.
///
/// # Errors
/// The first line of the text that is no entry; or of the new text, where the entry's `password` is
/// no PHC string.
pub fn add(text: &str, entry: &NewEntry) -> Result<(Zeroizing<String>, Change), ParseError> {
    Users::parse(text)?;
    let mut line = Zeroizing::new(String::with_capacity(KB));
    // Nothing that is written to a string fails.
    let _ = entry.write(&mut line);
    let (mut edited, found) = rewrite(text, &entry.name, Some(&line));
    let change = if found { Change::Changed } else { Change::Added };
    if !found {
        if !edited.is_empty() && !edited.ends_with('\n') {
            edited.push('\n');
        }
        edited.push_str(&line);
        edited.push('\n');
    }
    Users::parse(&edited)?;
    Ok((edited, change))
}

/// The text without the entry of this name; `None`: there is no such entry.
///
/// # Errors
/// The first line of the text that is no entry.
pub fn remove(text: &str, name: &UserName) -> Result<Option<Zeroizing<String>>, ParseError> {
    Users::parse(text)?;
    let (edited, found) = rewrite(text, name, None);
    Ok(found.then_some(edited))
}

/// The text with `line` (or nothing) in place of the entry of this name; and whether there was one.
fn rewrite(text: &str, name: &UserName, line: Option<&str>) -> (Zeroizing<String>, bool) {
    let key = name.key();
    // Room for the entry too: a string that grows leaves copies of its secrets behind.
    let room = text.len() + line.map_or(0, str::len) + 2;
    let mut edited = Zeroizing::new(String::with_capacity(room));
    let mut found = false;
    let (mark, text) = text.split_at(if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 });
    edited.push_str(mark);
    for old in text.split_inclusive('\n') {
        let (old_line, line_end) = old.split_at(old.trim_end_matches(['\r', '\n']).len());
        if !is_entry_of(&key, old_line) {
            edited.push_str(old);
            continue;
        }
        found = true;
        if let Some(line) = line {
            edited.push_str(line);
            edited.push_str(line_end);
        }
    }
    (edited, found)
}

/// Whether a line of a valid file is the entry with this key.
fn is_entry_of(key: &str, line: &str) -> bool {
    line.split_whitespace().next().is_some_and(|name| !name.starts_with('#') && name.to_lowercase() == key)
}
