//! What a shard goes by: the newest configuration, and what it says of each of the shard's listeners.
//!
//! Replaced as a whole when the control thread tells of another configuration. It is the shard's own
//! (`Rc`): a session holds its listener's binding, with the configuration that it began under, and asks
//! no count that other shards write. The listeners themselves stay: a configuration that takes effect
//! without a restart has the same addresses in the same order.

use super::shared::Edition;
use crate::config::{self, Config, Tls};
use crate::policy::{AddressRanges, BindingRules};
use crate::smtp::server::Profile;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// What a shard goes by.
pub struct Current {
    /// The number of the configuration.
    pub edition: u64,
    /// What holds for all that is no session's: delivery.
    pub config: Arc<Config>,
    /// By the number of the listener.
    bindings: Box<[Rc<Binding>]>,
}

/// What holds for the connections of one listener that are accepted under one configuration.
pub struct Binding {
    /// Address and port.
    pub address: SocketAddr,
    /// The same as text, for records.
    pub name: Box<str>,
    /// Who may connect.
    pub rules: BindingRules,
    /// Who brings connections of others.
    pub proxies: Option<AddressRanges>,
    /// What their sessions are told.
    pub profile: Rc<Profile>,
    /// TLS comes first, the banner under it.
    pub implicit_tls: bool,
    /// The configuration: all else that is decided for them.
    pub config: Arc<Config>,
}

impl Current {
    /// Those of listeners with these addresses, one for each binding of the configuration.
    pub fn new(edition: &Edition, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let config = &edition.config;
        let bindings = addresses.into_iter().zip(&config.bindings);
        Current {
            edition: edition.number,
            config: config.clone(),
            bindings: bindings.map(|(address, binding)| Rc::new(Binding::new(address, binding, config))).collect(),
        }
    }

    /// The same listeners' under another configuration.
    pub fn succeeded_by(&self, edition: &Edition) -> Self {
        Current::new(edition, self.bindings.iter().map(|binding| binding.address))
    }

    /// What holds for the connections that this listener accepts now.
    pub fn binding(&self, listener: usize) -> &Rc<Binding> {
        &self.bindings[listener]
    }
}

impl Binding {
    fn new(address: SocketAddr, binding: &config::Binding, config: &Arc<Config>) -> Self {
        Binding {
            address,
            name: address.to_string().into(),
            rules: binding.rules.clone(),
            proxies: binding.proxy.clone(),
            profile: Rc::new(config.profile(binding)),
            implicit_tls: binding.tls == Some(Tls::Implicit),
            config: config.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_under_one_configuration_stays_under_it() {
        let edition = |number, arguments: &[&str]| Edition { number, config: Arc::new(Config::of(arguments)) };
        let listens = ["--listen=127.0.0.1:0", "--listen=127.0.0.1:0,role=relay"];
        let addresses = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let first = Current::new(&edition(0, &listens), addresses);
        let held = first.binding(1).clone();
        let listens = [listens[0], "--listen=127.0.0.1:0,plaintext-auth", "--max-recipients=7", "--tarpit=1s"];
        let second = first.succeeded_by(&edition(3, &listens));
        assert_eq!(second.edition, 3);
        for (number, address) in addresses.into_iter().enumerate() {
            let binding = second.binding(number);
            assert_eq!((binding.address, binding.profile.recipients_max), (address, Some(7)));
            assert!(Arc::ptr_eq(&binding.config, &second.config));
        }
        let new = second.binding(1);
        assert!(new.profile.plaintext_auth && new.profile.role != held.profile.role);
        assert!(!held.profile.plaintext_auth && held.profile.recipients_max != Some(7));
        assert!(Arc::ptr_eq(&held.config, &first.config) && held.config.tarpit() != new.config.tarpit());
    }
}
