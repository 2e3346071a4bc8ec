//! Facts to verdicts: what is decided of a command once its facts are known.

use super::domains::AcceptedDomains;
use crate::smtp::server::Role;

/// What is decided of a recipient by its domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum RecipientVerdict {
    /// We take mail for it, or relay for this client.
    Accept,
    /// Neither is its domain ours nor may the client relay: `550 5.7.1 Unable to relay`
    /// (CONFORMANCE C19).
    RelayDenied,
}

/// Whether a recipient may be accepted from this client.
///
/// - `relay_allowed`: the client's address is in `--relay-from`.
/// - `domain`: the recipient's, qualified already (C11); `None` only for a bare `<Postmaster>`.
/// - `is_postmaster`: the local part is `postmaster` in any case. Postmaster without a domain is
///   ours by definition (RFC 5321 section 4.5.1); with one, the domain decides: a foreign
///   Postmaster must not be a way to relay.
pub fn recipient(
    domains: &AcceptedDomains,
    relay_allowed: bool,
    domain: Option<&[u8]>,
    is_postmaster: bool,
) -> RecipientVerdict {
    let is_ours = match domain {
        Some(domain) => domains.contains(domain),
        None => is_postmaster,
    };
    if is_ours || relay_allowed { RecipientVerdict::Accept } else { RecipientVerdict::RelayDenied }
}

/// Whether it matters for a recipient that the client is on a DNS block list, by what is decided of the
/// recipient otherwise: on a gateway, for clients that may not relay, and not for our own Postmaster, who
/// can be asked why (CONFORMANCE E15). A foreign Postmaster is a recipient like any other.
#[must_use]
pub fn minds_block_lists(role: Role, relay_allowed: bool, is_postmaster: bool, verdict: RecipientVerdict) -> bool {
    let is_our_postmaster = is_postmaster && verdict == RecipientVerdict::Accept;
    role == Role::Gateway && !relay_allowed && !is_our_postmaster
}

#[cfg(test)]
mod tests {
    use super::RecipientVerdict::{Accept, RelayDenied};
    use super::*;

    #[test]
    fn recipients() {
        let ours = ["example.org", ".example.net"].map(|item| item.parse().expect("an item"));
        let ours = AcceptedDomains::from_iter(ours);
        let table: &[(bool, Option<&str>, bool, RecipientVerdict)] = &[
            (false, Some("example.org"), false, Accept),
            (false, Some("EXAMPLE.ORG"), false, Accept),
            (false, Some("a.example.net"), false, Accept),
            (false, Some("example.net"), false, RelayDenied),
            (false, Some("example.com"), false, RelayDenied),
            (true, Some("example.com"), false, Accept),
            (false, None, true, Accept),
            (false, Some("example.org"), true, Accept),
            (false, Some("example.com"), true, RelayDenied),
            (true, Some("example.com"), true, Accept),
            (false, None, false, RelayDenied),
        ];
        for (relay_allowed, domain, is_postmaster, expected) in table {
            let octets = domain.map(str::as_bytes);
            let verdict = recipient(&ours, *relay_allowed, octets, *is_postmaster);
            assert_eq!(verdict, *expected, "{relay_allowed} {domain:?} {is_postmaster}");
        }
        let none = AcceptedDomains::default();
        assert_eq!(recipient(&none, false, Some(b"example.org"), false), RelayDenied);
        assert_eq!(recipient(&none, false, None, true), Accept);
    }

    #[test]
    fn who_is_asked_about() {
        for (role, relay_allowed, is_postmaster, verdict, expected) in [
            (Role::Gateway, false, false, Accept, true),
            (Role::Gateway, false, false, RelayDenied, true),
            (Role::Gateway, false, true, RelayDenied, true),
            (Role::Gateway, false, true, Accept, false),
            (Role::Gateway, true, false, Accept, false),
            (Role::Relay, false, false, Accept, false),
        ] {
            let minds = minds_block_lists(role, relay_allowed, is_postmaster, verdict);
            assert_eq!(minds, expected, "{role:?} {relay_allowed} {is_postmaster} {verdict:?}");
        }
    }
}
