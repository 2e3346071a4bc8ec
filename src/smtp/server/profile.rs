//! What a session is told about the server it speaks for.

use std::time::Duration;

/// The server's role on a binding ([MS-OXSMTP] 3.2.7, ConnectionEstablished; RFC 5321 section 2.3.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The edge server, which faces the internet.
    #[default]
    Gateway,
    /// The hub server, which faces the organisation.
    Relay,
}

/// Which revision of [MS-OXSMTP] decides where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revision {
    /// 4.0 (2010): the events of section 3.2.7 end the session.
    V4,
    /// 13.0 (2017): the session goes on after most of them.
    #[default]
    V13,
}

/// The extensions that an operator can switch off (CONFORMANCE B3, B4). The rest is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// PIPELINING (RFC 2920). Pipelined input is served all the same.
    pub pipelining: bool,
    /// 8BITMIME (RFC 6152): `BODY=`.
    pub eight_bit_mime: bool,
    /// BINARYMIME (RFC 3030): `BODY=BINARYMIME`. Needs [`Self::chunking`].
    pub binary_mime: bool,
    /// CHUNKING (RFC 3030): BDAT.
    pub chunking: bool,
}

impl Default for Extensions {
    fn default() -> Self {
        Extensions { pipelining: true, eight_bit_mime: true, binary_mime: true, chunking: true }
    }
}

/// Parameters of receiving sessions: one value per binding, shared by its sessions.
/// Every limit: `None` is unlimited. The default has no name and no limits.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// This server's fully qualified domain name.
    pub hostname: String,
    /// The names that this server calls itself in the `by` clause of Received fields (E2).
    pub local_names: Vec<String>,
    /// Qualifies addresses without a domain; without it they are refused (C11).
    pub default_domain: Option<String>,
    /// The role on this binding.
    pub role: Role,
    /// The revision that decides.
    pub revision: Revision,
    /// What is offered.
    pub extensions: Extensions,
    /// Whether clients may use STARTTLS: there is a certificate (B3).
    pub offers_tls: bool,
    /// Whether clients must use TLS (C3).
    pub requires_tls: bool,
    /// Whether clients may authenticate, if there are users.
    pub offers_auth: bool,
    /// Whether clients must authenticate (C9).
    pub requires_auth: bool,
    /// Whether passwords may be sent without TLS (F6).
    pub plaintext_auth: bool,
    /// Largest message in octets (E6).
    pub message_size_max: Option<u64>,
    /// Largest header in octets (E5).
    pub header_size_max: Option<u64>,
    /// Most Received fields on arrival (E1).
    pub hops_max: Option<u32>,
    /// Most Received fields of this server's own on arrival (E2).
    pub local_hops_max: Option<u32>,
    /// Most accepted recipients of a message (C17).
    pub recipients_max: Option<u32>,
    /// Most protocol errors of a session (E7).
    pub protocol_errors_max: Option<u32>,
    /// Most failed logons of a session (E7).
    pub logon_failures_max: Option<u32>,
    /// How late refusals are given (E17); `None`: at once.
    pub tarpit: Option<Duration>,
    /// How long a session may last (D1).
    pub connection_timeout: Option<Duration>,
    /// How long a session may be silent (D2).
    pub inactivity_timeout: Option<Duration>,
}
