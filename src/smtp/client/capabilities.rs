//! What a next hop offers in its answer to EHLO.

use crate::smtp::command::{Number, number};
use crate::smtp::sasl::{Mechanism, Mechanisms};

/// The extensions a next hop offered. After HELO, none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870): parameters of MAIL are understood.
    pub size_declaration: bool,
    /// Its value: the largest message in octets. `None`: no fixed limit is known.
    pub size: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// BINARYMIME (RFC 3030).
    pub binary_mime: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_status_codes: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// AUTH (RFC 4954): those of its mechanisms that are known here.
    pub auth: Mechanisms,
}

impl Capabilities {
    /// Takes in one line of the answer to EHLO, not the first. A keyword in any case; a later line
    /// replaces an earlier one with the same keyword; what nobody knows is ignored.
    pub(super) fn add(&mut self, line: &[u8]) {
        let mut words = line.split(|octet| matches!(octet, b' ' | b'\t')).filter(|word| !word.is_empty());
        let Some(keyword) = words.next() else { return };
        let flags: [(&[u8], &mut bool); 7] = [
            (b"PIPELINING", &mut self.pipelining),
            (b"8BITMIME", &mut self.eight_bit_mime),
            (b"CHUNKING", &mut self.chunking),
            (b"BINARYMIME", &mut self.binary_mime),
            (b"DSN", &mut self.dsn),
            (b"ENHANCEDSTATUSCODES", &mut self.enhanced_status_codes),
            (b"STARTTLS", &mut self.starttls),
        ];
        for (name, flag) in flags {
            if keyword.eq_ignore_ascii_case(name) {
                *flag = true;
            }
        }
        if keyword.eq_ignore_ascii_case(b"SIZE") {
            self.size_declaration = true;
            // RFC 1870 section 4: zero, and no value, state no limit. One too large for a u64
            // limits nothing either.
            self.size = match words.next().and_then(number) {
                Some(Number::Value(limit)) if limit > 0 => Some(limit),
                _ => None,
            };
        } else if keyword.eq_ignore_ascii_case(b"AUTH") {
            self.auth = Mechanisms::default();
            words.filter_map(Mechanism::parse).for_each(|mechanism| self.auth.insert(mechanism));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(lines: &[&str]) -> Capabilities {
        let mut capabilities = Capabilities::default();
        for line in lines {
            capabilities.add(line.as_bytes());
        }
        capabilities
    }

    #[test]
    fn keywords() {
        let none = Capabilities::default();
        assert_eq!(offered(&["", " ", "X-FOO BAR", "PIPELININGS", "AUTH=LOGIN", "SMTPUTF8"]), none);
        assert_eq!(offered(&["PIPELINING"]), Capabilities { pipelining: true, ..none });
        assert_eq!(offered(&["pipeLining \t"]), Capabilities { pipelining: true, ..none });
        assert_eq!(offered(&["8bitmime"]), Capabilities { eight_bit_mime: true, ..none });
        assert_eq!(offered(&["CHUNKING"]), Capabilities { chunking: true, ..none });
        assert_eq!(offered(&["BINARYMIME"]), Capabilities { binary_mime: true, ..none });
        assert_eq!(offered(&["DSN"]), Capabilities { dsn: true, ..none });
        assert_eq!(offered(&["ENHANCEDSTATUSCODES"]), Capabilities { enhanced_status_codes: true, ..none });
        assert_eq!(offered(&["STARTTLS"]), Capabilities { starttls: true, ..none });
    }

    #[test]
    fn sizes() {
        let size = |lines: &[&str]| {
            let offered = offered(lines);
            (offered.size_declaration, offered.size)
        };
        assert_eq!(size(&["DSN"]), (false, None));
        assert_eq!(size(&["SIZE 1000"]), (true, Some(1000)));
        assert_eq!(size(&["size  1000 x"]), (true, Some(1000)));
        for unlimited in ["SIZE", "SIZE 0", "SIZE -1", "SIZE x", "SIZE 99999999999999999999", "SIZE 1e3"] {
            assert_eq!(size(&["SIZE 1", unlimited]), (true, None), "{unlimited}");
        }
        assert_eq!(size(&["SIZE 2", "SIZE 1"]), (true, Some(1)));
    }

    #[test]
    fn mechanisms() {
        let auth = |lines: &[&str]| offered(lines).auth;
        assert_eq!(auth(&["AUTH"]), Mechanisms::default());
        assert_eq!(auth(&["AUTH ntlm GSSAPI LOGIN"]), Mechanisms { ntlm: true, login: true, plain: false });
        assert_eq!(auth(&["AUTH NTLM", "AUTH PLAIN"]), Mechanisms { ntlm: false, login: false, plain: true });
    }
}
