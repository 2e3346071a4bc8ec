//! Configuration: what the operator wrote, validated once into [`Config`].
//!
//! Lives here: the table of options ([`options`]) and their relations. May use `limits`, `policy`,
//! `delivery`'s routes and the session's parameters. On failure: [`ConfigError`] names the option, what is wrong with
//! it and what to write instead; nothing starts.

mod next_hop;
pub mod options;
mod units;

pub use next_hop::{DeliveryConfig, Host, NextHopAddress};

use crate::limits::SHARDS_MAX;
use crate::policy::{AcceptedDomains, AddressRanges, DomainPattern, SlotCount, parse_domain_file, parse_range};
use crate::smtp::address::is_domain;
use crate::smtp::server::Profile;
use options::ServeOptions;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An option that cannot be followed.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    option: &'static str,
    message: String,
}

impl ConfigError {
    fn new(option: &'static str, message: impl fmt::Display) -> Self {
        ConfigError { option, message: message.to_string() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Limits by source and in sum; 0 is unlimited.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most inbound connections of the process.
    pub connections_max: u32,
    /// Most connections from one source.
    pub connections_per_source_max: u32,
    /// Most accepted MAILs of one source in a minute.
    pub message_rate_per_minute: u32,
    /// Bits of an IPv6 address that make a source.
    pub ipv6_prefix: u8,
    /// Slots of the shared tables.
    pub table_slots: SlotCount,
}

/// What the gateway does, with nothing left to check.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// This server's fully qualified domain name.
    pub hostname: String,
    /// Number of shards; `None`: one per core.
    pub shards: Option<usize>,
    /// Domains mail is accepted for.
    pub accepted_domains: AcceptedDomains,
    /// Clients that may send anywhere.
    pub relay_from: AddressRanges,
    /// Completes unqualified addresses.
    pub default_domain: Option<String>,
    /// Limits by source and in sum.
    pub limits: Limits,
    /// Largest message in octets; 0 is unlimited.
    pub message_size_max: u64,
    /// Most recipients; 0 is unlimited.
    pub recipients_max: u32,
    /// Most protocol errors; 0 is unlimited.
    pub protocol_errors_max: u32,
    /// Longest session; zero is unlimited.
    pub connection_timeout: Duration,
    /// Longest silence; zero is unlimited.
    pub inactivity_timeout: Duration,
    /// Where accepted mail goes, and when.
    pub delivery: DeliveryConfig,
    /// The spool directory.
    pub spool: PathBuf,
    /// How long transactions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Where the metrics endpoint listens.
    pub metrics_listen: Option<SocketAddr>,
    /// Options that were given and are not active in this version.
    pub inactive: Vec<&'static str>,
}

impl Config {
    /// Checks the options, and each against the others. `machine_name` is used without
    /// `--hostname`; `read_file` reads the files that options name.
    pub fn new(
        options: ServeOptions,
        machine_name: &str,
        read_file: impl Fn(&std::path::Path) -> std::io::Result<String>,
    ) -> Result<Self, ConfigError> {
        let hostname = options.hostname.clone().unwrap_or_else(|| machine_name.to_owned());
        check_domain("--hostname", &hostname)?;
        if let Some(domain) = &options.default_domain {
            check_domain("--default-domain", domain)?;
        }
        if options.shards.is_some_and(|shards| shards == 0 || shards > SHARDS_MAX) {
            return Err(ConfigError::new("--shards", format!("expected 1 to {SHARDS_MAX}")));
        }
        let accepted_domains = accepted_domains(&options, read_file)?;
        let listen = listen(&options.listen)?;
        let delivery = DeliveryConfig::new(&options)?;
        if let Some(own) = delivery.next_hops.iter().find(|next_hop| next_hop.is_any_of(&listen)) {
            let message = format!("{own} is this gateway itself: its mail would go round in circles");
            return Err(ConfigError::new("--next-hop", message));
        }
        let relay_from = options.relay_from.iter().map(|item| parse_range(item)).collect::<Result<_, _>>();
        Ok(Config {
            listen,
            shards: options.shards,
            accepted_domains,
            relay_from: relay_from.map_err(|error| ConfigError::new("--relay-from", error))?,
            limits: Limits {
                connections_max: options.max_connections,
                connections_per_source_max: options.max_connections_per_source,
                message_rate_per_minute: options.message_rate,
                ipv6_prefix: options.ipv6_prefix,
                table_slots: SlotCount::new(options.table_slots)
                    .map_err(|error| ConfigError::new("--table-slots", error))?,
            },
            message_size_max: options.max_message_size,
            recipients_max: options.max_recipients,
            protocol_errors_max: options.max_protocol_errors,
            connection_timeout: options.connection_timeout,
            inactivity_timeout: options.inactivity_timeout,
            delivery,
            drain_timeout: options.drain_timeout,
            metrics_listen: options.metrics_listen.0,
            inactive: inactive(&options),
            default_domain: options.default_domain,
            spool: options.spool,
            hostname,
        })
    }

    /// What receiving sessions are told.
    pub fn profile(&self) -> Profile {
        Profile {
            hostname: self.hostname.clone(),
            default_domain: self.default_domain.clone(),
            message_size_max: (self.message_size_max > 0).then_some(self.message_size_max),
            recipients_max: (self.recipients_max > 0).then_some(self.recipients_max),
            protocol_errors_max: (self.protocol_errors_max > 0).then_some(self.protocol_errors_max),
            connection_timeout: (!self.connection_timeout.is_zero()).then_some(self.connection_timeout),
            inactivity_timeout: (!self.inactivity_timeout.is_zero()).then_some(self.inactivity_timeout),
        }
    }
}

fn check_domain(option: &'static str, domain: &str) -> Result<(), ConfigError> {
    if is_domain(domain.as_bytes()) && !domain.starts_with('[') {
        return Ok(());
    }
    Err(ConfigError::new(option, format!("{domain:?} is not a domain name; write one like mail.example.org")))
}

fn accepted_domains(
    options: &ServeOptions,
    read_file: impl Fn(&std::path::Path) -> std::io::Result<String>,
) -> Result<AcceptedDomains, ConfigError> {
    let parse = |item: &String| item.parse().map_err(|error| ConfigError::new("--accept-domain", error));
    let mut patterns: Vec<DomainPattern> = options.accept_domain.iter().map(parse).collect::<Result<_, _>>()?;
    if let Some(path) = &options.accept_domains_file {
        let failed = |error: &dyn fmt::Display| {
            ConfigError::new("--accept-domains-file", format!("{}: {error}", path.display()))
        };
        let text = read_file(path).map_err(|error| failed(&error))?;
        patterns.extend(parse_domain_file(&text).map_err(|error| failed(&error))?);
    }
    Ok(patterns.into_iter().collect())
}

fn listen(items: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
    if items.iter().any(|item| item == "none") {
        return match items {
            [_] => Ok(Vec::new()),
            _ => Err(ConfigError::new("--listen", "\"none\" stands alone; leave it out to listen")),
        };
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for item in items {
        let (address, attributes) = item.split_once(',').unwrap_or((item, ""));
        for attribute in attributes.split(',').filter(|attribute| !attribute.is_empty()) {
            if !matches!(attribute, "role=gateway" | "tls=off" | "auth=off") {
                return Err(ConfigError::new(
                    "--listen",
                    format!("{item:?}: {attribute} is not supported by this version; leave it out"),
                ));
            }
        }
        let address = address.parse().map_err(|_| {
            ConfigError::new("--listen", format!("{item:?}: expected ADDR:PORT, as in 0.0.0.0:25 or [::]:25"))
        })?;
        if addresses.contains(&address) {
            return Err(ConfigError::new("--listen", format!("{address} is given twice")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn inactive(options: &ServeOptions) -> Vec<&'static str> {
    let given = [("--tarpit", options.tarpit.is_some())];
    given.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use options::{Cli, Command};

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let all = ["gatepost", "serve"].iter().chain(arguments);
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let Command::Serve(options) = cli.command else { return Err("not serve".to_owned()) };
        let read = |path: &std::path::Path| match path.to_str() {
            Some("domains") => Ok("a.example # one\n\n.b.example\n".to_owned()),
            Some("bad") => Ok("a.example\n-b.example\n".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        Config::new(*options, "host.example", read).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let config = config(&[]).expect("the defaults are valid");
        assert_eq!(config.listen, ["127.0.0.1:2525".parse().expect("an address")]);
        assert_eq!(config.hostname, "host.example");
        assert_eq!(config.message_size_max, crate::limits::MESSAGE_SIZE_MAX_DEFAULT_OCTETS);
        assert_eq!(config.connection_timeout, crate::limits::CONNECTION_TIMEOUT_DEFAULT);
        assert_eq!(config.inactivity_timeout, crate::limits::INACTIVITY_TIMEOUT_DEFAULT);
        assert_eq!(config.drain_timeout, crate::limits::DRAIN_TIMEOUT_DEFAULT);
        assert_eq!(config.metrics_listen, Some("127.0.0.1:9125".parse().expect("an address")));
        assert!(config.accepted_domains.is_empty() && config.inactive.is_empty());
    }

    #[test]
    fn options_act() {
        let config = config(&[
            "--listen=[::]:25",
            "--listen=127.0.0.1:26",
            "--accept-domain=c.example",
            "--accept-domains-file=domains",
            "--max-message-size=0",
            "--inactivity-timeout=0",
            "--metrics-listen=none",
            "--tarpit=0",
            "--next-hop=a:25",
        ])
        .expect("valid");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.accepted_domains.len(), 3);
        let profile = config.profile();
        assert!(profile.message_size_max.is_none() && profile.inactivity_timeout.is_none());
        assert_eq!(config.metrics_listen, None);
        assert_eq!(config.inactive, ["--tarpit"]);
        assert_eq!(config.delivery.next_hops.len(), 1);
    }

    #[test]
    fn errors_name_the_option() {
        for (arguments, option, detail) in [
            (&["--listen=25"][..], "--listen", "25"),
            (&["--listen=none", "--listen=127.0.0.1:25"], "--listen", "alone"),
            (&["--listen=127.0.0.1:25", "--listen=127.0.0.1:25"], "--listen", "twice"),
            (&["--listen=127.0.0.1:25,tls=required"], "--listen", "tls=required"),
            (&["--hostname=-x"], "--hostname", "-x"),
            (&["--default-domain=[::1]"], "--default-domain", "[::1]"),
            (&["--accept-domain=a..b"], "--accept-domain", "a..b"),
            (&["--accept-domains-file=bad"], "--accept-domains-file", "2"),
            (&["--accept-domains-file=missing"], "--accept-domains-file", "missing"),
            (&["--listen=0.0.0.0:25", "--next-hop=127.0.0.1:25"], "--next-hop", "circles"),
            (&["--relay-from=10.0.0.0/33"], "--relay-from", "10.0.0.0/33"),
            (&["--table-slots=1000"], "--table-slots", "1000"),
            (&["--shards=0"], "--shards", "1 to"),
            (&["--max-message-size=10XB"], "--max-message-size", "XB"),
            (&["--metrics-listen=x"], "--metrics-listen", "ADDR:PORT"),
        ] {
            let error = config(arguments).expect_err(arguments[0]);
            assert!(error.contains(option) && error.contains(detail), "{arguments:?}: {error}");
        }
    }
}
