//! `--next-hop`, `--route` and the times of delivery.
//!
//! A next hop is the same one wherever its host and port are written again, so that its state is
//! shared; its attributes must be the same then. Names are not resolved here: two names of one machine
//! are two next hops. Files are only named here: they are read before the shards start.
//!
//! | `tls=` | |
//! |---|---|
//! | `off` | never TLS; passwords go in clear, as the operator asked for |
//! | `optional` | STARTTLS where it is offered, whatever the certificate (RFC 7435); without TLS where it fails. Without TLS passwords are not sent: whoever stands between could have taken STARTTLS out. Whoever answers in its place is told them |
//! | `required` | STARTTLS, and a certificate that is verified; before that nothing of a message, no name and no password |

use super::options::ServeOptions;
use super::{ConfigError, units};
use crate::delivery::{Backoff, NextHopId, RoutePattern, Routes};
use crate::limits;
use crate::policy::canonical;
use crate::smtp::address::is_domain;
use rustls::pki_types::ServerName;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

const NEXT_HOP: &str = "--next-hop";
const ROUTE: &str = "--route";
const EXPECTED: &str = "expected HOST:PORT, as in 192.0.2.1:25, [2001:db8::1]:25 or mail.example.org:25";

/// A next hop as the operator described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopConfig {
    /// Where it is.
    pub address: NextHopAddress,
    /// Whether its connections use TLS.
    pub tls: TlsUse,
    /// Its name in TLS: `tls-name=`, or its host.
    pub tls_name: ServerName<'static>,
    /// Where name and password for AUTH are. `None`: nobody logs on.
    pub auth_file: Option<PathBuf>,
}

/// Whether connections to a next hop use TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TlsUse {
    /// `tls=off`.
    Off,
    /// `tls=optional`.
    #[default]
    Optional,
    /// `tls=required`.
    Required {
        /// The certificates of those who may vouch for it; `None`: whom the system trusts.
        ca: Option<PathBuf>,
    },
}

/// Where a next hop is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHopAddress {
    /// Its host.
    pub host: Host,
    /// Its TCP port, never 0.
    pub port: u16,
}

/// A next hop's host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address, never an IPv4-mapped IPv6 one.
    Ip(IpAddr),
    /// A name to resolve, in lower case, without a trailing dot.
    Name(String),
}

impl Host {
    /// The name a certificate for it has.
    fn tls_name(&self) -> Option<ServerName<'static>> {
        match self {
            Host::Ip(ip) => Some(ServerName::from(*ip)),
            Host::Name(name) => ServerName::try_from(name.clone()).ok(),
        }
    }
}

impl NextHopAddress {
    /// Whether it certainly is one of these addresses of our own. Names and the machine's other
    /// addresses are not looked up.
    pub(super) fn is_any_of(&self, mut own: impl Iterator<Item = SocketAddr>) -> bool {
        let Host::Ip(ip) = self.host else { return false };
        own.any(|address| {
            let any_reaches = address.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified());
            address.port() == self.port && (canonical(address.ip()) == ip || any_reaches)
        })
    }
}

impl fmt::Display for NextHopAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for NextHopAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let is_number = port.bytes().all(|octet| octet.is_ascii_digit());
        let port = port.parse().ok().filter(|&port| port > 0 && is_number);
        let port = port.ok_or_else(|| format!("a port is a number from 1 to 65535; {EXPECTED}"))?;
        let host = parse_host(host).ok_or_else(|| format!("{host:?} is not a host; {EXPECTED}"))?;
        Ok(NextHopAddress { host, port })
    }
}

fn parse_host(text: &str) -> Option<Host> {
    if let Some(inner) = text.strip_prefix('[') {
        let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Host::Ip(canonical(ip.into())));
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(Host::Ip(ip.into()));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    // What ends in a number is a mistyped address (RFC 1123 section 2.1), not a name.
    let top = name.rsplit('.').next()?;
    let is_address = top.bytes().all(|octet| octet.is_ascii_digit());
    (is_domain(name.as_bytes()) && !is_address).then_some(Host::Name(name))
}

/// Where accepted mail goes, and when.
#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// All next hops; a [`NextHopId`] is a place in this list.
    pub next_hops: Vec<NextHopConfig>,
    /// Which of them a domain's mail goes to. Without any, mail is held.
    pub routes: Arc<Routes>,
    /// The wait after the first failure.
    pub retry_min: Duration,
    /// The longest wait between two tries.
    pub retry_max: Duration,
    /// How long a message is tried.
    pub queue_lifetime: Duration,
    /// How long an acknowledgement may wait for the next hop, if there is one; `None`: not at all.
    pub ack_delay: Option<Duration>,
    /// How long a next hop may keep silent.
    pub next_hop_timeout: Duration,
}

impl DeliveryConfig {
    /// Checks the options of delivery, and each against the others.
    pub(super) fn new(options: &ServeOptions) -> Result<Self, ConfigError> {
        check_times(options)?;
        let mut lists = Lists::default();
        for item in &options.next_hop {
            lists.add(NEXT_HOP, item, RoutePattern::Default, item)?;
        }
        for item in &options.route {
            let (pattern, target) = split_route(item)?;
            if pattern == RoutePattern::Default && !options.next_hop.is_empty() {
                let message =
                    format!("{item:?} and {NEXT_HOP} both say where all other mail goes; keep one of the two");
                return Err(ConfigError::new(ROUTE, message));
            }
            lists.add(ROUTE, item, pattern, target)?;
        }
        let Lists { next_hops, by_pattern, .. } = lists;
        let routes = Routes::new(by_pattern).map_err(|error| ConfigError::new(ROUTE, error))?;
        let ack_delay = (!options.ack_delay.is_zero()).then_some(options.ack_delay);
        Ok(DeliveryConfig {
            next_hops,
            routes: Arc::new(routes),
            retry_min: options.retry_min,
            retry_max: options.retry_max,
            queue_lifetime: options.queue_lifetime,
            ack_delay,
            next_hop_timeout: options.next_hop_timeout,
        })
    }

    /// What an operator may not expect of the next hops.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.next_hops.iter().filter(|next_hop| next_hop.auth_file.is_some()).filter_map(|next_hop| {
            let danger = match next_hop.tls {
                TlsUse::Off => "tls=off with auth-file: PLAIN and LOGIN send the password in clear",
                TlsUse::Optional => {
                    "tls=optional with auth-file: whoever answers in its place may ask for PLAIN or LOGIN, and is told the password"
                }
                TlsUse::Required { .. } => return None,
            };
            Some(format!("next hop {}: {danger}; tls=required protects it", next_hop.address))
        })
    }

    /// The waits between tries.
    #[must_use]
    pub fn backoff(&self) -> Backoff {
        Backoff { min: self.retry_min, max: self.retry_max }
    }
}

/// The next hops so far, and those of each pattern in failover order.
#[derive(Default)]
struct Lists {
    next_hops: Vec<NextHopConfig>,
    /// As each of them was first written.
    written: Vec<String>,
    by_pattern: Vec<(RoutePattern, Vec<NextHopId>)>,
}

impl Lists {
    fn add(
        &mut self,
        option: &'static str,
        item: &str,
        pattern: RoutePattern,
        target: &str,
    ) -> Result<(), ConfigError> {
        let failed = |error: &dyn fmt::Display| ConfigError::new(option, format!("{item:?}: {error}"));
        let parsed = parse_target(target).map_err(|error| failed(&error))?;
        let address = parsed.address.clone();
        let next_hop = self.id_of(parsed, target).map_err(|error| failed(&error))?;
        let at = self.by_pattern.iter().position(|(known, _)| *known == pattern).unwrap_or_else(|| {
            self.by_pattern.push((pattern, Vec::new()));
            self.by_pattern.len() - 1
        });
        let list = &mut self.by_pattern[at].1;
        if list.contains(&next_hop) {
            return Err(failed(&format_args!("{address} is given twice; leave one out")));
        }
        if list.len() == limits::NEXT_HOPS_PER_ROUTE_MAX {
            let max = limits::NEXT_HOPS_PER_ROUTE_MAX;
            return Err(failed(&format_args!("more than {max} next hops for the same mail; leave some out")));
        }
        list.push(next_hop);
        Ok(())
    }

    fn id_of(&mut self, next_hop: NextHopConfig, target: &str) -> Result<NextHopId, String> {
        let known = self.next_hops.iter().position(|known| known.address == next_hop.address);
        let index = known.unwrap_or(self.next_hops.len());
        let id = NextHopId::from_index(index).filter(|_| index < limits::NEXT_HOPS_MAX);
        let id = id.ok_or_else(|| format!("more than {} next hops; leave some out", limits::NEXT_HOPS_MAX))?;
        match known {
            Some(index) if self.next_hops[index] != next_hop => {
                let written = &self.written[index];
                return Err(format!(
                    "{written:?} is the same next hop with other attributes; write the same ones for both"
                ));
            }
            Some(_) => {}
            None => {
                self.next_hops.push(next_hop);
                self.written.push(target.to_owned());
            }
        }
        Ok(id)
    }
}

/// `DOMAIN=TARGET`.
fn split_route(item: &str) -> Result<(RoutePattern, &str), ConfigError> {
    let failed = |error: &dyn fmt::Display| ConfigError::new(ROUTE, format!("{item:?}: {error}"));
    let expected = "expected DOMAIN=HOST:PORT, as in example.org=192.0.2.1:25; * is every other domain";
    let (domain, target) = item.split_once('=').ok_or_else(|| failed(&expected))?;
    if domain == "*" {
        return Ok((RoutePattern::Default, target));
    }
    let pattern = domain.parse().map_err(|error| failed(&format_args!("{error}; {expected}")))?;
    Ok((RoutePattern::Domain(pattern), target))
}

/// `HOST:PORT` and its attributes.
fn parse_target(target: &str) -> Result<NextHopConfig, String> {
    let mut parts = target.split(',');
    let address = parts.next().unwrap_or_default();
    if address == "mx" {
        return Err(format!("mx is not supported by this version; {EXPECTED}"));
    }
    let address: NextHopAddress = address.parse()?;
    let Attributes { tls, ca, tls_name, auth_file } = Attributes::parse(parts)?;
    let tls = match tls.unwrap_or("optional") {
        "off" => TlsUse::Off,
        "optional" => TlsUse::Optional,
        "required" => TlsUse::Required { ca: ca.map(PathBuf::from) },
        other => return Err(format!("tls={other}: expected tls=off, tls=optional or tls=required")),
    };
    let of_verification = [("ca", ca), ("tls-name", tls_name)];
    if let Some((attribute, _)) = of_verification.into_iter().find(|(_, value)| value.is_some())
        && !matches!(tls, TlsUse::Required { .. })
    {
        return Err(format!("{attribute}= needs tls=required: without it no certificate is verified"));
    }
    let tls_name = match tls_name {
        Some(name) => ServerName::try_from(name.to_owned()).ok(),
        None => address.host.tls_name(),
    };
    let tls_name = tls_name.ok_or("tls-name= is the name or the address that its certificate is for")?;
    Ok(NextHopConfig { address, tls, tls_name, auth_file: auth_file.map(PathBuf::from) })
}

/// The attributes of a next hop, as they were written.
#[derive(Default)]
struct Attributes<'t> {
    tls: Option<&'t str>,
    ca: Option<&'t str>,
    tls_name: Option<&'t str>,
    auth_file: Option<&'t str>,
}

impl<'t> Attributes<'t> {
    fn parse(parts: impl Iterator<Item = &'t str>) -> Result<Self, String> {
        let mut attributes = Attributes::default();
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let place = match key {
                "tls" => &mut attributes.tls,
                "ca" => &mut attributes.ca,
                "tls-name" => &mut attributes.tls_name,
                "auth-file" => &mut attributes.auth_file,
                _ => {
                    return Err(format!(
                        "{part:?} is not an attribute of a next hop; they are tls=, ca=, tls-name= and auth-file="
                    ));
                }
            };
            if value.is_empty() {
                return Err(format!("{key}= has no value; leave it out, or write one"));
            }
            if place.replace(value).is_some() {
                return Err(format!("{key}= is given twice; leave one out"));
            }
        }
        Ok(attributes)
    }
}

/// The bounds of the times, and their relations.
fn check_times(options: &ServeOptions) -> Result<(), ConfigError> {
    let shown = units::show;
    let positive = [
        ("--retry-min", options.retry_min, "a failed try would be repeated without a pause; write 1m"),
        ("--queue-lifetime", options.queue_lifetime, "no message would be tried; write 2d"),
        ("--next-hop-timeout", options.next_hop_timeout, "no next hop could answer in time; write 5m"),
    ];
    if let Some((option, _, why)) = positive.into_iter().find(|(_, time, _)| time.is_zero()) {
        return Err(ConfigError::new(option, format!("0: {why}")));
    }
    let bounded = [
        ("--retry-max", options.retry_max, limits::RETRY_LONGEST),
        ("--queue-lifetime", options.queue_lifetime, limits::QUEUE_LIFETIME_LONGEST),
        ("--next-hop-timeout", options.next_hop_timeout, limits::NEXT_HOP_TIMEOUT_LONGEST),
        ("--ack-delay", options.ack_delay, limits::ACK_DELAY_LONGEST),
    ];
    if let Some((option, time, longest)) = bounded.into_iter().find(|(_, time, longest)| time > longest) {
        let message = format!("{} is too long; write {} or less", shown(time), shown(longest));
        return Err(ConfigError::new(option, message));
    }
    let (min, max) = (options.retry_min, options.retry_max);
    if min > max {
        let message = format!(
            "{} is longer than --retry-max, {}; lower --retry-min or raise --retry-max",
            shown(min),
            shown(max)
        );
        return Err(ConfigError::new("--retry-min", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::options::{Cli, Command};
    use clap::Parser;
    use proptest::prelude::*;

    fn delivery(arguments: &[&str]) -> Result<DeliveryConfig, String> {
        let all = ["gatepost", "serve"].iter().chain(arguments);
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let Command::Serve(options) = cli.command else { return Err("not serve".to_owned()) };
        let config = Config::new(*options, "host.example", |_| Err(std::io::ErrorKind::NotFound.into()));
        config.map(|config| config.delivery).map_err(|faults| format!("{}", faults[0]))
    }

    /// The next hops for a domain, as text.
    fn hops(delivery: &DeliveryConfig, domain: Option<&str>) -> Option<Vec<String>> {
        let route = delivery.routes.route(domain.map(str::as_bytes))?;
        let shown = |id: &NextHopId| delivery.next_hops[id.index()].address.to_string();
        Some(delivery.routes.next_hops(route).iter().map(shown).collect())
    }

    fn texts(texts: &[&str]) -> Option<Vec<String>> {
        Some(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn defaults() {
        let delivery = delivery(&[]).expect("the defaults are valid");
        assert!(delivery.next_hops.is_empty() && delivery.routes.is_empty());
        assert_eq!(delivery.backoff(), Backoff { min: limits::RETRY_MIN_DEFAULT, max: limits::RETRY_MAX_DEFAULT });
        assert_eq!(delivery.queue_lifetime, limits::QUEUE_LIFETIME_DEFAULT);
        assert_eq!(delivery.next_hop_timeout, limits::NEXT_HOP_TIMEOUT_DEFAULT);
        assert_eq!(delivery.ack_delay, Some(limits::ACK_DELAY_DEFAULT));
    }

    #[test]
    fn no_delay_is_none() {
        let with = |arguments: &[&str]| delivery(arguments).expect("valid").ack_delay;
        assert_eq!(with(&["--route=a.example=a:25", "--ack-delay=5s"]), Some(Duration::from_secs(5)));
        assert_eq!(with(&["--next-hop=a:25", "--ack-delay=0"]), None);
    }

    #[test]
    fn failover_order_and_shared_next_hops() {
        let delivery = delivery(&[
            "--next-hop=127.0.0.1:2526",
            "--route=example.org=Mail.Example.org.:25,tls=required,tls-name=mail.example.org",
            "--next-hop=[2001:db8:0::1]:25",
            "--route=.example.net=[2001:db8::1]:25",
            "--route=EXAMPLE.org=[::ffff:127.0.0.1]:2526",
            "--route=twin.example=mail.example.org:25,tls=required",
            "--route=twin.example=127.0.0.1:2526",
            "--route=[192.0.2.1]=localhost:25",
            "--route=example.com=mail.example.org:2525",
        ])
        .expect("valid");
        let (local, mail, ipv6) = ("127.0.0.1:2526", "mail.example.org:25", "[2001:db8::1]:25");
        assert_eq!(delivery.next_hops.len(), 5);
        assert_eq!(delivery.routes.len(), 5);
        assert_eq!(hops(&delivery, None), texts(&[local, ipv6]));
        assert_eq!(hops(&delivery, Some("other.example")), texts(&[local, ipv6]));
        assert_eq!(hops(&delivery, Some("example.org")), texts(&[mail, local]));
        assert_eq!(hops(&delivery, Some("a.example.net")), texts(&[ipv6]));
        assert_eq!(hops(&delivery, Some("[192.0.2.1]")), texts(&["localhost:25"]));
        assert_eq!(hops(&delivery, Some("example.com")), texts(&["mail.example.org:2525"]));
        let route = |domain: &str| delivery.routes.route(Some(domain.as_bytes()));
        assert_eq!(route("twin.example"), route("example.org"), "the same list is one route");
    }

    #[test]
    fn attributes() {
        let parse = |target: &str| parse_target(target).expect("valid");
        let name = |name: &str| ServerName::try_from(name.to_owned()).expect("a name");
        let plain = parse("Mail.Example.:25");
        assert_eq!((plain.tls, plain.tls_name, plain.auth_file), (TlsUse::Optional, name("mail.example"), None));
        assert_eq!(parse("a:25"), parse("A.:25,tls=optional"));
        assert_eq!(parse("a:25,tls=off").tls, TlsUse::Off);
        assert_eq!(parse("[2001:db8::1]:25,tls=required").tls_name, name("2001:db8::1"));
        let all = parse("192.0.2.1:25,auth-file=/a=b,tls-name=mx.example,tls=required,ca=ca.pem");
        assert_eq!(all.tls, TlsUse::Required { ca: Some("ca.pem".into()) });
        assert_eq!((all.tls_name, all.auth_file), (name("mx.example"), Some("/a=b".into())));
        assert_eq!(parse("a:25,tls=required,tls-name=192.0.2.1").tls_name, name("192.0.2.1"));
    }

    #[test]
    fn a_password_that_others_may_be_told_is_warned_of() {
        let warnings = |arguments: &[&str]| delivery(arguments).expect("valid").warnings().collect::<Vec<_>>();
        let warned = warnings(&[
            "--next-hop=a:25,tls=off,auth-file=x",
            "--next-hop=b:25,auth-file=x",
            "--next-hop=c:25,tls=off",
            "--next-hop=d:25,tls=required,auth-file=x",
        ]);
        let begins = ["next hop a:25: tls=off with auth-file", "next hop b:25: tls=optional with auth-file"];
        assert_eq!(warned.len(), begins.len(), "{warned:?}");
        assert!(warned.iter().zip(begins).all(|(warning, begin)| warning.starts_with(begin)), "{warned:?}");
    }

    #[test]
    fn the_star_is_the_default() {
        let delivery = delivery(&["--route=*=a:25", "--route=*=b:25"]).expect("valid");
        assert_eq!(hops(&delivery, Some("x.example")), texts(&["a:25", "b:25"]));
        assert_eq!(hops(&delivery, None), texts(&["a:25", "b:25"]));
    }

    #[test]
    fn errors_name_the_option_and_the_remedy() {
        for (arguments, option, details) in [
            (&["--next-hop=a"][..], "--next-hop", &["\"a\"", "HOST:PORT"][..]),
            (&["--next-hop="], "--next-hop", &["HOST:PORT"]),
            (&["--next-hop=:25"], "--next-hop", &["\"\" is not a host"]),
            (&["--next-hop=a:"], "--next-hop", &["port"]),
            (&["--next-hop=a:0"], "--next-hop", &["1 to 65535"]),
            (&["--next-hop=a:+25"], "--next-hop", &["1 to 65535"]),
            (&["--next-hop=a:65536"], "--next-hop", &["1 to 65535"]),
            (&["--next-hop=a:smtp"], "--next-hop", &["number"]),
            (&["--next-hop=2001:db8::1:25"], "--next-hop", &["\"2001:db8::1\"", "[2001:db8::1]:25"]),
            (&["--next-hop=[2001:db8::1]"], "--next-hop", &["HOST:PORT"]),
            (&["--next-hop=[127.0.0.1]:25"], "--next-hop", &["is not a host"]),
            (&["--next-hop=127.0.0.256:25"], "--next-hop", &["is not a host"]),
            (&["--next-hop=127.1:25"], "--next-hop", &["is not a host"]),
            (&["--next-hop=-a.example:25"], "--next-hop", &["is not a host"]),
            (&["--next-hop=a b:25"], "--next-hop", &["is not a host"]),
            (&["--next-hop=a:25,tls=on"], "--next-hop", &["tls=on: expected tls=off, tls=optional or tls=required"]),
            (&["--next-hop=a:25,tls="], "--next-hop", &["tls= has no value"]),
            (&["--next-hop=a:25,tls"], "--next-hop", &["tls= has no value"]),
            (&["--next-hop=a:25,tls=off,tls=off"], "--next-hop", &["tls= is given twice"]),
            (&["--next-hop=a:25,ca=x.pem"], "--next-hop", &["ca= needs tls=required"]),
            (&["--next-hop=a:25,tls=optional,ca=x.pem"], "--next-hop", &["ca= needs tls=required"]),
            (&["--next-hop=a:25,tls=off,tls-name=b"], "--next-hop", &["tls-name= needs tls=required"]),
            (&["--next-hop=a:25,tls=required,tls-name=b c"], "--next-hop", &["tls-name= is the name or the address"]),
            (&["--next-hop=a:25,tls=required,auth-file="], "--next-hop", &["auth-file= has no value"]),
            (&["--next-hop=a:25,"], "--next-hop", &["\"\" is not an attribute", "auth-file="]),
            (&["--next-hop=a:25,smtps=on"], "--next-hop", &["\"smtps=on\" is not an attribute"]),
            (
                &["--next-hop=a:25,tls=off", "--route=b.example=A:25,tls=required"],
                "--route",
                &["b.example=A:25,tls=required", "\"a:25,tls=off\" is the same next hop with other attributes"],
            ),
            (&["--next-hop=mx"], "--next-hop", &["mx is not supported by this version", "HOST:PORT"]),
            (&["--next-hop=a:25", "--next-hop=A:25"], "--next-hop", &["a:25 is given twice"]),
            (&["--route=a.example=mx"], "--route", &["mx is not supported by this version"]),
            (&["--route=a.example"], "--route", &["DOMAIN=HOST:PORT"]),
            (&["--route=a:25,tls=off"], "--route", &["a:25,tls", "DOMAIN=HOST:PORT"]),
            (&["--route=*.example=a:25"], "--route", &["*.example", "all its subdomains"]),
            (&["--route==a:25"], "--route", &["empty", "DOMAIN=HOST:PORT"]),
            (&["--route=a.example=b:0"], "--route", &["a.example=b:0", "1 to 65535"]),
            (&["--route=a.example=b:25", "--route=A.example.=b:25"], "--route", &["b:25 is given twice"]),
            (&["--route=*=a:25", "--next-hop=b:25"], "--route", &["*=a:25", "--next-hop", "keep one"]),
            (&["--retry-min=0"], "--retry-min", &["write 1m"]),
            (&["--retry-min=2h"], "--retry-min", &["--retry-max", "1h"]),
            (&["--retry-max=8d"], "--retry-max", &["8d is too long; write 7d or less"]),
            (&["--retry-max=0"], "--retry-min", &["raise --retry-max"]),
            (&["--queue-lifetime=0"], "--queue-lifetime", &["write 2d"]),
            (&["--queue-lifetime=400d"], "--queue-lifetime", &["or less"]),
            (&["--next-hop-timeout=0"], "--next-hop-timeout", &["write 5m"]),
            (&["--next-hop-timeout=2h"], "--next-hop-timeout", &["1h or less"]),
            (&["--ack-delay=301s"], "--ack-delay", &["5m or less"]),
            (&["--ack-delay=x"], "--ack-delay", &["whole number"]),
        ] {
            let error = delivery(arguments).expect_err(arguments[0]);
            let named = error.starts_with(option) || error.contains(&format!("'{option} <"));
            assert!(named && details.iter().all(|detail| error.contains(detail)), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn counts_are_bounded() {
        let many = |count: usize, item: &dyn Fn(usize) -> String| {
            let items: Vec<String> = (0..count).map(item).collect();
            delivery(&items.iter().map(String::as_str).collect::<Vec<_>>()).map(|delivery| delivery.next_hops.len())
        };
        let of_one_route = |index: usize| format!("--next-hop=127.0.0.1:{}", index + 1);
        assert_eq!(many(limits::NEXT_HOPS_PER_ROUTE_MAX, &of_one_route), Ok(limits::NEXT_HOPS_PER_ROUTE_MAX));
        let error = many(limits::NEXT_HOPS_PER_ROUTE_MAX + 1, &of_one_route).expect_err("one too many");
        assert!(error.contains("more than 16 next hops for the same mail"), "{error}");
        let each_its_own = |index: usize| format!("--route=d{index}.example=127.0.0.1:{}", index + 1);
        assert_eq!(many(limits::NEXT_HOPS_MAX, &each_its_own), Ok(limits::NEXT_HOPS_MAX));
        let error = many(limits::NEXT_HOPS_MAX + 1, &each_its_own).expect_err("one too many");
        assert!(error.contains("more than 1024 next hops"), "{error}");
    }

    proptest! {
        #[test]
        fn parsing_is_total_and_display_parses_back(text in "(\\[?[0-9a-fA-F:.]{0,12}\\]?|[a-zA-Z0-9.-]{0,12}|.{0,12}):?[0-9]{0,6}") {
            if let Ok(address) = text.parse::<NextHopAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
