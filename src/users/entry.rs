//! An entry of the users file: one line, one user. The grammar is in [`super`].

use super::password::{HashFault, PasswordHash};
use super::permission::{BindingPattern, PatternFault, SenderPattern};
use crate::limits::USER_NAME_MAX_OCTETS;
use crate::smtp::address::Mailbox;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use zeroize::Zeroizing;

/// The keys of an entry.
pub(super) const PASSWORD: &str = "password";
pub(super) const NT_HASH: &str = "nt-hash";
pub(super) const SENDERS: &str = "senders";
pub(super) const BINDINGS: &str = "bindings";

/// A user: its name, how it proves that it is itself, and what it may do.
pub struct User {
    name: UserName,
    password: Option<PasswordHash>,
    nt_hash: Option<Zeroizing<[u8; 16]>>,
    senders: Option<Vec<SenderPattern>>,
    bindings: Option<Vec<BindingPattern>>,
}

impl User {
    /// Parses a line that is neither blank nor a comment.
    pub(super) fn parse(line: &str) -> Result<User, EntryFault> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().parse().map_err(|NameFault| EntryFault::Name)?;
        let mut user = User { name, password: None, nt_hash: None, senders: None, bindings: None };
        for (number, word) in (2..).zip(words) {
            let (key, value) = word.split_once('=').ok_or(EntryFault::NoKey { word: number })?;
            let is_first = match key {
                PASSWORD => user.password.replace(value.parse().map_err(EntryFault::Password)?).is_none(),
                NT_HASH => user.nt_hash.replace(nt_hash(value).ok_or(EntryFault::NtHash)?).is_none(),
                SENDERS => user.senders.replace(list(SENDERS, value)?).is_none(),
                BINDINGS => user.bindings.replace(list(BINDINGS, value)?).is_none(),
                _ => return Err(EntryFault::NoKey { word: number }),
            };
            if !is_first {
                return Err(EntryFault::KeyAgain { word: number });
            }
        }
        if !user.has_password() && !user.has_nt_hash() {
            return Err(EntryFault::NoHash);
        }
        Ok(user)
    }

    /// Its name, as the file writes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name.0
    }

    pub(super) fn user_name(&self) -> &UserName {
        &self.name
    }

    /// Whether PLAIN and LOGIN can verify it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether NTLM can verify it.
    #[must_use]
    pub fn has_nt_hash(&self) -> bool {
        self.nt_hash.is_some()
    }

    /// The reverse-paths it may give; `None`: any.
    #[must_use]
    pub fn senders(&self) -> Option<&[SenderPattern]> {
        self.senders.as_deref()
    }

    /// The bindings it may use; `None`: all.
    #[must_use]
    pub fn bindings(&self) -> Option<&[BindingPattern]> {
        self.bindings.as_deref()
    }

    /// Whether it may give this reverse-path; `None` is the null one. `default_domain` completes a
    /// mailbox without a domain; without either, a user with a list may not.
    #[must_use]
    pub fn may_send_as(&self, sender: Option<&Mailbox<'_>>, default_domain: Option<&str>) -> bool {
        let Some(allowed) = &self.senders else { return true };
        allowed.iter().any(|pattern| pattern.matches(sender, default_domain))
    }

    /// Whether it may log in on the binding that listens on this address.
    #[must_use]
    pub fn may_use(&self, binding: SocketAddr) -> bool {
        let Some(allowed) = &self.bindings else { return true };
        allowed.iter().any(|pattern| pattern.matches(binding))
    }

    pub(super) fn password_hash(&self) -> Option<&PasswordHash> {
        self.password.as_ref()
    }

    pub(super) fn nt_hash(&self) -> Option<&[u8; 16]> {
        self.nt_hash.as_deref()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name.0).finish_non_exhaustive()
    }
}

/// A name that an entry may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(Box<str>);

impl UserName {
    /// What names are compared by.
    pub(super) fn key(&self) -> String {
        self.0.to_lowercase()
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UserName {
    type Err = NameFault;

    fn from_str(name: &str) -> Result<Self, NameFault> {
        let is_allowed = |c: char| c != '=' && !c.is_control() && !c.is_whitespace() && !is_invisible(c);
        let is_name =
            (1..=USER_NAME_MAX_OCTETS).contains(&name.len()) && !name.starts_with('#') && name.chars().all(is_allowed);
        if is_name { Ok(UserName(name.into())) } else { Err(NameFault) }
    }
}

/// Characters that show nothing or turn the direction of others: two names that look the same are
/// not to be two users.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameFault;

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = USER_NAME_MAX_OCTETS;
        write!(f, "a name is 1 to {most} octets of visible characters without '=', and does not begin with '#'")
    }
}

impl std::error::Error for NameFault {}

/// What is wrong with an entry. Shows no word of it that may be a secret, wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryFault {
    /// It does not begin with a name.
    Name,
    /// A word that is no `key=value` of a known key; the name is word 1.
    NoKey {
        /// Which.
        word: usize,
    },
    /// A key that was there before.
    KeyAgain {
        /// Which word.
        word: usize,
    },
    /// The value of `password=`.
    Password(HashFault),
    /// The value of `nt-hash=`.
    NtHash,
    /// An item of `senders=` or `bindings=`.
    Item {
        /// The key.
        key: &'static str,
        /// As it was written.
        item: String,
        /// What is wrong with it.
        fault: PatternFault,
    },
    /// Nothing to verify the user by.
    NoHash,
    /// A name that was there before.
    Again {
        /// As it stands here.
        name: String,
        /// Where it stands first.
        first_line: usize,
    },
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "it does not begin with a name: {NameFault}"),
            Self::NoKey { word } => write!(
                f,
                "word {word} is none of {PASSWORD}=, {NT_HASH}=, {SENDERS}=, {BINDINGS}=; no white space in a value, \
                 and a comment has a line of its own"
            ),
            Self::KeyAgain { word } => write!(f, "word {word} has a key that stands before it; take one of them out"),
            Self::Password(fault) => write!(f, "{PASSWORD}= {fault}; gatepost user add makes one that is"),
            Self::NtHash => write!(f, "{NT_HASH}= is not 32 hexadecimal digits; gatepost user add --ntlm makes them"),
            Self::Item { key, item, fault } => write!(f, "{key}= has {item:?}: {fault}, with commas between several"),
            Self::NoHash => write!(f, "neither {PASSWORD}= nor {NT_HASH}=; gatepost user add makes an entry with them"),
            Self::Again { name, first_line } => write!(
                f,
                "{name:?} stands on line {first_line} already, and names are compared without case; take one out"
            ),
        }
    }
}

impl std::error::Error for EntryFault {}

/// Items between commas.
fn list<T: FromStr<Err = PatternFault>>(key: &'static str, value: &str) -> Result<Vec<T>, EntryFault> {
    let parse = |item: &str| item.parse().map_err(|fault| EntryFault::Item { key, item: item.to_owned(), fault });
    value.split(',').map(parse).collect()
}

fn nt_hash(value: &str) -> Option<Zeroizing<[u8; 16]>> {
    if value.len() != 32 || !value.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(Zeroizing::new(u128::from_str_radix(value, 16).ok()?.to_be_bytes()))
}
