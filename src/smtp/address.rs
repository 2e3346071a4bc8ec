//! Addresses: the Mailbox grammar of RFC 5321 section 4.1.2.
//!
//! A [`Mailbox`] that exists is valid. Accepted beyond the grammar, because clients send it: no
//! angle brackets ([`path`]), `_` in a label. Source routes are parsed and stripped (RFC 5321
//! appendix C). Not accepted: 8-bit octets (SMTPUTF8 is not offered), an empty label, a trailing dot.

use super::command;
use crate::limits::{DOMAIN_MAX_OCTETS, LABEL_MAX_OCTETS, LOCAL_PART_MAX_OCTETS, PATH_MAX_OCTETS};

/// A mailbox; `domain` is absent for an unqualified address such as `Postmaster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox<'a> {
    local_part: &'a [u8],
    domain: Option<&'a [u8]>,
}

impl<'a> Mailbox<'a> {
    /// The local part as sent, with the quotes of a quoted string.
    pub fn local_part(&self) -> &'a [u8] {
        self.local_part
    }

    /// The domain as sent, or the address literal with its brackets.
    pub fn domain(&self) -> Option<&'a [u8]> {
        self.domain
    }

    /// Whether this is the mailbox every server must accept (RFC 5321 section 4.5.1), whatever its
    /// domain: that is for the caller to judge.
    pub fn is_postmaster(&self) -> bool {
        self.local_part.eq_ignore_ascii_case(b"postmaster")
    }
}

/// What stood between `FROM:` or `TO:` and the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'a> {
    /// `<>`.
    Null,
    /// A mailbox, its source route stripped.
    Mailbox(Mailbox<'a>),
}

/// Takes a path off the beginning of `input` (spaces and tabs before it are skipped) and returns it with
/// the rest, which is empty or begins with a space. `None`: no valid path.
pub fn path(input: &[u8]) -> Option<(Path<'_>, &[u8])> {
    let input = command::trim_start(input);
    let (inner, rest) = match input.first()? {
        b'<' => {
            let end = unquoted(&input[1..], b'>')? + 1;
            (&input[1..end], &input[end + 1..])
        }
        _ => input.split_at(unquoted(input, b' ').unwrap_or(input.len())),
    };
    if !(rest.is_empty() || rest[0] == b' ') || inner.len() + 2 > PATH_MAX_OCTETS {
        return None;
    }
    if inner.is_empty() {
        return Some((Path::Null, rest));
    }
    Some((Path::Mailbox(mailbox(strip_source_route(inner)?)?), rest))
}

/// The index of the first `wanted` that is not inside a quoted string.
fn unquoted(input: &[u8], wanted: u8) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (index, &octet) in input.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if quoted && octet == b'\\' {
            escaped = true;
        } else if octet == b'"' {
            quoted = !quoted;
        } else if octet == wanted && !quoted {
            return Some(index);
        }
    }
    None
}

/// `@a.example,@b.example:user@c.example` without what the colon ends.
fn strip_source_route(path: &[u8]) -> Option<&[u8]> {
    if path.first() != Some(&b'@') {
        return Some(path);
    }
    let colon = route_end(path)?;
    let hops = &path[..colon];
    let valid = hops.split(|&octet| octet == b',').all(|hop| hop.first() == Some(&b'@') && is_domain(&hop[1..]));
    valid.then_some(&path[colon + 1..])
}

/// The colon that ends a source route: the first one outside an address literal.
fn route_end(path: &[u8]) -> Option<usize> {
    let mut literal = false;
    for (index, &octet) in path.iter().enumerate() {
        match octet {
            b'[' => literal = true,
            b']' => literal = false,
            b':' if !literal => return Some(index),
            _ => {}
        }
    }
    None
}

/// Parses a mailbox, with or without a domain.
pub fn mailbox(input: &[u8]) -> Option<Mailbox<'_>> {
    let (local_part, domain) = match unquoted(input, b'@') {
        Some(at) => (&input[..at], Some(&input[at + 1..])),
        None => (input, None),
    };
    let valid = is_local_part(local_part) && domain.is_none_or(is_domain);
    valid.then_some(Mailbox { local_part, domain })
}

fn is_local_part(local_part: &[u8]) -> bool {
    if local_part.len() > LOCAL_PART_MAX_OCTETS {
        return false;
    }
    match local_part {
        [b'"', inner @ .., b'"'] => is_quoted_content(inner),
        _ => local_part.split(|&octet| octet == b'.').all(|atom| !atom.is_empty() && atom.iter().all(is_atext)),
    }
}

/// QcontentSMTP, RFC 5321 section 4.1.2.
fn is_quoted_content(inner: &[u8]) -> bool {
    let mut octets = inner.iter();
    while let Some(&octet) = octets.next() {
        match octet {
            b'\\' => match octets.next() {
                Some(32..=126) => {}
                _ => return false,
            },
            b'"' => return false,
            32..=126 => {}
            _ => return false,
        }
    }
    true
}

/// atext, RFC 5322 section 3.2.3.
pub(super) fn is_atext(octet: &u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(octet)
}

/// Whether `domain` is a domain name or an address literal.
pub fn is_domain(domain: &[u8]) -> bool {
    if domain.is_empty() || domain.len() > DOMAIN_MAX_OCTETS {
        return false;
    }
    if let [b'[', literal @ .., b']'] = domain {
        return is_address_literal(literal);
    }
    domain.split(|&octet| octet == b'.').all(is_label)
}

fn is_label(label: &[u8]) -> bool {
    let ends_well = |octet: Option<&u8>| octet.is_some_and(|&octet| octet != b'-');
    label.len() <= LABEL_MAX_OCTETS
        && ends_well(label.first())
        && ends_well(label.last())
        && label.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
}

/// IPv4-address-literal or IPv6-address-literal; no other tag is registered.
fn is_address_literal(literal: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(literal) else { return false };
    match text.split_at_checked(5) {
        Some((tag, address)) if tag.eq_ignore_ascii_case("IPv6:") => is_ipv6(address),
        _ => is_ipv4(text),
    }
}

/// `Snum 3("." Snum)`: leading zeros are allowed, which `Ipv4Addr` does not parse.
fn is_ipv4(text: &str) -> bool {
    let is_snum = |number: &str| {
        number.len() <= 3 && number.bytes().all(|digit| digit.is_ascii_digit()) && number.parse::<u8>().is_ok()
    };
    text.split('.').count() == 4 && text.split('.').all(is_snum)
}

/// IPv6-addr: eight groups, an IPv4 address at the end for two of them, `::` in place of two or
/// more. (`Ipv6Addr` parses other forms too: RFC 4291 lets `::` stand for one.)
fn is_ipv6(text: &str) -> bool {
    match text.split_once("::") {
        None => groups(text, true) == Some(8),
        Some((head, tail)) => {
            let groups = |half: &str, is_last| if half.is_empty() { Some(0) } else { groups(half, is_last) };
            groups(head, false).zip(groups(tail, true)).is_some_and(|(head, tail)| head + tail <= 6)
        }
    }
}

/// How many groups these are, with a colon between each; `None` where one is none.
fn groups(text: &str, is_last: bool) -> Option<usize> {
    let mut words = text.split(':');
    let last = words.next_back()?;
    let is_group = |word: &str| (1..=4).contains(&word.len()) && word.bytes().all(|digit| digit.is_ascii_hexdigit());
    let before = words.try_fold(0, |count, word| is_group(word).then_some(count + 1))?;
    if is_last && is_ipv4(last) { Some(before + 2) } else { is_group(last).then_some(before + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(input: &str) -> Option<(String, Option<String>, String)> {
        let (path, rest) = path(input.as_bytes())?;
        let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).expect("ASCII");
        match path {
            Path::Null => Some((String::new(), None, text(rest))),
            Path::Mailbox(mailbox) => Some((text(mailbox.local_part()), mailbox.domain().map(text), text(rest))),
        }
    }

    #[test]
    fn paths() {
        let cases = [
            ("<a@b.c>", "a", Some("b.c"), ""),
            (" <a@b.c> SIZE=1", "a", Some("b.c"), " SIZE=1"),
            ("a@b.c SIZE=1", "a", Some("b.c"), " SIZE=1"),
            ("a@b.c", "a", Some("b.c"), ""),
            ("<Postmaster>", "Postmaster", None, ""),
            ("<\"a b>c\"@d.e>", "\"a b>c\"", Some("d.e"), ""),
            ("<\"a\\\"@b\"@d.e>", "\"a\\\"@b\"", Some("d.e"), ""),
            ("\"a b\"@d.e X=1", "\"a b\"", Some("d.e"), " X=1"),
            ("<\"\"@d.e>", "\"\"", Some("d.e"), ""),
            ("<@x.y:a@b.c>", "a", Some("b.c"), ""),
            ("<@x.y,@[IPv6:::1]:a@b.c>", "a", Some("b.c"), ""),
            ("<a@[192.0.2.1]>", "a", Some("[192.0.2.1]"), ""),
            ("<a@[192.000.02.1]>", "a", Some("[192.000.02.1]"), ""),
            ("<a@[IPv6:2001:db8::1]>", "a", Some("[IPv6:2001:db8::1]"), ""),
            ("<a!#$%&'*+-/=?^_`{|}~@b_c.d-e>", "a!#$%&'*+-/=?^_`{|}~", Some("b_c.d-e"), ""),
            ("<a@localhost>", "a", Some("localhost"), ""),
            ("<>", "", None, ""),
            ("<> BODY=7BIT", "", None, " BODY=7BIT"),
        ];
        for (input, local, domain, rest) in cases {
            assert_eq!(parsed(input), Some((local.into(), domain.map(str::to_owned), rest.into())), "{input}");
        }
    }

    #[test]
    fn not_paths() {
        for input in [
            "",
            " ",
            "<",
            "<a@b.c",
            "a@b.c>",
            "<a@b.c>x",
            "<a@b.c>SIZE=1",
            "<a@@b.c>",
            "<@b.c>",
            "<a@>",
            "<a b@c.d>",
            "<.a@b.c>",
            "<a.@b.c>",
            "<a..b@c.d>",
            "<a@.b>",
            "<a@b.>",
            "<a@b..c>",
            "<a@-b.c>",
            "<a@b-.c>",
            "<a@b.c >",
            "< a@b.c>",
            "<a@[300.1.1.1]>",
            "<a@[IPv6:x]>",
            "<a@[IPv6:1:2:3:4:5:6:7::]>",
            "<a@[IPv6:1:2:3:4:5:6:7:8:9]>",
            "<a@[IPv6::1]>",
            "<a@[IPv6:192.0.2.1::]>",
            "\u{c}<a@b.c>",
            "<a@[]>",
            "<a@b!c>",
            "<\"a\"b@c.d>",
            "<\"a@c.d>",
            "<a\u{e9}@b.c>",
            "<a@b\u{e9}.c>",
            "<@x.y a@b.c>",
            "<@x.y,a@b.c>",
            "<@x.y:>",
            "<a(c)@b.c>",
            "<<a@b.c>>",
            "<\"a\\\"@b.c>",
        ] {
            assert_eq!(parsed(input), None, "{input}");
        }
    }

    #[test]
    fn lengths() {
        let local = "l".repeat(LOCAL_PART_MAX_OCTETS);
        assert!(parsed(&format!("<{local}@b.c>")).is_some());
        assert!(parsed(&format!("<{local}l@b.c>")).is_none());
        let label = "d".repeat(LABEL_MAX_OCTETS);
        assert!(parsed(&format!("<a@{label}.c>")).is_some());
        assert!(parsed(&format!("<a@{label}d.c>")).is_none());
        // The path with its brackets: 256 octets.
        let domain = format!("{label}.{label}.{label}.{}", "e".repeat(PATH_MAX_OCTETS - 2 - 2 - 3 * 64));
        assert_eq!(format!("<a@{domain}>").len(), PATH_MAX_OCTETS);
        assert!(parsed(&format!("<a@{domain}>")).is_some());
        assert!(parsed(&format!("<aa@{domain}>")).is_none());
    }
}
