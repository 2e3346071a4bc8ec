//! What another configuration changes in a gateway that runs, and what only in one that starts.
//!
//! All but the options of [`NEEDS_RESTART`] apply to a running gateway; of `listen` the addresses stay,
//! and all attributes of those that stay apply.

use super::{Binding, Config, ConfigError, check_tls};
use crate::log;
use std::net::SocketAddr;

/// Options that only a start follows: what is built of them lives as long as the process. `listen` is
/// apart: see above.
///
/// | options | what is built of them |
/// |---|---|
/// | `hostname` | what the shards write into mail, and say to next hops |
/// | `shards`, `spool` | threads, sockets and directories |
/// | `resolver` | the control thread's resolver, with what it remembers |
/// | `ipv6-prefix`, `table-slots` | the tables that all connections are counted in |
/// | `next-hop`, `route` | numbers of next hops and lanes, which the queue refers to; what protects their connections |
/// | `metrics-listen`, `admin-socket` | sockets of the control thread |
pub const NEEDS_RESTART: &[&str] = &[
    "hostname",
    "shards",
    "resolver",
    "ipv6-prefix",
    "table-slots",
    "next-hop",
    "route",
    "spool",
    "metrics-listen",
    "admin-socket",
    "log-format",
    "log-file",
];

impl Config {
    /// This configuration as far as the gateway that runs by `running` can follow it, and the addresses
    /// that it would begin or cease to listen on if it were started again.
    ///
    /// # Errors
    /// What stays does not go together with what is new.
    pub fn succeeding(mut self, running: &Config) -> Result<(Config, Vec<SocketAddr>), ConfigError> {
        let (bindings, moved) = matched(&running.bindings, self.bindings);
        check_tls(&bindings, !self.certificates.is_empty(), self.session.offers_tls)?;
        // The first of the local names is the host's.
        let others = self.session.local_names.split_off(1).into_iter();
        let others = others.filter(|name| !name.eq_ignore_ascii_case(&running.hostname));
        self.session.local_names = std::iter::once(running.hostname.clone()).chain(others).collect();
        self.session.hostname = running.hostname.clone();
        self.limits.ipv6_prefix = running.limits.ipv6_prefix;
        self.limits.table_slots = running.limits.table_slots;
        self.delivery.next_hops = running.delivery.next_hops.clone();
        self.delivery.routes = running.delivery.routes.clone();
        let config = Config {
            bindings,
            hostname: running.hostname.clone(),
            shards: running.shards,
            spool: running.spool.clone(),
            resolvers: running.resolvers.clone(),
            metrics_listen: running.metrics_listen,
            admin_socket: running.admin_socket.clone(),
            log: log::Settings { level: self.log.level, ..running.log.clone() },
            ..self
        };
        Ok((config, moved))
    }
}

/// The running bindings, each as `new` has it if it is there; and the addresses that only one of the
/// two has.
fn matched(running: &[Binding], mut new: Vec<Binding>) -> (Vec<Binding>, Vec<SocketAddr>) {
    let mut moved = Vec::new();
    let mut follow = |old: &Binding| match new.iter().position(|binding| binding.address == old.address) {
        Some(index) => new.remove(index),
        None => {
            moved.push(old.address);
            old.clone()
        }
    };
    let bindings = running.iter().map(&mut follow).collect();
    moved.extend(new.into_iter().map(|binding| binding.address));
    (bindings, moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Sources, load};
    use crate::config::table;

    /// The files that the options name.
    fn read(path: &std::path::Path) -> std::io::Result<String> {
        match path.to_str() {
            Some("domains") => Ok("file.example\n".to_owned()),
            Some("ranges") => Ok("198.51.100.0/24\n".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    fn config(arguments: &[&str]) -> Config {
        let sources = Sources {
            arguments: arguments.iter().map(Into::into).collect(),
            environment: Vec::new(),
            machine_name: "host.example".to_owned(),
            read_file: read,
        };
        load(&sources).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).config
    }

    fn succeeded(running: &[&str], new: &[&str]) -> (Config, Vec<SocketAddr>) {
        config(new).succeeding(&config(running)).expect("they go together")
    }

    /// Values that are not the defaults, for every option that applies to a running gateway.
    const APPLIED: &[(&str, &[&str])] = &[
        ("listen", &["--listen=127.0.0.1:2525,role=relay,allow=192.0.2.0/24"]),
        ("local-name", &["--local-name=other.example"]),
        ("accept-domain", &["--accept-domain=a.example"]),
        ("accept-domains-file", &["--accept-domains-file=domains"]),
        ("relay-from", &["--relay-from=192.0.2.0/24"]),
        ("default-domain", &["--default-domain=d.example"]),
        ("users", &["--users=users"]),
        ("block", &["--block=192.0.2.0/24"]),
        ("block-file", &["--block-file=ranges"]),
        ("dnsbl", &["--dnsbl=bl.example.org"]),
        ("max-connections", &["--max-connections=7"]),
        ("max-connections-per-source", &["--max-connections-per-source=7"]),
        ("message-rate", &["--message-rate=7"]),
        ("relay-message-rate", &["--relay-message-rate=7"]),
        ("max-message-size", &["--max-message-size=7MB"]),
        ("max-header-size", &["--max-header-size=7KB"]),
        ("max-hops", &["--max-hops=7"]),
        ("max-local-hops", &["--max-local-hops=7"]),
        ("max-recipients", &["--max-recipients=7"]),
        ("max-protocol-errors", &["--max-protocol-errors=7"]),
        ("max-logon-failures", &["--max-logon-failures=7"]),
        ("logon-failure-rate", &["--logon-failure-rate=7"]),
        ("connection-timeout", &["--connection-timeout=7s"]),
        ("inactivity-timeout", &["--inactivity-timeout=7s"]),
        ("relay-connection-timeout", &["--relay-connection-timeout=7s"]),
        ("relay-inactivity-timeout", &["--relay-inactivity-timeout=7s"]),
        ("tarpit", &["--tarpit=7s"]),
        ("disable-extension", &["--disable-extension=CHUNKING"]),
        ("tls-cert", &["--tls-cert=cert", "--tls-key=key"]),
        ("tls-key", &["--tls-cert=cert", "--tls-key=key"]),
        ("oxsmtp-revision", &["--oxsmtp-revision=4.0"]),
        ("min-free-disk", &["--min-free-disk=7MB"]),
        ("min-free-memory", &["--min-free-memory=7MB"]),
        ("ack-delay", &["--ack-delay=7s"]),
        ("next-hop-timeout", &["--next-hop-timeout=7s"]),
        ("retry-min", &["--retry-min=7s"]),
        ("retry-max", &["--retry-max=7h"]),
        ("queue-lifetime", &["--queue-lifetime=7d"]),
        ("drain-timeout", &["--drain-timeout=7s"]),
        ("log-level", &["--log-level=debug"]),
    ];

    /// The same for those that need a restart.
    const KEPT: &[(&str, &[&str])] = &[
        ("hostname", &["--hostname=other.example", "--local-name=host.example"]),
        ("shards", &["--shards=7"]),
        ("resolver", &["--resolver=192.0.2.53:53"]),
        ("ipv6-prefix", &["--ipv6-prefix=56"]),
        ("table-slots", &["--table-slots=65536"]),
        ("next-hop", &["--next-hop=192.0.2.1:25"]),
        ("route", &["--route=a.example=192.0.2.1:25"]),
        ("spool", &["--spool=other"]),
        ("metrics-listen", &["--metrics-listen=none"]),
        ("admin-socket", &["--admin-socket=none"]),
        ("log-format", &["--log-format=json"]),
        ("log-file", &["--log-file=log"]),
    ];

    #[test]
    fn every_option_is_applied_or_needs_a_restart() {
        for option in table::options().iter().map(|option| option.name) {
            let is_applied = APPLIED.iter().any(|(name, _)| *name == option);
            assert!(is_applied != NEEDS_RESTART.contains(&option), "--{option}");
        }
        let kept: Vec<&str> = KEPT.iter().map(|(name, _)| *name).collect();
        assert_eq!(kept, NEEDS_RESTART);
        let running = format!("{:?}", config(&[]));
        for (option, arguments) in APPLIED {
            let (config, moved) = succeeded(&[], arguments);
            assert_ne!(format!("{config:?}"), running, "--{option}");
            assert_eq!(moved, []);
        }
        for (option, arguments) in KEPT {
            let (config, moved) = succeeded(&[], arguments);
            assert_eq!(format!("{config:?}"), running, "--{option}");
            assert_eq!(moved, []);
        }
    }

    #[test]
    fn addresses_stay_and_their_attributes_change() {
        let running = ["--listen=127.0.0.1:25", "--listen=127.0.0.1:0", "--listen=127.0.0.1:0,role=relay"];
        let new = ["--listen=127.0.0.1:0,plaintext-auth", "--listen=127.0.0.1:26", "--listen=127.0.0.1:0"];
        let (config, moved) = succeeded(&running, &new);
        let shown: Vec<_> = config.bindings.iter().map(|it| (it.address.port(), it.plaintext_auth)).collect();
        assert_eq!(shown, [(25, false), (0, true), (0, false)]);
        let ports: Vec<u16> = moved.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [25, 26]);
    }

    #[test]
    fn what_stays_must_go_with_what_is_new() {
        let tls = ["--tls-cert=cert", "--tls-key=key"];
        let running = config(&[tls[0], tls[1], "--listen=127.0.0.1:25,tls=required"]);
        for (new, option) in [
            (&["--listen=127.0.0.1:26"][..], "--listen"),
            (&[tls[0], tls[1], "--listen=127.0.0.1:26", "--disable-extension=STARTTLS"], "--disable-extension"),
        ] {
            let error = config(new).succeeding(&running).expect_err("nobody could use port 25 any more").to_string();
            assert!(error.starts_with(option) && error.contains("127.0.0.1:25"), "{error}");
        }
    }
}
