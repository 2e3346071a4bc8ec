//! SASL (RFC 4422), the mechanisms of AUTH (RFC 4954), pure: what their messages say, and how they
//! are made, for the receiving and the sending session.
//!
//! May use `limits`, and libraries of digests. Nonces and the time come from outside, and so does
//! what a password or hash must be: here nobody is looked up. On bad input the answer is `None`, and
//! never says what was wrong: a peer that guesses learns nothing.
//!
//! | module | mechanism |
//! |---|---|
//! | [`plain`] | PLAIN (RFC 4616) |
//! | [`login`] | LOGIN ([MS-XLOGIN]) |
//! | [`ntlm`] | NTLM ([MS-SMTPNTLM]), version 2 of [MS-NLMP] |
//!
//! Names and passwords are compared as they are sent: SASLprep (RFC 4013) is not applied, as clients
//! do not apply it either.

pub mod login;
pub mod ntlm;
pub mod plain;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use zeroize::Zeroizing;

/// A mechanism of AUTH that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// NTLM ([MS-SMTPNTLM]).
    Ntlm,
    /// LOGIN ([MS-XLOGIN]).
    Login,
    /// PLAIN (RFC 4616).
    Plain,
}

impl Mechanism {
    /// All of them, in the order in which they are offered.
    pub const ALL: [Mechanism; 3] = [Mechanism::Ntlm, Mechanism::Login, Mechanism::Plain];

    /// The mechanism of that name, in any case.
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Its name, in upper case.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Ntlm => "NTLM",
            Mechanism::Login => "LOGIN",
            Mechanism::Plain => "PLAIN",
        }
    }

    /// Whether the client's password itself goes over the wire: only for sessions under TLS, unless
    /// the operator says otherwise.
    pub const fn is_plaintext(self) -> bool {
        matches!(self, Mechanism::Login | Mechanism::Plain)
    }
}

/// A set of mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms {
    /// [`Mechanism::Ntlm`] is in it.
    pub ntlm: bool,
    /// [`Mechanism::Login`] is in it.
    pub login: bool,
    /// [`Mechanism::Plain`] is in it.
    pub plain: bool,
}

impl Mechanisms {
    /// Whether `mechanism` is in it.
    pub const fn contains(self, mechanism: Mechanism) -> bool {
        match mechanism {
            Mechanism::Ntlm => self.ntlm,
            Mechanism::Login => self.login,
            Mechanism::Plain => self.plain,
        }
    }

    /// Puts `mechanism` in.
    pub const fn insert(&mut self, mechanism: Mechanism) {
        match mechanism {
            Mechanism::Ntlm => self.ntlm = true,
            Mechanism::Login => self.login = true,
            Mechanism::Plain => self.plain = true,
        }
    }

    /// Those in it, in the order in which they are offered.
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL.into_iter().filter(move |&mechanism| self.contains(mechanism))
    }
}

/// What a client of PLAIN or LOGIN gave: neither part is empty or has a NUL. Its Debug does not show
/// the password.
#[derive(Clone)]
pub struct Password {
    /// Who it says it is.
    pub name: String,
    /// Its proof.
    pub password: Zeroizing<String>,
}

impl Password {
    /// `None` if a part is empty, has a NUL, or is not UTF-8.
    fn new(name: &[u8], password: &[u8]) -> Option<Self> {
        Some(Self { name: text(name)?.to_owned(), password: Zeroizing::new(text(password)?.to_owned()) })
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Password").field("name", &self.name).finish_non_exhaustive()
    }
}

//= RFC 4616 section 2 (authcid and passwd are 1*SAFE: UTF-8 without NUL)
fn text(octets: &[u8]) -> Option<&str> {
    std::str::from_utf8(octets).ok().filter(|text| !text.is_empty() && !text.contains('\0'))
}

/// What a line of the exchange stands for: base64 of RFC 4648 section 4, with its padding, without
/// white space, and with nothing but zeros in the bits that are left over. `None`: it is not that.
pub fn decode(line: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut octets = Zeroizing::new(vec![0; base64::decoded_len_estimate(line.len())]);
    let length = STANDARD.decode_slice(line, &mut octets).ok()?;
    octets.truncate(length);
    Some(octets)
}

/// Appends the line that stands for `octets`. Where they are secret, so is `out` from then on.
pub fn encode(octets: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(Zeroizing::new(STANDARD.encode(octets)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_have_names() {
        for mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::parse(mechanism.name().as_bytes()), Some(mechanism));
            assert_eq!(Mechanism::parse(mechanism.name().to_lowercase().as_bytes()), Some(mechanism));
        }
        for unknown in ["", "NTL", "NTLMS", "LOGIN ", "CRAM-MD5", "GSSAPI"] {
            assert_eq!(Mechanism::parse(unknown.as_bytes()), None, "{unknown}");
        }
        assert_eq!(Mechanism::ALL.map(Mechanism::is_plaintext), [false, true, true]);
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        for mechanism in Mechanism::ALL {
            let mut set = Mechanisms::default();
            assert!(!set.contains(mechanism));
            set.insert(mechanism);
            assert!(set.iter().eq([mechanism]));
            assert!(set.contains(mechanism));
        }
        assert!(Mechanisms { ntlm: true, login: true, plain: true }.iter().eq(Mechanism::ALL));
    }

    /// RFC 4648 section 10, both ways.
    #[test]
    fn lines_of_base64() {
        for (octets, line) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut encoded = b"334 ".to_vec();
            encode(octets.as_bytes(), &mut encoded);
            assert_eq!(encoded.strip_prefix(b"334 "), Some(line.as_bytes()));
            assert_eq!(decode(line.as_bytes()).as_deref().map(Vec::as_slice), Some(octets.as_bytes()));
        }
        assert_eq!(decode(b"+/8=").as_deref().map(Vec::as_slice), Some(&b"\xfb\xff"[..]));
        for malformed in [
            "=", "*", "Z", "Zg", "Zg=", "Zg===", "Zh==", "Zm9=", "Zm8", "Zm9v=", "Zm9vYg", " Zm9v", "Zm9v ",
            "Zm9v\r\n", "Zm\n9v", "Zm-v", "Zm_v", "Zg==Zg==", "====", "Zm9v\0", "Zé==",
        ] {
            assert!(decode(malformed.as_bytes()).is_none(), "{malformed:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded(octets: Vec<u8>) {
            let mut line = Vec::new();
            encode(&octets, &mut line);
            assert_eq!(decode(&line).as_deref(), Some(&octets));
        }

        /// There is one line for any octets: what is decoded is encoded again as it was.
        #[test]
        fn no_line_stands_for_what_another_stands_for(line in "[A-Za-z0-9+/=]{0,9}") {
            if let Some(octets) = decode(line.as_bytes()) {
                let mut again = Vec::new();
                encode(&octets, &mut again);
                assert_eq!(again, line.as_bytes());
            }
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let given = Password::new(b"tim", b"tanstaaftanstaaf").expect("valid");
        assert_eq!(format!("{given:?}"), "Password { name: \"tim\", .. }");
    }
}
