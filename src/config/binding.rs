//! Where the gateway listens, and what holds there: `--listen`.

use super::ConfigError;
use crate::limits::SUBMISSION_PORT;
use crate::policy::{BindingRules, parse_range};
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
    /// Whether clients must authenticate.
    pub requires_auth: bool,
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
    let mut binding =
        Binding { address, rules: BindingRules::default(), requires_auth: address.port() == SUBMISSION_PORT };
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
            ("auth", Some("off" | "optional")) => binding.requires_auth = false,
            ("auth", Some("required")) => binding.requires_auth = true,
            ("auth", _) => return Err(failed("auth is off, optional or required".to_owned())),
            ("allow", Some(ranges)) => {
                let ranges = ranges.split('+').map(parse_range).collect::<Result<_, _>>();
                binding.rules.allow = Some(ranges.map_err(|error| failed(format!("allow: {error}")))?);
            }
            ("allow", None) => return Err(failed("allow needs ranges, as in allow=10.0.0.0/8+192.0.2.1".to_owned())),
            ("tls", Some("off")) => {}
            ("tls" | "plaintext-auth" | "proxy", _) => {
                return Err(failed(format!("{word} is not supported by this version; leave it out")));
            }
            _ => {
                let known = "role=, auth=, tls=, plaintext-auth, allow=, proxy=";
                return Err(failed(format!("{word:?} is no attribute of a binding; there are {known}")));
            }
        }
    }
    Ok(binding)
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
        assert_eq!((plain.rules.role, plain.requires_auth, plain.rules.allow.is_none()), (Role::Gateway, false, true));
        assert_eq!(one("[::1]:25,role=relay").rules.role, Role::Relay);
        assert!(one("127.0.0.1:587").requires_auth);
        assert!(!one("127.0.0.1:587,auth=off").requires_auth && !one("127.0.0.1:587,auth=optional").requires_auth);
        assert!(one("127.0.0.1:25,tls=off,auth=required,role=gateway").requires_auth);
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
            ("127.0.0.1:25,tls=required", "tls=required"),
            ("127.0.0.1:25,", "no attribute"),
            ("127.0.0.1:25, role=relay", "no attribute"),
        ] {
            let error = bindings(&[item.to_owned()]).expect_err(item).to_string();
            assert!(error.contains("--listen") && error.contains(detail), "{item}: {error}");
        }
    }
}
