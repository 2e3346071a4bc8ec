//! Lists of domains: those this server accepts mail for, and values kept by domain (routes).
//!
//! An item is a domain (`example.org`), all subdomains of one at any depth but not itself
//! (`.example.org`), or an address literal (`[192.0.2.1]`, `[IPv6:2001:db8::1]`). `*` has no
//! meaning and is refused. Letters match in either case. One trailing dot of an item is taken off
//! (`example.org.` is how zone files write the same name); a domain in a command has none, since
//! RFC 5321 has no such form.
//!
//! Labels follow the same grammar as in addresses (CONFORMANCE, after table C), so an item that
//! could never match is an error rather than a silent gap.

use super::source::canonical;
use crate::limits::{DOMAIN_MAX_OCTETS, LABEL_MAX_OCTETS};
use ahash::RandomState;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// One item of a list of domains, parsed: it can match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DomainPattern(Pattern);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Pattern {
    /// In lower case. A leading dot stands for the subdomains.
    Name(Box<str>),
    /// Canonical: never an IPv4-mapped IPv6 address.
    Literal(IpAddr),
}

impl FromStr for DomainPattern {
    type Err = DomainError;

    fn from_str(item: &str) -> Result<Self, DomainError> {
        let pattern = parse(&item.to_ascii_lowercase());
        pattern.map(Self).map_err(|fault| DomainError { item: item.to_owned(), fault })
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Name(name) => f.write_str(name),
            Pattern::Literal(IpAddr::V4(ip)) => write!(f, "[{ip}]"),
            Pattern::Literal(IpAddr::V6(ip)) => write!(f, "[IPv6:{ip}]"),
        }
    }
}

fn parse(lowered: &str) -> Result<Pattern, DomainFault> {
    if lowered.starts_with('[') {
        let literal = parse_literal(lowered).ok_or(DomainFault::Literal)?;
        return Ok(Pattern::Literal(literal));
    }
    let name = lowered.strip_suffix('.').unwrap_or(lowered);
    let domain = name.strip_prefix('.').unwrap_or(name);
    if domain.is_empty() {
        return Err(DomainFault::Empty);
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(character) = domain.chars().find(|c| !allowed(c)) {
        return Err(DomainFault::Character(character));
    }
    if domain.len() > DOMAIN_MAX_OCTETS {
        return Err(DomainFault::TooLong);
    }
    for label in domain.split('.') {
        if label.is_empty() {
            return Err(DomainFault::EmptyLabel);
        }
        if label.len() > LABEL_MAX_OCTETS {
            return Err(DomainFault::LabelTooLong);
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(DomainFault::Hyphen);
        }
    }
    Ok(Pattern::Name(name.into()))
}

/// The address in a literal in lower case (RFC 5321 section 4.1.3): `[192.0.2.1]`, `[ipv6:::1]`.
/// Compared as an address, since an IPv6 address has many spellings.
fn parse_literal(lowered: &str) -> Option<IpAddr> {
    let inner = lowered.strip_prefix('[')?.strip_suffix(']')?;
    let address = match inner.strip_prefix("ipv6:") {
        Some(ipv6) => ipv6.parse::<Ipv6Addr>().ok()?.into(),
        None => inner.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(canonical(address))
}

/// An item that is no domain: the operator's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainError {
    /// The item as it was written.
    pub item: String,
    /// What is wrong with it.
    pub fault: DomainFault,
}

/// What is wrong with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainFault {
    /// Nothing, or dots alone.
    Empty,
    /// Two dots in a row.
    EmptyLabel,
    /// A label of more than 63 octets.
    LabelTooLong,
    /// More than 255 octets.
    TooLong,
    /// A label that begins or ends with `-`.
    Hyphen,
    /// Not a letter, digit, `-` or `_`. Names beyond ASCII are written as A-labels (`xn--...`).
    Character(char),
    /// It begins like an address literal and is none.
    Literal,
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a domain: {}", self.item, self.fault)
    }
}

impl fmt::Display for DomainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::EmptyLabel => f.write_str("two dots in a row"),
            Self::LabelTooLong => write!(f, "a label is longer than {LABEL_MAX_OCTETS} octets"),
            Self::TooLong => write!(f, "it is longer than {DOMAIN_MAX_OCTETS} octets"),
            Self::Hyphen => f.write_str("a label begins or ends with a hyphen"),
            Self::Character('*') => f.write_str("'*' has no meaning; \".example.org\" is all its subdomains"),
            Self::Character(c) if c.is_ascii() => write!(f, "{c:?} is not allowed"),
            Self::Character(c) => write!(f, "{c:?} is not allowed; write the xn-- form"),
            Self::Literal => f.write_str("expected \"[192.0.2.1]\" or \"[IPv6:2001:db8::1]\""),
        }
    }
}

impl std::error::Error for DomainError {}

/// Values by domain: what an item of a list says about the domains it stands for.
#[derive(Debug, Clone)]
pub struct DomainMap<T> {
    /// By the names of [`Pattern::Name`], in lower case, those of subdomains with their leading dot.
    names: HashMap<Box<str>, T, RandomState>,
    literals: HashMap<IpAddr, T, RandomState>,
    /// Whether any name stands for subdomains; without one, the suffixes need no look.
    subdomains: bool,
}

impl<T> Default for DomainMap<T> {
    fn default() -> Self {
        Self { names: HashMap::default(), literals: HashMap::default(), subdomains: false }
    }
}

impl<T> DomainMap<T> {
    /// Sets the value of an item, and returns the one it had.
    pub fn insert(&mut self, DomainPattern(pattern): DomainPattern, value: T) -> Option<T> {
        match pattern {
            Pattern::Literal(address) => self.literals.insert(address, value),
            Pattern::Name(name) => {
                self.subdomains |= name.starts_with('.');
                self.names.insert(name, value)
            }
        }
    }

    /// The value for `domain`, as it stands in an address: of the item that names it, else of the
    /// longest one that stands for its parent's subdomains. Allocates nothing; costs one lookup,
    /// and one more per dot when some item stands for subdomains.
    ///
    /// The domain is one that parsed (`smtp::address`). Octets that are no domain have no value,
    /// unless they end in a dot and an item that stands for every subdomain.
    #[must_use]
    pub fn get(&self, domain: &[u8]) -> Option<&T> {
        let mut lowered = [0; DOMAIN_MAX_OCTETS];
        let lowered = lowered.get_mut(..domain.len())?;
        lowered.copy_from_slice(domain);
        lowered.make_ascii_lowercase();
        let domain = std::str::from_utf8(lowered).ok()?;
        match domain.as_bytes().first() {
            // A leading dot would find the item for subdomains itself.
            None | Some(b'.') => None,
            Some(b'[') => parse_literal(domain).and_then(|ip| self.literals.get(&ip)),
            Some(_) => self.names.get(domain).or_else(|| self.get_parent(domain)),
        }
    }

    /// The value of the longest item for the subdomains of a domain that `lowered` lies under.
    fn get_parent(&self, lowered: &str) -> Option<&T> {
        if !self.subdomains {
            return None;
        }
        // From the left: the longest suffix comes first.
        lowered.match_indices('.').find_map(|(dot, _)| self.names.get(lowered.get(dot..)?))
    }

    /// The number of different items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len() + self.literals.len()
    }

    /// Whether there is no item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The different items in order, for display: literals last.
    pub fn items(&self) -> impl Iterator<Item = DomainPattern> + use<T> {
        let mut names: Vec<_> = self.names.keys().cloned().collect();
        let mut literals: Vec<_> = self.literals.keys().copied().collect();
        names.sort_unstable();
        literals.sort_unstable();
        let names = names.into_iter().map(Pattern::Name);
        let literals = literals.into_iter().map(Pattern::Literal);
        names.chain(literals).map(DomainPattern)
    }
}

/// The domains mail is accepted for: `--accept-domain` and `--accept-domains-file` together.
#[derive(Debug, Clone, Default)]
pub struct AcceptedDomains(DomainMap<()>);

impl AcceptedDomains {
    /// Whether `domain`, as it stands in an address, is accepted; see [`DomainMap::get`].
    #[must_use]
    pub fn contains(&self, domain: &[u8]) -> bool {
        self.0.get(domain).is_some()
    }

    /// The number of different items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no domain is accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The different items in order, for display: literals last.
    pub fn iter(&self) -> impl Iterator<Item = DomainPattern> + use<> {
        self.0.items()
    }
}

impl Extend<DomainPattern> for AcceptedDomains {
    fn extend<I: IntoIterator<Item = DomainPattern>>(&mut self, items: I) {
        for item in items {
            self.0.insert(item, ());
        }
    }
}

impl FromIterator<DomainPattern> for AcceptedDomains {
    fn from_iter<I: IntoIterator<Item = DomainPattern>>(items: I) -> Self {
        let mut domains = Self::default();
        domains.extend(items);
        domains
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_list_file;
    use proptest::prelude::*;

    fn domains(items: &[&str]) -> AcceptedDomains {
        let parse = |item: &&str| item.parse::<DomainPattern>().expect("an item");
        items.iter().map(parse).collect()
    }

    #[test]
    fn accepted() {
        let accepted = domains(&[
            "example.org",
            ".Example.NET.",
            "a_b.test",
            "1.2.test",
            "[192.0.2.1]",
            "[IPv6:2001:DB8::1]",
            "[ipv6:::ffff:198.51.100.7]",
        ]);
        let table: &[(&str, bool)] = &[
            ("example.org", true),
            ("EXAMPLE.org", true),
            ("sub.example.org", false),
            ("xexample.org", false),
            ("example.org.", false),
            ("example.or", false),
            ("org", false),
            ("example.net", false),
            (".example.net", false),
            ("a.example.net", true),
            ("A.b.C.example.NET", true),
            ("xexample.net", false),
            ("example.net.org", false),
            ("a_b.test", true),
            ("1.2.test", true),
            ("", false),
            (".", false),
            ("[192.0.2.1]", true),
            ("192.0.2.1", false),
            ("[192.0.2.2]", false),
            ("[192.0.2.1", false),
            ("[IPv6:2001:db8:0:0::1]", true),
            ("[IPV6:2001:db8::1]", true),
            ("[2001:db8::1]", false),
            ("[198.51.100.7]", true),
            ("[IPv6:::ffff:192.0.2.1]", true),
            ("[]", false),
            ("[", false),
        ];
        for (domain, expected) in table {
            assert_eq!(accepted.contains(domain.as_bytes()), *expected, "{domain}");
        }
        assert!(!accepted.contains(b"\xff.example.net"));
        assert!(!accepted.contains(&[b'a'; DOMAIN_MAX_OCTETS + 1]));
        assert!(!accepted.contains(&[b'.'; DOMAIN_MAX_OCTETS]));
        assert!(!AcceptedDomains::default().contains(b"example.org"));
    }

    #[test]
    fn the_most_particular_item_counts() {
        let mut map = DomainMap::default();
        for (item, value) in [(".org", 1), (".b.org", 2), ("a.b.org", 3), (".a.b.org", 4), ("[192.0.2.1]", 5)] {
            assert_eq!(map.insert(item.parse().expect("an item"), value), None);
        }
        for (domain, value) in [
            ("org", None),
            ("x.org", Some(1)),
            ("b.org", Some(1)),
            ("xb.org", Some(1)),
            ("x.b.org", Some(2)),
            ("A.B.org", Some(3)),
            ("x.a.b.org", Some(4)),
            ("x.x.a.b.org", Some(4)),
            ("xa.b.org", Some(2)),
            ("[192.0.2.1]", Some(5)),
            ("[192.0.2.2]", None),
        ] {
            assert_eq!(map.get(domain.as_bytes()).copied(), value, "{domain}");
        }
        assert_eq!(map.insert(".ORG".parse().expect("an item"), 6), Some(1));
        assert_eq!((map.len(), map.get(b"x.org")), (5, Some(&6)));
    }

    #[test]
    fn longest_domain_is_accepted() {
        let longest = [[b'a'; 63]; 4].join(&b'.');
        assert_eq!(longest.len(), DOMAIN_MAX_OCTETS);
        let item = String::from_utf8(longest.to_ascii_uppercase()).expect("ASCII");
        assert!(domains(&[&item]).contains(&longest));
        let parent = format!(".{}", "a".repeat(63));
        assert!(domains(&[&parent]).contains(&longest));
    }

    #[test]
    fn faults() {
        let long_label = "a".repeat(64);
        let too_long = "a.".repeat(127) + "aa";
        let table: &[(&str, DomainFault)] = &[
            ("", DomainFault::Empty),
            (".", DomainFault::Empty),
            ("..", DomainFault::Empty),
            ("...", DomainFault::EmptyLabel),
            ("a..b", DomainFault::EmptyLabel),
            ("..a", DomainFault::EmptyLabel),
            ("a..", DomainFault::EmptyLabel),
            (&long_label, DomainFault::LabelTooLong),
            (&too_long, DomainFault::TooLong),
            ("-a.b", DomainFault::Hyphen),
            ("a-.b", DomainFault::Hyphen),
            ("*.example.org", DomainFault::Character('*')),
            ("a b", DomainFault::Character(' ')),
            ("user@example.org", DomainFault::Character('@')),
            ("bücher.example", DomainFault::Character('ü')),
            ("2001:db8::1", DomainFault::Character(':')),
            ("[192.0.2.1", DomainFault::Literal),
            ("[192.0.2.256]", DomainFault::Literal),
            ("[2001:db8::1]", DomainFault::Literal),
            ("[IPv6:192.0.2.1]", DomainFault::Literal),
        ];
        for (item, fault) in table {
            let error = item.parse::<DomainPattern>().expect_err(item);
            assert_eq!((&*error.item, error.fault), (*item, *fault));
            assert!(error.to_string().contains(&format!("{item:?}")), "{error}");
        }
    }

    #[test]
    fn file() {
        let text = "\u{feff}# ours\r\nexample.org\r\n\r\n  .example.net \t# and below\n#\nEXAMPLE.org";
        let mut accepted: AcceptedDomains =
            parse_list_file::<DomainPattern, _>(text, str::parse).expect("a file").into_iter().collect();
        accepted.extend(["[192.0.2.1]".parse().expect("an item")]);
        let shown: Vec<_> = accepted.iter().map(|item| item.to_string()).collect();
        assert_eq!(shown, [".example.net", "example.org", "[192.0.2.1]"]);
        assert_eq!(accepted.len(), 3);
        assert!(!accepted.is_empty());
        assert_eq!(parse_list_file::<DomainPattern, _>("", str::parse), Ok(vec![]));

        let error =
            parse_list_file::<DomainPattern, _>("# ours\r\n\r\nexample.org b\r\n", str::parse).expect_err("a space");
        assert_eq!((error.line, error.error.fault), (3, DomainFault::Character(' ')));
        let shown = "line 3: \"example.org b\" is not a domain: ' ' is not allowed";
        assert_eq!(error.to_string(), shown);
    }

    /// Few letters and short labels, so that names meet.
    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec("[abAB]{1,2}", 1..5).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn agrees_with_suffixes(
            items in prop::collection::vec(("\\.?", name()), 0..6),
            domain in name(),
        ) {
            let items: Vec<String> = items.into_iter().map(|(dot, name)| dot + &name).collect();
            let accepted: AcceptedDomains =
                items.iter().map(|item| item.parse().expect("an item")).collect();
            let domain = domain.to_lowercase();
            let expected = items.iter().map(|item| item.to_lowercase()).any(|item| {
                if item.starts_with('.') { domain.ends_with(&item) } else { domain == item }
            });
            prop_assert_eq!(accepted.contains(domain.as_bytes()), expected);
            prop_assert_eq!(accepted.contains(domain.to_uppercase().as_bytes()), expected);
        }

        #[test]
        fn parsing_is_total_and_display_parses_back(item in ".{0,80}") {
            if let Ok(pattern) = item.parse::<DomainPattern>() {
                prop_assert_eq!(pattern.to_string().parse(), Ok(pattern));
            }
        }

        #[test]
        fn any_octets_are_answered(domain: Vec<u8>) {
            prop_assert!(!domains(&["example.org", "[192.0.2.1]"]).contains(&domain));
        }
    }
}
