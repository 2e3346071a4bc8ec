//! What a session is told about the server it speaks for.

use std::time::Duration;

/// Parameters of receiving sessions: one value per binding, shared by its sessions.
/// Every limit: `None` is unlimited.
#[derive(Clone, Debug)]
pub struct Profile {
    /// This server's fully qualified domain name.
    pub hostname: String,
    /// Qualifies addresses without a domain; without it they are refused (C11).
    pub default_domain: Option<String>,
    /// Largest message in octets (E6).
    pub message_size_max: Option<u64>,
    /// Most accepted recipients of a message (C17).
    pub recipients_max: Option<u32>,
    /// Most protocol errors of a session (E7).
    pub protocol_errors_max: Option<u32>,
    /// How long a session may last (D1).
    pub connection_timeout: Option<Duration>,
    /// How long a session may be silent (D2).
    pub inactivity_timeout: Option<Duration>,
}
