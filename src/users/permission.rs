//! What a user may do: the items of `senders=` and `bindings=`.

use crate::policy::{DomainPattern, canonical};
use crate::smtp::address::{Mailbox, mailbox};
use std::fmt;
use std::net::SocketAddr;
use std::str::{self, FromStr};

/// An item of `senders=`: the reverse-paths it stands for.
///
/// Case does not count. A quoted local part is another one than without its quotes. One that has white
/// space or a comma cannot be written; its domain can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderPattern(Sender);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sender {
    /// `<>`.
    Null,
    /// The local part in lower case.
    Mailbox(Box<str>, DomainPattern),
    /// Every mailbox in it.
    Domain(DomainPattern),
    /// Every mailbox in the subdomains of one, in lower case, with the dot before it.
    Subdomains(Box<str>),
}

impl SenderPattern {
    /// Whether it stands for this reverse-path; `None` is the null one.
    pub(super) fn matches(&self, sender: Option<&Mailbox<'_>>, default_domain: Option<&str>) -> bool {
        let Some(sender) = sender else { return self.0 == Sender::Null };
        let Some(domain) = sender.domain().or(default_domain.map(str::as_bytes)) else { return false };
        match &self.0 {
            Sender::Null => false,
            Sender::Mailbox(local_part, own) => {
                sender.local_part().eq_ignore_ascii_case(local_part.as_bytes()) && is_domain(own, domain)
            }
            Sender::Domain(own) => is_domain(own, domain),
            Sender::Subdomains(suffix) => domain
                .split_at_checked(domain.len().saturating_sub(suffix.len()))
                .is_some_and(|(labels, end)| !labels.is_empty() && end.eq_ignore_ascii_case(suffix.as_bytes())),
        }
    }
}

/// Address literals have many spellings; a pattern has one.
fn is_domain(pattern: &DomainPattern, domain: &[u8]) -> bool {
    let domain = str::from_utf8(domain).ok().and_then(|domain| domain.parse::<DomainPattern>().ok());
    domain.as_ref() == Some(pattern)
}

impl FromStr for SenderPattern {
    type Err = PatternFault;

    fn from_str(item: &str) -> Result<Self, PatternFault> {
        const FAULT: PatternFault = PatternFault("expected a@example.org, example.org, .example.org or <>");
        if item == "<>" {
            return Ok(SenderPattern(Sender::Null));
        }
        if item.contains(|c: char| c.is_whitespace() || c == ',') {
            return Err(FAULT);
        }
        if !item.contains('@') {
            let domain: DomainPattern = item.parse().map_err(|_| FAULT)?;
            let written = domain.to_string();
            let is_suffix = written.starts_with('.');
            return Ok(SenderPattern(if is_suffix {
                Sender::Subdomains(written.into())
            } else {
                Sender::Domain(domain)
            }));
        }
        let mailbox = mailbox(item.as_bytes()).ok_or(FAULT)?;
        let text = |octets| str::from_utf8(octets).map_err(|_| FAULT);
        let local_part = text(mailbox.local_part())?.to_ascii_lowercase();
        let domain = text(mailbox.domain().ok_or(FAULT)?)?.parse().map_err(|_| FAULT)?;
        Ok(SenderPattern(Sender::Mailbox(local_part.into(), domain)))
    }
}

impl fmt::Display for SenderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Sender::Null => f.write_str("<>"),
            Sender::Mailbox(local_part, domain) => write!(f, "{local_part}@{domain}"),
            Sender::Domain(domain) => domain.fmt(f),
            Sender::Subdomains(suffix) => f.write_str(suffix),
        }
    }
}

/// An item of `bindings=`: the bindings it stands for, by the address they listen on.
///
/// A binding on all addresses (`0.0.0.0:587`) is that address, not each of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingPattern(Binding);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    Port(u16),
    /// Canonical: never an IPv4-mapped IPv6 address.
    Address(SocketAddr),
}

impl BindingPattern {
    /// Whether it stands for the binding that listens on this address.
    pub(super) fn matches(self, binding: SocketAddr) -> bool {
        match self.0 {
            Binding::Port(port) => binding.port() == port,
            Binding::Address(own) => own == SocketAddr::new(canonical(binding.ip()), binding.port()),
        }
    }
}

impl FromStr for BindingPattern {
    type Err = PatternFault;

    fn from_str(item: &str) -> Result<Self, PatternFault> {
        const FAULT: PatternFault = PatternFault("expected a port or ADDR:PORT, as in 587 or 192.0.2.1:587");
        let (binding, port) = if item.bytes().all(|digit| digit.is_ascii_digit()) {
            let port = item.parse().map_err(|_| FAULT)?;
            (Binding::Port(port), port)
        } else {
            let address: SocketAddr = item.parse().map_err(|_| FAULT)?;
            (Binding::Address(SocketAddr::new(canonical(address.ip()), address.port())), address.port())
        };
        // What listens on port 0 listens on some other.
        if port == 0 { Err(FAULT) } else { Ok(BindingPattern(binding)) }
    }
}

impl fmt::Display for BindingPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Binding::Port(port) => port.fmt(f),
            Binding::Address(address) => address.fmt(f),
        }
    }
}

/// What is wrong with an item: what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternFault(&'static str);

impl fmt::Display for PatternFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for PatternFault {}
