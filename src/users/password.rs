//! Hashes of passwords: argon2 (RFC 9106), written as PHC strings.

use crate::limits::{PASSWORD_HASH_MEMORY_MAX_KB, PASSWORD_HASH_PASSES_MAX};
use argon2::password_hash::phc::{self, Output, Salt};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// What a password is verified by.
#[derive(Clone)]
pub struct PasswordHash {
    argon2: Argon2<'static>,
    salt: Salt,
    output: Output,
}

impl PasswordHash {
    /// Whether it is this password's. Computes one hash, whatever comes of it.
    pub fn is_of(&self, password: &[u8]) -> bool {
        #[cfg(test)]
        computed::count();
        let mut octets = Zeroizing::new([0; Output::MAX_LENGTH]);
        let Some(octets) = octets.get_mut(..self.output.len()) else { return false };
        if self.argon2.hash_password_into(password, &self.salt, octets).is_err() {
            return false;
        }
        // Outputs are compared in constant time.
        Output::new(octets).is_ok_and(|output| output == self.output)
    }

    /// Its cost.
    pub fn params(&self) -> &Params {
        self.argon2.params()
    }

    /// One of no password, which costs as much as the most expensive of these, or as a new one where
    /// there are none. Its salt is fixed: nobody sees what comes of it.
    pub fn dummy<'a>(hashes: impl Iterator<Item = &'a PasswordHash>) -> Self {
        let cost = |hash: &&PasswordHash| {
            let params = hash.params();
            u64::from(params.m_cost()) * u64::from(params.t_cost())
        };
        let argon2 = hashes.max_by_key(cost).map_or_else(Argon2::default, |hash| hash.argon2.clone());
        let length = argon2.params().output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN);
        let salt = Salt::new(&[0; argon2::RECOMMENDED_SALT_LEN]).expect("a length that salts have");
        let output = Output::init_with(length, |_| Ok(())).expect("a length that was parsed, or the default");
        PasswordHash { argon2, salt, output }
    }
}

impl FromStr for PasswordHash {
    type Err = HashFault;

    fn from_str(text: &str) -> Result<Self, HashFault> {
        let hash = phc::PasswordHash::new(text).map_err(|_| HashFault::NotPhc)?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).map_err(|_| HashFault::Algorithm)?;
        // What was written before there was a second version names none.
        let version = match hash.version {
            None => Version::V0x10,
            Some(version) => Version::try_from(version).map_err(|_| HashFault::Version)?,
        };
        let params = Params::try_from(&hash).map_err(|_| HashFault::Parameters)?;
        if params.m_cost() > PASSWORD_HASH_MEMORY_MAX_KB || params.t_cost() > PASSWORD_HASH_PASSES_MAX {
            return Err(HashFault::Cost);
        }
        let (Some(salt), Some(output)) = (hash.salt, hash.hash) else { return Err(HashFault::NotPhc) };
        Ok(PasswordHash { argon2: Argon2::new(algorithm, version, params), salt, output })
    }
}

/// The PHC string of a password's hash: argon2id with the parameters customary today. Takes tens of
/// milliseconds. The salt is random, and of this hash alone.
#[must_use]
pub fn hash_password(password: &[u8], salt: &[u8; argon2::RECOMMENDED_SALT_LEN]) -> String {
    let hash = Argon2::default().hash_password_with_salt(password, salt);
    hash.expect("the default parameters and this length of salt are valid").to_string()
}

/// What is wrong with a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashFault {
    /// Not a PHC string with salt and hash.
    NotPhc,
    /// Not of argon2.
    Algorithm,
    /// A version of argon2 that there is not.
    Version,
    /// Parameters that argon2 does not take.
    Parameters,
    /// Parameters that would cost every login too much.
    Cost,
}

impl fmt::Display for HashFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPhc => f.write_str("is not a PHC string ($argon2id$v=19$m=..,t=..,p=..$salt$hash)"),
            Self::Algorithm => f.write_str("is not a hash of argon2id, argon2i or argon2d"),
            Self::Version => f.write_str("is of an unknown version of argon2 (v=16 and v=19 are known)"),
            Self::Parameters => f.write_str("has parameters that argon2 does not take"),
            Self::Cost => write!(
                f,
                "costs too much at each login (at most m={PASSWORD_HASH_MEMORY_MAX_KB}, t={PASSWORD_HASH_PASSES_MAX})"
            ),
        }
    }
}

impl std::error::Error for HashFault {}

/// How many hashes a test's thread has computed.
#[cfg(test)]
pub(super) mod computed {
    use std::cell::Cell;

    thread_local! {
        static COUNT: Cell<u32> = const { Cell::new(0) };
    }

    pub fn count() {
        COUNT.with(|count| count.set(count.get() + 1));
    }

    pub fn during<T>(act: impl FnOnce() -> T) -> (T, u32) {
        let before = COUNT.with(Cell::get);
        let result = act();
        (result, COUNT.with(Cell::get) - before)
    }
}
