//! Delivery status notifications: what a client may ask for (RFC 3461).
//!
//! ENVID and ORCPT are checked and then kept as written: they are passed on verbatim. What does not
//! parse is `None` or false, and refused as C7.

use super::address::is_atext;
use crate::limits::{ENVID_MAX_OCTETS, ORCPT_MAX_OCTETS};

/// `RET=` of MAIL: how much of the message a failure report returns (RFC 3461 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// `FULL`: the whole message.
    Full,
    /// `HDRS`: its header.
    Headers,
}

impl Ret {
    /// Parses the parameter's value.
    pub fn parse(value: &[u8]) -> Option<Ret> {
        [Ret::Full, Ret::Headers].into_iter().find(|ret| ret.as_str().as_bytes().eq_ignore_ascii_case(value))
    }

    /// The value as it stands in the parameter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ret::Full => "FULL",
            Ret::Headers => "HDRS",
        }
    }
}

/// `NOTIFY=` of RCPT: when the sender wants a report (RFC 3461 section 4.1). A parameter that was
/// not given is an `Option` of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify(u8);

impl Notify {
    /// `NEVER`, which stands alone.
    pub const NEVER: Notify = Notify(0);
    /// `SUCCESS`.
    pub const SUCCESS: Notify = Notify(1);
    /// `FAILURE`.
    pub const FAILURE: Notify = Notify(2);
    /// `DELAY`.
    pub const DELAY: Notify = Notify(4);

    /// All but `NEVER`, in the order of the RFC.
    const LIST: [(Notify, &'static str); 3] =
        [(Notify::SUCCESS, "SUCCESS"), (Notify::FAILURE, "FAILURE"), (Notify::DELAY, "DELAY")];

    /// Parses the parameter's value: `NEVER`, or a list that names each of the others at most once.
    pub fn parse(value: &[u8]) -> Option<Notify> {
        if value.eq_ignore_ascii_case(b"NEVER") {
            return Some(Notify::NEVER);
        }
        value.split(|&octet| octet == b',').try_fold(Notify(0), |found, word| {
            let named = |(_, name): &&(Notify, &str)| name.as_bytes().eq_ignore_ascii_case(word);
            let &(notify, _) = Notify::LIST.iter().find(named)?;
            (!found.includes(notify)).then_some(found.and(notify))
        })
    }

    /// This and that.
    #[must_use]
    pub const fn and(self, other: Notify) -> Notify {
        Notify(self.0 | other.0)
    }

    /// Whether `other` is among what was asked for.
    pub const fn includes(self, other: Notify) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits, as stored in the spool.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The value with these bits; `None` where there are others.
    pub const fn from_bits(bits: u8) -> Option<Notify> {
        if bits < 8 { Some(Notify(bits)) } else { None }
    }

    /// Appends the value as it stands in the parameter.
    pub fn write(self, out: &mut Vec<u8>) {
        if self == Notify::NEVER {
            return out.extend_from_slice(b"NEVER");
        }
        let mut separator = "";
        for (_, name) in Notify::LIST.iter().filter(|(notify, _)| self.includes(*notify)) {
            out.extend_from_slice(separator.as_bytes());
            out.extend_from_slice(name.as_bytes());
            separator = ",";
        }
    }
}

/// Whether `value` is an ENVID (RFC 3461 section 4.4).
pub fn is_envid(value: &[u8]) -> bool {
    value.len() <= ENVID_MAX_OCTETS && is_printable_xtext(value)
}

/// Whether `value` is an ORCPT (RFC 3461 section 4.2): an address type, which is an atom, `;`, and
/// the address as xtext. What the type is and what its addresses look like is not our business.
pub fn is_orcpt(value: &[u8]) -> bool {
    let Some(semicolon) = memchr::memchr(b';', value) else { return false };
    let (address_type, address) = (&value[..semicolon], &value[semicolon + 1..]);
    value.len() <= ORCPT_MAX_OCTETS
        && !address_type.is_empty()
        && address_type.iter().all(is_atext)
        && is_printable_xtext(address)
}

/// The octets that `text` stands for (RFC 3461 section 4, xtext); `None` in place of one that is
/// not well formed, which is the last.
pub fn decode_xtext(text: &[u8]) -> impl Iterator<Item = Option<u8>> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&octet, after) = rest.split_first()?;
        let decoded = match (octet, after) {
            (b'+', [high, low, after @ ..]) => {
                rest = after;
                upper_hex(*high).zip(upper_hex(*low)).map(|(high, low)| high << 4 | low)
            }
            (b'!'..=b'~', _) if !b"+=".contains(&octet) => {
                rest = after;
                Some(octet)
            }
            _ => None,
        };
        if decoded.is_none() {
            rest = &[];
        }
        Some(decoded)
    })
}

fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Whether `text` is xtext, not empty, and stands for graphic characters and white space of
/// US-ASCII only: a report must be able to print it (RFC 3461 sections 4.2 and 4.4).
fn is_printable_xtext(text: &[u8]) -> bool {
    !text.is_empty() && decode_xtext(text).all(|octet| matches!(octet, Some(b'\t' | b' '..=b'~')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written() {
        let written = |notify: Notify| {
            let mut out = Vec::new();
            notify.write(&mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(written(Notify::NEVER), "NEVER");
        assert_eq!(written(Notify::DELAY), "DELAY");
        assert_eq!(written(Notify::DELAY.and(Notify::SUCCESS)), "SUCCESS,DELAY");
        assert_eq!(Notify::from_bits(Notify::FAILURE.bits()), Some(Notify::FAILURE));
        assert_eq!(Notify::from_bits(8), None);
    }

    #[test]
    fn ret_is_parsed() {
        assert_eq!(Ret::parse(b"FULL"), Some(Ret::Full));
        assert_eq!(Ret::parse(b"hdrs"), Some(Ret::Headers));
        for bad in [&b""[..], b"FUL", b"FULLY", b"FULL,HDRS", b" FULL"] {
            assert_eq!(Ret::parse(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn notify_is_parsed() {
        let all = Notify::SUCCESS.and(Notify::FAILURE).and(Notify::DELAY);
        for (value, notify) in [
            ("NEVER", Notify::NEVER),
            ("never", Notify::NEVER),
            ("SUCCESS", Notify::SUCCESS),
            ("failure", Notify::FAILURE),
            ("Delay", Notify::DELAY),
            ("DELAY,SUCCESS", Notify::SUCCESS.and(Notify::DELAY)),
            ("delay,FAILURE,Success", all),
        ] {
            assert_eq!(Notify::parse(value.as_bytes()), Some(notify), "{value}");
        }
        for bad in [
            "",
            ",",
            "SUCCESS,",
            ",SUCCESS",
            "SUCCESS,,DELAY",
            "NEVER,NEVER",
            "NEVER,DELAY",
            "DELAY,NEVER",
            "DELAY,DELAY",
            "SUCCESS,DELAY,success",
            "SUCCES",
            "ALWAYS",
            "SUCCESS;DELAY",
            "SUCCESS, DELAY",
        ] {
            assert_eq!(Notify::parse(bad.as_bytes()), None, "{bad}");
        }
        // Every value is read back from what is written.
        for notify in (0..8).filter_map(Notify::from_bits) {
            let mut written = Vec::new();
            notify.write(&mut written);
            assert_eq!(Notify::parse(&written), Some(notify));
        }
    }

    /// xtext of RFC 3461 section 4, read slowly: each `+` with the two behind it looked up among all
    /// that can be written.
    fn slowly(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if character == '+' {
                let digits: String = characters.by_ref().take(2).collect();
                out.push((0..=255).find(|octet| format!("{octet:02X}") == digits)?);
            } else if character.is_ascii_graphic() && character != '=' {
                out.push(character as u8);
            } else {
                return None;
            }
        }
        Some(out)
    }

    proptest::proptest! {
        #[test]
        fn xtext_is_read_as_the_naive_way_reads_it(text in "[+=a-gA-G0-9 ~!;\\t]{0,12}|(\\+[0-9A-F]{2}|[!-~]){0,8}") {
            let decoded: Option<Vec<u8>> = decode_xtext(text.as_bytes()).collect();
            assert_eq!(decoded, slowly(&text));
            let printable = slowly(&text).is_some_and(|octets| octets.iter().all(|octet| b"\t !~".contains(octet) || octet.is_ascii_graphic()));
            assert_eq!(is_envid(text.as_bytes()), printable && !text.is_empty());
            assert_eq!(is_orcpt(format!("rfc822;{text}").as_bytes()), printable && !text.is_empty());
        }
    }

    #[test]
    fn envid_is_checked() {
        for good in ["QQ314159", "a+2Bb+3Dc", "+20+09", "<weird>;,\"", &"x".repeat(100), &"+41".repeat(33)] {
            assert!(is_envid(good.as_bytes()), "{good}");
        }
        for bad in ["", "+", "+4", "+4g", "+4a", "+zz", "a=b", "a b", "é", &"x".repeat(101), &"+41".repeat(34)] {
            assert!(!is_envid(bad.as_bytes()), "{bad}");
        }
        // xtext, but of no printable US-ASCII.
        for bad in ["+00", "a+0Db", "a+0Ab", "+7F", "+80", "+FF"] {
            assert!(!is_envid(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn orcpt_is_checked() {
        let long = |octets: usize| format!("rfc822;{}", "x".repeat(octets - 7));
        for good in ["rfc822;a@example.org", "RFC822;a+2Bb@c", "x-own!;a;b", "utf-8;+5Cx", "x400;/a/+20b/", &long(500)]
        {
            assert!(is_orcpt(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ";",
            "a@example.org",
            "rfc822;",
            ";a@example.org",
            "rfc 822;a",
            "rfc.822;a",
            "a@b;c",
            "(a);b",
            "rfc822;a+2b",
            "rfc822;a+",
            "rfc822;a=b",
            "rfc822;a b",
            "rfc822;+00",
            "rfc822;a+0D+0Ab",
            &long(501),
        ] {
            assert!(!is_orcpt(bad.as_bytes()), "{bad}");
        }
    }
}
