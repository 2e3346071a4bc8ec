//! The extensions the sink offers, each of which can be left out, and what it holds a client to.
//!
//! A parameter whose extension was not offered in reply to EHLO is refused (555, RFC 5321 section 4.1.1.11): a relay
//! that uses what a next hop did not offer would otherwise go unseen.

use clap::ValueEnum;

/// An extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Extension {
    /// RFC 2920.
    #[value(name = "PIPELINING")]
    Pipelining,
    /// RFC 1870.
    #[value(name = "SIZE")]
    Size,
    /// RFC 6152.
    #[value(name = "8BITMIME")]
    EightBitMime,
    /// RFC 3461.
    #[value(name = "DSN")]
    Dsn,
    /// RFC 3030, without BINARYMIME.
    #[value(name = "CHUNKING")]
    Chunking,
    /// RFC 2034.
    #[value(name = "ENHANCEDSTATUSCODES")]
    EnhancedStatusCodes,
}

/// What is offered.
#[derive(Debug)]
pub struct Offer {
    disabled: Vec<Extension>,
    message_octets_max: u64,
    ehlo_reply: Vec<u8>,
    helo_reply: Vec<u8>,
}

impl Offer {
    /// An offer by a sink called `hostname` of all but the `disabled`; a size of 0 is no limit.
    pub fn new(hostname: &str, disabled: &[Extension], message_octets_max: u64) -> Self {
        let mut lines = vec![hostname.to_owned()];
        for extension in Extension::value_variants().iter().filter(|extension| !disabled.contains(extension)) {
            lines.push(match extension {
                Extension::Pipelining => "PIPELINING".to_owned(),
                Extension::Size => format!("SIZE {message_octets_max}"),
                Extension::EightBitMime => "8BITMIME".to_owned(),
                Extension::Dsn => "DSN".to_owned(),
                Extension::Chunking => "CHUNKING".to_owned(),
                Extension::EnhancedStatusCodes => "ENHANCEDSTATUSCODES".to_owned(),
            });
        }
        let last = lines.len() - 1;
        let line = |(at, text)| format!("250{}{text}\r\n", if at == last { ' ' } else { '-' });
        Self {
            disabled: disabled.to_vec(),
            message_octets_max,
            ehlo_reply: lines.into_iter().enumerate().map(line).collect::<String>().into_bytes(),
            helo_reply: format!("250 {hostname}\r\n").into_bytes(),
        }
    }

    /// Whether an extension is offered to those who say EHLO.
    pub fn has(&self, extension: Extension) -> bool {
        !self.disabled.contains(&extension)
    }

    /// Whether a message of so many octets is too large.
    pub fn is_too_large(&self, octets: u64) -> bool {
        self.message_octets_max != 0 && octets > self.message_octets_max
    }

    /// The reply to EHLO.
    pub fn ehlo_reply(&self) -> &[u8] {
        &self.ehlo_reply
    }

    /// The reply to HELO.
    pub fn helo_reply(&self) -> &[u8] {
        &self.helo_reply
    }

    /// Appends a reply of ours, `code SP enhanced-code SP text`, without its enhanced code when those are not offered.
    pub fn say(&self, reply: &[u8], out: &mut Vec<u8>) {
        let bare = reply.split_at_checked(4).zip(reply.get(10..)).filter(|_| !self.has(Extension::EnhancedStatusCodes));
        match bare {
            Some(((code, _), text)) => out.extend_from_slice(&[code, text].concat()),
            None => out.extend_from_slice(reply),
        }
    }

    /// The refusal of MAIL's parameters, if they are not what was offered.
    pub fn refuse_mail(&self, esmtp: bool, parameters: &[u8]) -> Option<&'static [u8]> {
        self.refuse(esmtp, parameters, |keyword, value| match keyword {
            b"SIZE" => Some((Extension::Size, digits(value))),
            b"BODY" => {
                let known = value.eq_ignore_ascii_case(b"7BIT") || value.eq_ignore_ascii_case(b"8BITMIME");
                Some((Extension::EightBitMime, known))
            }
            b"RET" | b"ENVID" => Some((Extension::Dsn, !value.is_empty())),
            _ => None,
        })
        .or_else(|| {
            let size = words(parameters).find_map(|word| word.split_at_checked(5).filter(|(key, _)| is(key, b"SIZE=")));
            // Only digits by now; more of them than fit are too large for any limit.
            let octets = size.and_then(|(_, value)| std::str::from_utf8(value).ok());
            octets.is_some_and(|octets| self.is_too_large(octets.parse().unwrap_or(u64::MAX))).then_some(TOO_LARGE)
        })
    }

    /// The refusal of RCPT's parameters, if they are not what was offered.
    pub fn refuse_rcpt(&self, esmtp: bool, parameters: &[u8]) -> Option<&'static [u8]> {
        self.refuse(esmtp, parameters, |keyword, value| {
            matches!(keyword, b"NOTIFY" | b"ORCPT").then_some((Extension::Dsn, !value.is_empty()))
        })
    }

    fn refuse(
        &self,
        esmtp: bool,
        parameters: &[u8],
        known: impl Fn(&[u8], &[u8]) -> Option<(Extension, bool)>,
    ) -> Option<&'static [u8]> {
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for word in words(parameters) {
            let (keyword, value) = word.split_at(memchr::memchr(b'=', word).unwrap_or(word.len()));
            let keyword = keyword.to_ascii_uppercase();
            match known(&keyword, value.get(1..).unwrap_or_default()) {
                Some((extension, _)) if !esmtp || !self.has(extension) => return Some(NOT_OFFERED),
                None => return Some(NOT_OFFERED),
                Some((_, valid)) if !valid || seen.contains(&keyword) => return Some(INVALID),
                Some(_) => seen.push(keyword),
            }
        }
        None
    }
}

/// The refusal of a message for its size.
pub const TOO_LARGE: &[u8] = b"552 5.3.4 Message too large\r\n";
const NOT_OFFERED: &[u8] = b"555 5.5.4 Parameter was not offered\r\n";
const INVALID: &[u8] = b"501 5.5.4 Invalid parameter\r\n";

fn words(parameters: &[u8]) -> impl Iterator<Item = &[u8]> {
    parameters.split(|octet| *octet == b' ').filter(|word| !word.is_empty())
}

fn is(one: &[u8], other: &[u8]) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn digits(value: &[u8]) -> bool {
    (1..=20).contains(&value.len()) && value.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_is_offered() {
        let text = |offer: &Offer| String::from_utf8(offer.ehlo_reply().to_vec()).unwrap();
        let all = "250-h\r\n250-PIPELINING\r\n250-SIZE 7\r\n250-8BITMIME\r\n250-DSN\r\n250-CHUNKING\r\n250 ENHANCEDSTATUSCODES\r\n";
        assert_eq!(text(&Offer::new("h", &[], 7)), all);
        for extension in Extension::value_variants() {
            let offer = Offer::new("h", &[*extension], 0);
            let name = extension.to_possible_value().unwrap().get_name().to_owned();
            assert!(!text(&offer).contains(&name) && !offer.has(*extension), "{name}");
            assert_eq!(text(&offer).lines().filter(|line| line.starts_with("250 ")).count(), 1, "{name}");
        }
        assert_eq!(text(&Offer::new("h", Extension::value_variants(), 0)), "250 h\r\n");
    }

    #[test]
    fn parameters_are_held_to_the_offer() {
        let all = Offer::new("h", &[], 1000);
        for (mail, code) in [
            ("", ""),
            ("SIZE=1000 BODY=8bitmime ret=HDRS ENVID=x", ""),
            ("SIZE=1001", "552"),
            ("size=9999999999", "552"),
            ("SIZE=", "501"),
            ("SIZE=-1", "501"),
            ("RET=FULL RET=FULL", "501"),
            ("BODY=BINARYMIME", "501"),
            ("AUTH=<>", "555"),
            ("NOTIFY=NEVER", "555"),
        ] {
            let refusal = all.refuse_mail(true, mail.as_bytes()).unwrap_or_default();
            assert!(refusal.starts_with(code.as_bytes()) && refusal.is_empty() == code.is_empty(), "{mail}");
        }
        assert!(all.refuse_rcpt(true, b"NOTIFY=NEVER ORCPT=rfc822;a").is_none());
        assert!(all.refuse_rcpt(true, b"SIZE=1").is_some());
        for (extension, parameter) in
            [(Extension::Size, "SIZE=1"), (Extension::EightBitMime, "BODY=7BIT"), (Extension::Dsn, "RET=FULL")]
        {
            let offer = Offer::new("h", &[extension], 0);
            assert_eq!(offer.refuse_mail(true, parameter.as_bytes()), Some(NOT_OFFERED));
            // Behind HELO nothing is.
            assert_eq!(all.refuse_mail(false, parameter.as_bytes()), Some(NOT_OFFERED));
        }
    }

    #[test]
    fn enhanced_codes_can_be_left_out() {
        for (disabled, expected) in [
            (&[][..], &b"552 5.3.4 Message too large\r\n"[..]),
            (&[Extension::EnhancedStatusCodes], b"552 Message too large\r\n"),
        ] {
            let mut out = Vec::new();
            Offer::new("h", disabled, 0).say(TOO_LARGE, &mut out);
            assert_eq!(out, expected);
        }
    }
}
