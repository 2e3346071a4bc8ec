//! Where the gateway listens, and what holds there: `--listen`.

use super::ConfigError;
use crate::limits::SUBMISSION_PORT;
use crate::policy::{AddressRanges, BindingRules, RangeError, parse_range};
use crate::smtp::server::Role;
use std::net::SocketAddr;

const OPTION: &str = "--listen";

/// One address to listen on ([MS-OXSMTP] 4.0 section 1.5, bindings).
#[derive(Clone, Debug)]
pub struct Binding {
    /// Address and port.
    pub address: SocketAddr,
    /// Its role, and who may connect.
    pub rules: BindingRules,
    /// The proxies, which begin with a header of the PROXY protocol; `None`: nobody does.
    pub proxy: Option<AddressRanges>,
    /// TLS there; `None`: STARTTLS if there is a certificate.
    pub tls: Option<Tls>,
    /// AUTH there.
    pub auth: Auth,
    /// Whether passwords may be sent without TLS (CONFORMANCE F6).
    pub plaintext_auth: bool,
}

/// TLS on a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// None.
    Off,
    /// Who wants it says STARTTLS (RFC 3207).
    Optional,
    /// Who does not say STARTTLS can do nothing (CONFORMANCE C3).
    Required,
    /// From the first octet on (RFC 8314 section 3).
    Implicit,
}

/// AUTH on a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// None.
    Off,
    /// If there are users.
    Optional,
    /// Who has not authenticated can send nothing (CONFORMANCE C9).
    Required,
}

/// Parses the items of `--listen`; none for `none`.
pub fn bindings(items: &[String]) -> Result<Vec<Binding>, ConfigError> {
    if items.iter().any(|item| item == "none") {
        return match items {
            [_] => Ok(Vec::new()),
            _ => Err(ConfigError::new(OPTION, "\"none\" stands alone; leave it out to listen")),
        };
    }
    let mut bindings: Vec<Binding> = Vec::new();
    for item in items {
        let binding = binding(item)?;
        let address = binding.address;
        if address.port() != 0 && bindings.iter().any(|other| other.address == address) {
            return Err(ConfigError::new(OPTION, format!("{address} is given twice")));
        }
        bindings.push(binding);
    }
    Ok(bindings)
}

fn binding(item: &str) -> Result<Binding, ConfigError> {
    let failed = |message: String| ConfigError::new(OPTION, format!("{item:?}: {message}"));
    let mut words = item.split(',');
    let address = words.next().unwrap_or_default();
    let address: SocketAddr = address
        .parse()
        .map_err(|_| failed("expected ADDR:PORT, as in 0.0.0.0:25 or [::]:25, before the first comma".to_owned()))?;
    // RFC 6409 section 4.3: who submits must say who it is.
    let auth = if address.port() == SUBMISSION_PORT { Auth::Required } else { Auth::Optional };
    let rules = BindingRules::default();
    let mut binding = Binding { address, rules, proxy: None, tls: None, auth, plaintext_auth: false };
    let mut seen = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        if seen.contains(&key) {
            return Err(failed(format!("{key} is given twice")));
        }
        seen.push(key);
        match (key, value) {
            ("role", Some("gateway")) => binding.rules.role = Role::Gateway,
            ("role", Some("relay")) => binding.rules.role = Role::Relay,
            ("role", _) => return Err(failed("role is gateway or relay".to_owned())),
            ("auth", Some("off")) => binding.auth = Auth::Off,
            ("auth", Some("optional")) => binding.auth = Auth::Optional,
            ("auth", Some("required")) => binding.auth = Auth::Required,
            ("auth", _) => return Err(failed("auth is off, optional or required".to_owned())),
            ("allow", Some(items)) => {
                binding.rules.allow = Some(ranges(items).map_err(|error| failed(format!("allow: {error}")))?);
            }
            ("allow", None) => return Err(failed("allow needs ranges, as in allow=10.0.0.0/8+192.0.2.1".to_owned())),
            ("tls", Some("off")) => binding.tls = Some(Tls::Off),
            ("tls", Some("optional")) => binding.tls = Some(Tls::Optional),
            ("tls", Some("required")) => binding.tls = Some(Tls::Required),
            ("tls", Some("implicit")) => binding.tls = Some(Tls::Implicit),
            ("tls", _) => return Err(failed("tls is off, optional, required or implicit".to_owned())),
            ("plaintext-auth", None) => binding.plaintext_auth = true,
            ("plaintext-auth", Some(_)) => return Err(failed("plaintext-auth has no value".to_owned())),
            ("proxy", Some(items)) => {
                binding.proxy = Some(ranges(items).map_err(|error| failed(format!("proxy: {error}")))?);
            }
            ("proxy", None) => return Err(failed("proxy needs ranges, as in proxy=10.0.0.1+10.0.0.2".to_owned())),
            _ => {
                let known = "role=, auth=, tls=, plaintext-auth, allow=, proxy=";
                return Err(failed(format!("{word:?} is no attribute of a binding; there are {known}")));
            }
        }
    }
    Ok(binding)
}

/// Ranges with `+` between them.
fn ranges(items: &str) -> Result<AddressRanges, RangeError> {
    items.split('+').map(parse_range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(item: &str) -> Binding {
        bindings(&[item.to_owned()]).expect(item).remove(0)
    }

    #[test]
    fn attributes() {
        let plain = one("127.0.0.1:25");
        assert_eq!((plain.rules.role, plain.rules.allow.is_none()), (Role::Gateway, true));
        assert_eq!((plain.tls, plain.auth, plain.plaintext_auth), (None, Auth::Optional, false));
        assert_eq!(one("[::1]:25,role=relay").rules.role, Role::Relay);
        assert_eq!(one("127.0.0.1:587").auth, Auth::Required);
        assert_eq!(one("127.0.0.1:587,auth=off").auth, Auth::Off);
        assert_eq!(one("127.0.0.1:587,auth=optional").auth, Auth::Optional);
        assert_eq!(one("127.0.0.1:25,tls=off,auth=required,role=gateway").auth, Auth::Required);
        for (word, tls) in
            [("off", Tls::Off), ("optional", Tls::Optional), ("required", Tls::Required), ("implicit", Tls::Implicit)]
        {
            assert_eq!(one(&format!("127.0.0.1:25,tls={word}")).tls, Some(tls));
        }
        assert!(one("127.0.0.1:25,plaintext-auth").plaintext_auth);
        let allow = one("[::]:25,allow=10.0.0.0/8+2001:db8::/32+192.0.2.1").rules.allow.expect("ranges");
        for (client, allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db9::1", false),
        ] {
            assert_eq!(allow.contains(client.parse().expect("an address")), allowed, "{client}");
        }
        assert_eq!(plain.proxy, None);
        let proxied = one("[::]:25,proxy=10.0.0.1+2001:db8::/64,allow=192.0.2.0/24");
        let proxies = proxied.proxy.expect("ranges");
        for (peer, is_proxy) in
            [("10.0.0.1", true), ("::ffff:10.0.0.1", true), ("2001:db8::7", true), ("10.0.0.2", false)]
        {
            assert_eq!(proxies.contains(peer.parse().expect("an address")), is_proxy, "{peer}");
        }
        assert!(!proxied.rules.allow.expect("ranges").contains([10, 0, 0, 1].into()));
    }

    #[test]
    fn several() {
        let items = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:25", "[::1]:25"].map(str::to_owned);
        assert_eq!(bindings(&items).expect("valid").len(), 4);
        assert!(bindings(&["none".to_owned()]).expect("valid").is_empty());
    }

    #[test]
    fn errors_name_the_word() {
        for (item, detail) in [
            ("25", "ADDR:PORT"),
            ("", "ADDR:PORT"),
            ("localhost:25", "ADDR:PORT"),
            ("127.0.0.1:25,role=hub", "gateway or relay"),
            ("127.0.0.1:25,role", "gateway or relay"),
            ("127.0.0.1:25,role=relay,role=relay", "twice"),
            ("127.0.0.1:25,auth=yes", "required"),
            ("127.0.0.1:25,allow=", "address range"),
            ("127.0.0.1:25,allow", "allow needs"),
            ("127.0.0.1:25,allow=10.0.0.0/33", "10.0.0.0/33"),
            ("127.0.0.1:25,allow=10.0.0.0/8,192.0.2.1", "192.0.2.1"),
            ("127.0.0.1:25,tls=on", "implicit"),
            ("127.0.0.1:25,tls", "implicit"),
            ("127.0.0.1:25,plaintext-auth=yes", "no value"),
            ("127.0.0.1:25,proxy", "proxy needs"),
            ("127.0.0.1:25,proxy=", "proxy: "),
            ("127.0.0.1:25,proxy=10.0.0.0/33", "10.0.0.0/33"),
            ("127.0.0.1:25,proxy=10.0.0.1,proxy=10.0.0.2", "twice"),
            ("127.0.0.1:25,", "no attribute"),
            ("127.0.0.1:25, role=relay", "no attribute"),
        ] {
            let error = bindings(&[item.to_owned()]).expect_err(item).to_string();
            assert!(error.contains("--listen") && error.contains(detail), "{item}: {error}");
        }
    }
}
