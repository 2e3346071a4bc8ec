//! What protects connections to a next hop, and who logs on there.

use crate::smtp::client::{Credentials, Logon, StartTls, Wants};
use crate::smtp::sasl::ntlm::{Randomness, filetime};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;

/// How connections to a next hop are protected.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// TLS; `None`: never.
    pub tls: Option<ClientTls>,
    /// Who logs on; `None`: nobody.
    pub credentials: Option<Arc<Credentials>>,
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
    /// failed a while ago. An error: the system has no random numbers.
    pub fn wants(&self, avoids_tls: bool, unix_ms: u64) -> io::Result<Wants> {
        let starttls = match &self.tls {
            Some(tls) if tls.is_required => StartTls::Always,
            Some(_) if !avoids_tls => StartTls::IfOffered,
            _ => StartTls::Never,
        };
        let logon = self.credentials.as_ref().map(|credentials| self.logon(credentials, unix_ms)).transpose()?;
        Ok(Wants { starttls, logon })
    }

    fn logon(&self, credentials: &Arc<Credentials>, unix_ms: u64) -> io::Result<Logon> {
        let mut randomness = Randomness { nonce: [0; 8], session_key: [0; 16] };
        getrandom::fill(&mut randomness.nonce)?;
        getrandom::fill(&mut randomness.session_key)?;
        Ok(Logon {
            credentials: credentials.clone(),
            // Without TLS the operator asked for it.
            in_clear: self.tls.is_none(),
            randomness,
            filetime: filetime(unix_ms),
        })
    }

    /// Whether mail goes without TLS where it fails.
    pub fn is_optional(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.is_required)
    }
}
