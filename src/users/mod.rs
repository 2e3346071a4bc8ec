//! Who may log in: the users file, its entries, and whether a proof of identity is right.
//!
//! What lives here: the file's grammar (`entry`, and `permission` for what a user may do), the
//! hashes that passwords are verified by (`password`), changes to the text of a file (`edit`), and
//! all users of a file ([`Users`]). What it may use: `smtp`'s addresses, `policy`'s domains and
//! addresses, `limits`. No file and no clock; salts are arguments. On bad input: parsing fails with
//! the number of the line, what is wrong and what to write instead, never with a secret, and
//! nothing of such a file is used. Verifying cannot fail: what is not right is refused.
//!
//! # The file
//!
//! UTF-8 text, one user a line, for hand editing too: a name, then `key=value` words, with white
//! space between them. A line that begins with `#` is a comment; blank lines are passed over.
//!
//! ```text
//! # name key=value ...
//! alice password=$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$... senders=alice@example.org,.example.net
//! bob@example.org password=$argon2id$... nt-hash=8846f7eaee8fb117ad06bdd830b7586c bindings=587
//! ```
//!
//! - **name**: 1 to 254 octets, visible characters without `=`, not beginning with `#`. Compared
//!   without case (Unicode's lower case); a client may write `DOMAIN\` before it.
//! - `password=` a PHC string of argon2id, argon2i or argon2d (RFC 9106): verifies PLAIN and LOGIN.
//!   Passwords are compared octet by octet, as UTF-8 as given: nothing is normalised, so the same
//!   letters in another composition are another password.
//! - `nt-hash=` 32 hexadecimal digits, MD4 of the password in UTF-16LE: verifies NTLM. Worth as much
//!   as the password to who can read it. At least one of these two must be there.
//! - `senders=` the reverse-paths the user may give, between commas: a mailbox `a@example.org`, a
//!   domain `example.org` (every mailbox in it), `.example.org` (in its subdomains), `<>` (the null
//!   reverse-path). Any without this key. Case does not count, not even in local parts: this is an
//!   administrator's list of mailboxes of its own.
//! - `bindings=` where the user may log in, between commas: a port, or the ADDR:PORT of a binding.
//!   Everywhere without this key.

mod edit;
mod entry;
mod password;
mod permission;

#[cfg(test)]
mod edit_tests;
#[cfg(test)]
mod tests;

pub use edit::{Change, NewEntry, add, remove};
pub use entry::{EntryFault, NameFault, User, UserName};
pub use password::{HashFault, hash_password};
pub use permission::{BindingPattern, PatternFault, SenderPattern};

use crate::policy::LineError;
use password::PasswordHash;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// A line of the file that is no entry: the operator's fault. `line 3: ...`.
pub type ParseError = LineError<EntryFault>;

/// The users of a file.
pub struct Users {
    /// In the order of the file.
    users: Vec<Arc<User>>,
    /// By their names in lower case.
    by_name: HashMap<Box<str>, usize>,
    /// Stands in for the hash that an unknown user does not have.
    dummy: PasswordHash,
}

impl Users {
    /// Reads the text of a users file.
    ///
    /// # Errors
    /// The first line that is no entry; then none of the file is used.
    pub fn parse(text: &str) -> Result<Users, ParseError> {
        let mut users = Vec::new();
        let mut by_name = HashMap::new();
        let mut lines = Vec::new();
        for (line, text) in entries(text) {
            let failed = |error| ParseError { line, error };
            let user = User::parse(text).map_err(failed)?;
            if let Some(first) = by_name.insert(user.user_name().key().into(), users.len()) {
                let first_line = lines.get(first).copied().unwrap_or_default();
                return Err(failed(EntryFault::Again { name: user.name().to_owned(), first_line }));
            }
            lines.push(line);
            users.push(Arc::new(user));
        }
        let dummy = PasswordHash::dummy(users.iter().filter_map(|user| user.password_hash()));
        Ok(Users { users, by_name, dummy })
    }

    /// Whether there is no user.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// How many users there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// The users in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.users.iter().map(Arc::as_ref)
    }

    /// Whether NTLM can verify any of them.
    #[must_use]
    pub fn has_nt_hash(&self) -> bool {
        self.iter().any(User::has_nt_hash)
    }

    /// Whether PLAIN and LOGIN can verify any of them.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.iter().any(User::has_password)
    }

    /// The user whose password this is. Takes tens of milliseconds, and the memory that the hash asks
    /// for: never on a shard.
    ///
    /// One hash is computed in any case: for a name that is unknown, or has no password, one with the
    /// highest cost in the file. The time it takes tells names apart only where the entries of a file
    /// differ in cost.
    #[must_use]
    pub fn verify_password(&self, name: &str, password: &[u8]) -> Option<Arc<User>> {
        let user = self.find(name);
        let hash = user.and_then(|user| user.password_hash());
        let is_right = hash.unwrap_or(&self.dummy).is_of(password);
        user.filter(|_| is_right && hash.is_some()).cloned()
    }

    /// The user with whose NT hash `verify` says yes. It is called exactly once: for a name that is
    /// unknown, or has no NT hash, with a dummy, and then what it says does not count.
    #[must_use]
    pub fn verify_nt_hash(&self, name: &str, verify: impl FnOnce(&[u8; 16]) -> bool) -> Option<Arc<User>> {
        let user = self.find(name);
        let hash = user.and_then(|user| user.nt_hash());
        let is_right = verify(hash.unwrap_or(&[0; 16]));
        user.filter(|_| is_right && hash.is_some()).cloned()
    }

    /// By the name as given, else by the part behind a `\`.
    fn find(&self, name: &str) -> Option<&Arc<User>> {
        let by_name = |name: &str| self.by_name.get(name.to_lowercase().as_str());
        let index = by_name(name).or_else(|| by_name(name.split_once('\\')?.1))?;
        self.users.get(*index)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The lines that must be entries, numbered from 1, without the white space around them.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Some editors put it at the beginning of a file; it is no part of the text.
const BYTE_ORDER_MARK: char = '\u{feff}';
