//! Configuration: what the operator wrote, validated once into [`Config`].
//!
//! Lives here: the table of options ([`options`]), where they come from ([`load`]: flags, environment, file), and their relations. May use `limits`, `policy`,
//! `delivery`'s routes and the session's parameters. On failure: [`ConfigError`] names the option, what is wrong with
//! it and what to write instead; nothing starts.

mod binding;
mod environment;
mod file;
mod next_hop;
pub mod options;
mod restart;
mod settings;
mod table;
pub mod units;

pub use binding::{Auth, Binding, Tls};
pub use next_hop::{DeliveryConfig, Host, NextHopAddress, NextHopConfig, TlsUse};
pub use restart::NEEDS_RESTART;
pub use settings::{Change, LoadError, Loaded, Origin, Setting, Settings, Sources, load};

use crate::limits::{DNSBL_ZONES_MAX, LOCAL_NAMES_MAX, RESOLVERS_MAX, SHARDS_MAX, SUBMISSION_PORT, TARPIT_LONGEST};
use crate::log;
use crate::policy::{
    AcceptedDomains, AddressRanges, BlockListZone, DomainPattern, SlotCount, parse_list_file, parse_range,
};
use crate::smtp::address::is_domain;
use crate::smtp::server::{Extensions, Profile, Revision, Role};
use binding::bindings;
use ipnet::IpNet;
use options::{ADMIN_SOCKET, ServeOptions};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
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

/// The faults so far: an operator is told all at once.
#[derive(Default)]
struct Faults(Vec<ConfigError>);

impl Faults {
    fn keep<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }
}

/// Limits by source and in sum; 0 is unlimited.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most inbound connections of the process.
    pub connections_max: u32,
    /// Most connections from one source.
    pub connections_per_source_max: u32,
    /// Most accepted MAILs of one source in a minute.
    pub message_rate_per_minute: u32,
    /// Most accepted MAILs of one authenticated user of a relay in a minute.
    pub user_message_rate_per_minute: u32,
    /// Most failed logons of one source in a minute.
    pub logon_failures_per_minute: u32,
    /// Bits of an IPv6 address that make a source.
    pub ipv6_prefix: u8,
    /// Slots of the shared tables.
    pub table_slots: SlotCount,
}

/// Timers of a session; `None` is unlimited.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    connection: Option<Duration>,
    inactivity: Option<Duration>,
}

/// What must be free for mail to be accepted, in octets; 0 is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Watermarks {
    /// On the spool's disk.
    pub free_disk_min: u64,
    /// Of memory.
    pub free_memory_min: u64,
}

/// A certificate with its chain, and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then its chain, in PEM.
    pub certificate: PathBuf,
    /// The key, in PEM.
    pub key: PathBuf,
}

/// What the gateway does, with nothing left to check.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub bindings: Vec<Binding>,
    /// This server's fully qualified domain name.
    pub hostname: String,
    /// Number of shards; `None`: one per core.
    pub shards: Option<usize>,
    /// Domains mail is accepted for.
    pub accepted_domains: AcceptedDomains,
    /// Clients that may send anywhere.
    pub relay_from: AddressRanges,
    /// Clients that are refused on gateway bindings.
    pub blocked: AddressRanges,
    /// DNS block lists that gateway bindings go by.
    pub dnsbl: Arc<[BlockListZone]>,
    /// The name servers to ask about them; empty: the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Limits by source and in sum.
    pub limits: Limits,
    /// What sessions are told, whatever their binding.
    session: Profile,
    /// Timers of a relay binding's sessions.
    relay_timeouts: Timeouts,
    /// Watermarks of disk and memory.
    pub watermarks: Watermarks,
    /// Where accepted mail goes, and when.
    pub delivery: DeliveryConfig,
    /// The users file.
    pub users: Option<PathBuf>,
    /// The spool directory.
    pub spool: PathBuf,
    /// How long transactions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Where the metrics endpoint listens.
    pub metrics_listen: Option<SocketAddr>,
    /// Where the admin socket is made.
    pub admin_socket: Option<PathBuf>,
    /// Certificates and their keys, the default one first.
    pub certificates: Vec<CertificateFiles>,
    /// What is logged, how and where.
    pub log: log::Settings,
}

impl Config {
    /// Checks the options, and each against the others. `machine_name` is used without
    /// `--hostname`; `read_file` reads the files that options name.
    ///
    /// # Errors
    /// Every fault that can be told without mending another first.
    pub fn new(
        options: ServeOptions,
        machine_name: &str,
        read_file: impl Fn(&std::path::Path) -> std::io::Result<String>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut faults = Faults::default();
        let hostname = options.hostname.clone().unwrap_or_else(|| machine_name.to_owned());
        faults.keep(check_domain("--hostname", &hostname));
        if let Some(domain) = &options.default_domain {
            faults.keep(check_domain("--default-domain", domain));
        }
        faults.keep(check_shards(options.shards));
        let accepted_domains = faults.keep(accepted_domains(&options, &read_file));
        let bindings = faults.keep(bindings(&options.listen));
        let blocked = faults.keep(blocked(&options, &read_file));
        let dnsbl = faults.keep(dnsbl(&options.dnsbl));
        faults.keep(check_resolvers(&options.resolver));
        let session = faults.keep(session(&options, &hostname));
        let certificates = faults.keep(certificates(&options));
        let delivery = faults.keep(DeliveryConfig::new(&options));
        let relay_from = options.relay_from.iter().map(|item| parse_range(item)).collect::<Result<_, _>>();
        let relay_from = faults.keep(relay_from.map_err(|error| ConfigError::new("--relay-from", error)));
        let table_slots = SlotCount::new(options.table_slots);
        let table_slots = faults.keep(table_slots.map_err(|error| ConfigError::new("--table-slots", error)));
        if let (Some(bindings), Some(session), Some(certificates)) = (&bindings, &session, &certificates) {
            faults.keep(check_tls(bindings, !certificates.is_empty(), session.offers_tls));
        }
        let metrics_listen = options.metrics_listen.0;
        if let Some(bindings) = &bindings {
            faults.keep(check_metrics(metrics_listen, bindings));
        }
        if let (Some(bindings), Some(delivery)) = (&bindings, &delivery) {
            faults.keep(check_circles(delivery, bindings));
        }
        let lists = (accepted_domains, blocked, dnsbl, relay_from);
        let parts = (lists, bindings, session, certificates, delivery, table_slots);
        let (
            (Some(accepted_domains), Some(blocked), Some(dnsbl), Some(relay_from)),
            Some(bindings),
            Some(session),
            Some(certificates),
            Some(delivery),
            Some(table_slots),
        ) = parts
        else {
            return Err(faults.0);
        };
        if !faults.0.is_empty() {
            return Err(faults.0);
        }
        Ok(Config {
            bindings,
            blocked,
            dnsbl,
            resolvers: options.resolver.clone(),
            session,
            relay_timeouts: Timeouts {
                connection: unless_zero(options.relay_connection_timeout),
                inactivity: unless_zero(options.relay_inactivity_timeout),
            },
            watermarks: Watermarks { free_disk_min: options.min_free_disk, free_memory_min: options.min_free_memory },
            shards: options.shards,
            accepted_domains,
            relay_from,
            limits: Limits {
                connections_max: options.max_connections,
                connections_per_source_max: options.max_connections_per_source,
                message_rate_per_minute: options.message_rate,
                user_message_rate_per_minute: options.relay_message_rate,
                logon_failures_per_minute: options.logon_failure_rate,
                ipv6_prefix: options.ipv6_prefix,
                table_slots,
            },
            delivery,
            drain_timeout: options.drain_timeout,
            metrics_listen,
            admin_socket: admin_socket(&options),
            users: options.users.clone(),
            certificates,
            log: log::Settings { format: options.log_format, level: options.log_level, file: options.log_file },
            spool: options.spool,
            hostname,
        })
    }

    /// What receiving sessions on a binding are told.
    pub fn profile(&self, binding: &Binding) -> Profile {
        let tls = binding.tls.unwrap_or(if self.certificates.is_empty() { Tls::Off } else { Tls::Optional });
        let mut profile = Profile {
            role: binding.rules.role,
            offers_tls: self.session.offers_tls && tls != Tls::Off,
            requires_tls: tls == Tls::Required,
            offers_auth: self.session.offers_auth && binding.auth != Auth::Off,
            requires_auth: binding.auth == Auth::Required,
            plaintext_auth: binding.plaintext_auth,
            ..self.session.clone()
        };
        if binding.rules.role == Role::Relay {
            profile.connection_timeout = self.relay_timeouts.connection;
            profile.inactivity_timeout = self.relay_timeouts.inactivity;
        }
        profile
    }

    /// What an operator may not expect of these options.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.session.revision == Revision::V4 {
            //= [MS-OXSMTP] 3.2.7 TooManyRecipients
            warnings.push(
                "--oxsmtp-revision 4.0: a recipient beyond --max-recipients ends the session (452 4.5.3 Too many \
                 recipients), and the message with it; clients that have more to send to must know the limit"
                    .to_owned(),
            );
        }
        let without_users = self.users.is_none() || !self.session.offers_auth;
        for binding in self.bindings.iter().filter(|binding| binding.auth == Auth::Required && without_users) {
            warnings.push(format!(
                "--listen {}: authentication is required (as it is by default on port {SUBMISSION_PORT}) and no user can be \
                 verified: all mail is refused there; give --users, or write auth=off",
                binding.address
            ));
        }
        warnings.extend(self.delivery.warnings());
        warnings
    }

    /// How late refusals are given; `None`: at once.
    pub fn tarpit(&self) -> Option<Duration> {
        self.session.tarpit
    }

    /// The revision of [MS-OXSMTP] that decides where they differ.
    pub fn revision(&self) -> Revision {
        self.session.revision
    }
}

#[cfg(test)]
impl Config {
    /// What these arguments of `serve` say, for tests elsewhere. They name no files.
    pub fn of(arguments: &[&str]) -> Self {
        let cli = <options::Cli as clap::Parser>::parse_from(["gatepost", "serve"].iter().chain(arguments));
        let options::Command::Serve(options) = cli.command else { unreachable!("serve was asked for") };
        Config::new(*options, "host.example", |_| Err(std::io::ErrorKind::NotFound.into())).expect("valid options")
    }
}

/// What sessions are told on a gateway binding without AUTH.
fn session(options: &ServeOptions, hostname: &str) -> Result<Profile, ConfigError> {
    let revision = match options.oxsmtp_revision.as_str() {
        "4.0" => Revision::V4,
        "13.0" => Revision::V13,
        other => return Err(ConfigError::new("--oxsmtp-revision", format!("{other:?}: expected 4.0 or 13.0"))),
    };
    if options.tarpit > TARPIT_LONGEST {
        let message = "longer than 5m; clients wait no longer for a reply (RFC 5321 section 4.5.3.2)";
        return Err(ConfigError::new("--tarpit", message));
    }
    let is_disabled = |name: &str| options.disable_extension.iter().any(|other| other.eq_ignore_ascii_case(name));
    let mut local_names = vec![hostname.to_owned()];
    for name in &options.local_name {
        check_domain("--local-name", name)?;
        if !local_names.iter().any(|other| other.eq_ignore_ascii_case(name)) {
            local_names.push(name.clone());
        }
    }
    if local_names.len() > LOCAL_NAMES_MAX {
        return Err(ConfigError::new("--local-name", format!("more than {} names", LOCAL_NAMES_MAX - 1)));
    }
    Ok(Profile {
        hostname: hostname.to_owned(),
        local_names,
        default_domain: options.default_domain.clone(),
        revision,
        extensions: extensions(&options.disable_extension)?,
        offers_tls: !is_disabled("STARTTLS"),
        offers_auth: !is_disabled("AUTH"),
        message_size_max: (options.max_message_size > 0).then_some(options.max_message_size),
        header_size_max: (options.max_header_size > 0).then_some(options.max_header_size),
        hops_max: (options.max_hops > 0).then_some(options.max_hops),
        local_hops_max: (options.max_local_hops > 0).then_some(options.max_local_hops),
        recipients_max: (options.max_recipients > 0).then_some(options.max_recipients),
        protocol_errors_max: (options.max_protocol_errors > 0).then_some(options.max_protocol_errors),
        logon_failures_max: (options.max_logon_failures > 0).then_some(options.max_logon_failures),
        tarpit: unless_zero(options.tarpit),
        connection_timeout: unless_zero(options.connection_timeout),
        inactivity_timeout: unless_zero(options.inactivity_timeout),
        ..Profile::default()
    })
}

/// What is offered when these are not (CONFORMANCE B4).
fn extensions(disabled: &[String]) -> Result<Extensions, ConfigError> {
    let mut extensions = Extensions::default();
    for name in disabled {
        match name.to_ascii_uppercase().as_str() {
            "PIPELINING" => extensions.pipelining = false,
            // BODY= is 8BITMIME's: without it, BINARYMIME cannot be asked for.
            "8BITMIME" => (extensions.eight_bit_mime, extensions.binary_mime) = (false, false),
            "BINARYMIME" => extensions.binary_mime = false,
            "CHUNKING" => (extensions.chunking, extensions.binary_mime) = (false, false),
            // They are offered by binding.
            "STARTTLS" | "AUTH" => {}
            "DSN" | "SIZE" | "ENHANCEDSTATUSCODES" => {
                return Err(ConfigError::new("--disable-extension", format!("{name} cannot be switched off")));
            }
            _ => {
                let known = "PIPELINING, 8BITMIME, BINARYMIME, CHUNKING, STARTTLS, AUTH";
                return Err(ConfigError::new("--disable-extension", format!("{name:?} is none of {known}")));
            }
        }
    }
    Ok(extensions)
}

fn unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn blocked(
    options: &ServeOptions,
    read_file: impl Fn(&std::path::Path) -> std::io::Result<String>,
) -> Result<AddressRanges, ConfigError> {
    let parse = |item: &String| parse_range(item).map_err(|error| ConfigError::new("--block", error));
    let mut ranges: Vec<IpNet> = options.block.iter().map(parse).collect::<Result<_, _>>()?;
    if let Some(path) = &options.block_file {
        let failed =
            |error: &dyn fmt::Display| ConfigError::new("--block-file", format!("{}: {error}", path.display()));
        let text = read_file(path).map_err(|error| failed(&error))?;
        ranges.extend(parse_list_file(&text, parse_range).map_err(|error| failed(&error))?);
    }
    Ok(ranges.into_iter().collect())
}

fn admin_socket(options: &ServeOptions) -> Option<PathBuf> {
    match &options.admin_socket {
        None => Some(options.spool.join(ADMIN_SOCKET)),
        Some(none) if none.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
    }
}

fn dnsbl(zones: &[String]) -> Result<Arc<[BlockListZone]>, ConfigError> {
    if zones.len() > DNSBL_ZONES_MAX {
        return Err(ConfigError::new("--dnsbl", format!("more than {DNSBL_ZONES_MAX} zones")));
    }
    let zones = zones.iter().map(|zone| zone.parse()).collect::<Result<_, _>>();
    zones.map_err(|error| ConfigError::new("--dnsbl", error))
}

fn check_resolvers(resolvers: &[SocketAddr]) -> Result<(), ConfigError> {
    if resolvers.len() > RESOLVERS_MAX {
        return Err(ConfigError::new("--resolver", format!("more than {RESOLVERS_MAX} name servers")));
    }
    match resolvers.iter().find(|address| address.port() == 0) {
        Some(address) => Err(ConfigError::new("--resolver", format!("{address}: nobody answers at port 0; write 53"))),
        None => Ok(()),
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
        patterns.extend(parse_list_file(&text, str::parse).map_err(|error| failed(&error))?);
    }
    Ok(patterns.into_iter().collect())
}

/// The pairs of `--tls-cert` and `--tls-key`.
fn certificates(options: &ServeOptions) -> Result<Vec<CertificateFiles>, ConfigError> {
    let (certificates, keys) = (&options.tls_cert, &options.tls_key);
    if certificates.len() != keys.len() {
        let message = format!(
            "there are {} of it, and {} of --tls-key: each certificate needs its key, in the same order",
            certificates.len(),
            keys.len()
        );
        return Err(ConfigError::new("--tls-cert", message));
    }
    let pairs = certificates.iter().cloned().zip(keys.iter().cloned());
    Ok(pairs.map(|(certificate, key)| CertificateFiles { certificate, key }).collect())
}

fn check_shards(shards: Option<usize>) -> Result<(), ConfigError> {
    if shards.is_some_and(|shards| shards == 0 || shards > SHARDS_MAX) {
        return Err(ConfigError::new("--shards", format!("expected 1 to {SHARDS_MAX}")));
    }
    Ok(())
}

/// The metrics endpoint needs a port of its own.
fn check_metrics(address: Option<SocketAddr>, bindings: &[Binding]) -> Result<(), ConfigError> {
    let Some(address) = address.filter(|address| address.port() != 0) else { return Ok(()) };
    if bindings.iter().any(|binding| binding.address == address) {
        let message = format!("{address} is an address of --listen too; choose another port");
        return Err(ConfigError::new("--metrics-listen", message));
    }
    Ok(())
}

/// A gateway is no next hop of its own.
fn check_circles(delivery: &DeliveryConfig, bindings: &[Binding]) -> Result<(), ConfigError> {
    let mut next_hops = delivery.next_hops.iter().map(|next_hop| &next_hop.address);
    let own = || bindings.iter().map(|binding| binding.address);
    let Some(own) = next_hops.find(|next_hop| next_hop.is_any_of(own())) else { return Ok(()) };
    let message = format!("{own} is this gateway itself: its mail would go round in circles");
    Err(ConfigError::new("--next-hop", message))
}

/// TLS that is asked for needs a certificate.
fn check_tls(bindings: &[Binding], has_certificate: bool, starttls: bool) -> Result<(), ConfigError> {
    for Binding { address, tls, .. } in bindings {
        let name = match tls {
            None | Some(Tls::Off) => continue,
            Some(Tls::Optional) => "optional",
            Some(Tls::Required) => "required",
            Some(Tls::Implicit) => "implicit",
        };
        if !has_certificate {
            let message = format!("{address}: tls={name} needs a certificate: give --tls-cert and --tls-key");
            return Err(ConfigError::new("--listen", message));
        }
        if *tls == Some(Tls::Required) && !starttls {
            let message = format!("STARTTLS cannot be off where {address} requires it (tls=required)");
            return Err(ConfigError::new("--disable-extension", message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use clap::Parser;
    use options::{Cli, Command};

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let all = ["gatepost", "serve"].iter().chain(arguments);
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let Command::Serve(options) = cli.command else { return Err("not serve".to_owned()) };
        let read = |path: &std::path::Path| match path.to_str() {
            Some("domains") => Ok("a.example # one\n\n.b.example\n".to_owned()),
            Some("ranges") => Ok("198.51.100.1 # one\r\n\r\n2001:db8::/32\r\n".to_owned()),
            Some("bad") => Ok("a.example\n-b.example\n".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        Config::new(*options, "host.example", read).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })
    }

    #[test]
    fn defaults() {
        let config = config(&[]).expect("the defaults are valid");
        assert_eq!(config.bindings.len(), 1);
        assert_eq!(config.bindings[0].address, "127.0.0.1:2525".parse().expect("an address"));
        assert_eq!(config.hostname, "host.example");
        let profile = config.profile(&config.bindings[0]);
        assert_eq!(profile.message_size_max, Some(limits::MESSAGE_SIZE_MAX_DEFAULT_OCTETS));
        assert_eq!(profile.header_size_max, Some(limits::HEADER_SIZE_MAX_DEFAULT_OCTETS));
        assert_eq!(profile.connection_timeout, Some(limits::CONNECTION_TIMEOUT_DEFAULT));
        assert_eq!(profile.inactivity_timeout, Some(limits::INACTIVITY_TIMEOUT_DEFAULT));
        assert_eq!(profile.tarpit, Some(limits::TARPIT_DEFAULT));
        assert_eq!(profile.local_names, ["host.example"]);
        assert_eq!((profile.role, profile.revision), (Role::Gateway, Revision::V13));
        assert_eq!(config.watermarks.free_disk_min, limits::FREE_DISK_MIN_DEFAULT_OCTETS);
        assert_eq!(config.watermarks.free_memory_min, limits::FREE_MEMORY_MIN_DEFAULT_OCTETS);
        assert_eq!(config.drain_timeout, limits::DRAIN_TIMEOUT_DEFAULT);
        assert_eq!(config.metrics_listen, Some("127.0.0.1:9125".parse().expect("an address")));
        assert_eq!(config.admin_socket, Some("./gatepost-spool/admin.sock".into()));
        assert!(config.accepted_domains.is_empty() && config.warnings().is_empty());
    }

    #[test]
    fn options_act() {
        let config = config(&[
            "--listen=[::]:25",
            "--listen=127.0.0.1:587,role=relay",
            "--relay-connection-timeout=0",
            "--relay-message-rate=7",
            "--relay-inactivity-timeout=7s",
            "--local-name=HOST.example",
            "--local-name=other.example",
            "--disable-extension=chunking",
            "--oxsmtp-revision=4.0",
            "--block=192.0.2.0/24",
            "--block-file=ranges",
            "--accept-domain=c.example",
            "--accept-domains-file=domains",
            "--max-message-size=0",
            "--inactivity-timeout=0",
            "--metrics-listen=none",
            "--admin-socket=none",
            "--tarpit=0",
            "--next-hop=a:25",
            "--users=users.txt",
        ])
        .expect("valid");
        assert_eq!(config.bindings.len(), 2);
        assert_eq!(config.accepted_domains.len(), 3);
        let profile = config.profile(&config.bindings[0]);
        assert!(profile.message_size_max.is_none() && profile.inactivity_timeout.is_none());
        assert_eq!(profile.local_names, ["host.example", "other.example"]);
        assert!(profile.tarpit.is_none() && !profile.extensions.chunking && !profile.extensions.binary_mime);
        assert!(profile.connection_timeout.is_some() && !profile.requires_auth);
        let relay = config.profile(&config.bindings[1]);
        assert_eq!((relay.role, relay.revision), (Role::Relay, Revision::V4));
        assert_eq!((relay.connection_timeout, relay.inactivity_timeout), (None, Some(Duration::from_secs(7))));
        assert!(relay.requires_auth && config.warnings().len() == 1);
        for (client, blocked) in [("192.0.2.9", true), ("198.51.100.1", true), ("198.51.100.2", false)] {
            assert_eq!(config.blocked.contains(client.parse().expect("an address")), blocked, "{client}");
        }
        assert_eq!((config.metrics_listen, config.admin_socket), (None, None));
        assert_eq!(config.limits.user_message_rate_per_minute, 7);
        assert_eq!(config.users, Some("users.txt".into()));
        assert_eq!(config.delivery.next_hops.len(), 1);
    }

    #[test]
    fn all_faults_are_told() {
        let arguments = ["--hostname=-x", "--shards=0", "--listen=25", "--block=x", "--tarpit=6m", "--tls-cert=a"];
        let told = config(&arguments).expect_err("each is one");
        let options: Vec<&str> = told.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        assert_eq!(options, ["--hostname", "--shards", "--listen", "--block", "--tarpit", "--tls-cert"]);
        // Faults between options that have none themselves.
        let arguments = ["--listen=0.0.0.0:25,tls=required", "--next-hop=127.0.0.1:25", "--table-slots=3"];
        assert_eq!(config(&arguments).expect_err("each is one").lines().count(), 3);
    }

    #[test]
    fn errors_name_the_option() {
        for (arguments, option, detail) in [
            (&["--listen=25"][..], "--listen", "25"),
            (&["--listen=none", "--listen=127.0.0.1:25"], "--listen", "alone"),
            (&["--listen=127.0.0.1:25", "--listen=127.0.0.1:25"], "--listen", "twice"),
            (&["--block=192.0.2.0/33"], "--block", "192.0.2.0/33"),
            (&["--block-file=bad"], "--block-file", "line 1"),
            (&["--block-file=missing"], "--block-file", "missing"),
            (&["--disable-extension=DSN"], "--disable-extension", "cannot be switched off"),
            (&["--disable-extension=size"], "--disable-extension", "cannot be switched off"),
            (&["--disable-extension=SMTPUTF8"], "--disable-extension", "SMTPUTF8"),
            (&["--oxsmtp-revision=4"], "--oxsmtp-revision", "13.0"),
            (&["--local-name=a b"], "--local-name", "a b"),
            (&["--tarpit=6m"], "--tarpit", "5m"),
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
            (&["--metrics-listen=127.0.0.1:2525"], "--metrics-listen", "--listen too"),
        ] {
            let error = config(arguments).expect_err(arguments[0]);
            assert!(error.contains(option) && error.contains(detail), "{arguments:?}: {error}");
        }
    }
}
