//! What protects connections to a next hop.

use crate::smtp::client::{StartTls, Wants};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;

/// How connections to a next hop are protected.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// TLS; `None`: never.
    pub tls: Option<ClientTls>,
}

/// TLS as a next hop's client.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// One for all shards, so that sessions are resumed. It verifies where TLS is required.
    pub config: Arc<ClientConfig>,
    /// The next hop's name.
    pub name: ServerName<'static>,
    /// Nothing may be sent without it.
    pub is_required: bool,
}

impl Security {
    /// What a session on a new connection wants first. `avoids_tls`: where TLS is optional, it
    /// failed a while ago.
    pub fn wants(&self, avoids_tls: bool) -> Wants {
        let starttls = match &self.tls {
            Some(tls) if tls.is_required => StartTls::Always,
            Some(_) if !avoids_tls => StartTls::IfOffered,
            _ => StartTls::Never,
        };
        Wants { starttls }
    }

    /// Whether mail goes without TLS where it fails.
    pub fn is_optional(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.is_required)
    }
}
