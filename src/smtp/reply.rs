//! The one table of replies: every text this server can say, and what follows from saying it.
//!
//! A reply is `code SP enhanced-code SP text` CRLF (RFC 5321 section 4.2, RFC 2034); the banner,
//! EHLO/HELO answers, 334 and 354 carry no enhanced code. Texts are those of [MS-OXSMTP] 4.0
//! sections 3.2.5 and 3.2.7, exact to the byte. Handlers name a [`Reply`]; nobody else spells one.

use super::sasl;
use super::server::Revision;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

/// What a reply means for the count of protocol errors ([MS-OXSMTP] ProtocolViolationCount).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Not the peer's mistake, or a policy refusal.
    None,
    /// A protocol error: counts towards `--max-protocol-errors`.
    ProtocolError,
    /// A failed logon: counts towards `--max-logon-failures`.
    LogonFailure,
}

/// Whether the session goes on after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The session goes on.
    Stay,
    /// The session goes on, but not by [MS-OXSMTP] 4.0.
    CloseIn4,
    /// The reply is the session's last; it is half-closed and drained.
    Close,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The whole line without CRLF; `{ip}` in it stands for the client's address.
    pub text: &'static str,
    /// Whether it counts as a protocol error.
    pub weight: Weight,
    /// Whether it ends the session.
    pub after: After,
    /// The reason that a refusal is counted and logged under; `None` for replies that refuse nothing.
    /// Each event of [MS-OXSMTP] 3.2.7 has its own.
    pub reason: Option<&'static str>,
}

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $weight:ident, $after:ident, $reason:expr;)*) => {
        /// A fixed reply. Its row is [`Reply::row`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reply { $($(#[$doc])* $name,)* }

        impl Reply {
            /// Every reply, in the order of the table.
            pub const ALL: &'static [Reply] = &[$(Reply::$name,)*];

            /// This reply's row of the table.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Reply::$name => &Row {
                        text: $text, weight: Weight::$weight, after: After::$after, reason: $reason,
                    },)*
                }
            }
        }
    };
}

replies! {
    // Success (CONFORMANCE I).
    /// MAIL accepted.
    SenderOk = "250 2.1.0 Sender OK", None, Stay, None;
    /// RCPT accepted.
    RecipientOk = "250 2.1.5 Recipient OK", None, Stay, None;
    /// DATA: go ahead.
    StartMail = "354 Start mail input; end with <CRLF>.<CRLF>", None, Stay, None;
    /// RSET.
    Resetting = "250 2.0.0 Resetting", None, Stay, None;
    /// NOOP.
    Ok = "250 2.0.0 OK", None, Stay, None;
    /// VRFY with an argument.
    CannotVerify = "252 2.1.5 Cannot VRFY user", None, Stay, None;
    /// HELP.
    Help = "214 2.0.0 This is Gatepost; commands: EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT",
        None, Stay, None;
    /// QUIT.
    Closing = "221 2.0.0 Service closing transmission channel", None, Close, None;

    // STARTTLS and AUTH (CONFORMANCE F, G5; RFC 3207, RFC 4954).
    /// STARTTLS: the handshake may begin.
    StartTls = "220 2.0.0 SMTP server ready", None, Stay, None;
    /// AUTH NTLM without an initial response (F1).
    NtlmSupported = "334 NTLM supported", None, Stay, None;
    /// AUTH PLAIN without an initial response: an empty challenge.
    EmptyChallenge = "334 ", None, Stay, None;
    /// AUTH LOGIN without an initial response: `Username:` ([MS-XLOGIN]).
    AskUsername = "334 VXNlcm5hbWU6", None, Stay, None;
    /// AUTH LOGIN: `Password:`.
    AskPassword = "334 UGFzc3dvcmQ6", None, Stay, None;
    /// The client is who it says it is.
    Authenticated = "235 2.7.0 Authentication successful", None, Stay, None;
    /// It is not, or nobody can tell.
    AuthenticationFailed = "535 5.7.3 Authentication unsuccessful", LogonFailure, Stay, Some("authentication_failed");
    /// Nobody can look now, or this source has failed too often (RFC 4954 section 6).
    AuthenticationUnavailable = "454 4.7.0 Temporary authentication failure", None, Stay, Some("authentication_unavailable");
    /// The client has cancelled the exchange with `*`.
    AuthenticationCancelled = "501 5.7.0 Authentication cancelled", None, Stay, Some("authentication_cancelled");
    /// A line of the exchange that is not base64.
    CannotDecode = "501 5.5.2 Cannot decode response", ProtocolError, Stay, Some("cannot_decode");
    /// A line of the exchange that is longer than the limit.
    ResponseTooLong = "500 5.5.6 Line too long", ProtocolError, Stay, Some("line_too_long");
    /// A mechanism that nobody knows, or that is not offered in this session (F5, F6).
    UnrecognizedMechanism = "504 5.7.4 Unrecognized authentication type", None, Stay, Some("mechanism_unrecognized");

    // Syntax (RFC 5321 section 4.2.4, CONFORMANCE B6, B7, "Lines").
    /// A verb nobody knows.
    UnrecognizedCommand = "500 5.3.3 Unrecognized command", ProtocolError, Stay, Some("command_unrecognized");
    /// A line with a bare CR, bare LF or NUL inside.
    SyntaxError = "500 5.5.2 Syntax error", ProtocolError, Stay, Some("syntax_error");
    /// A command line longer than the limit.
    LineTooLong = "500 5.5.2 Line too long", ProtocolError, Stay, Some("line_too_long");
    /// Arguments where none are allowed, or bad ones; unknown extension parameters (C7).
    InvalidArguments = "501 5.5.4 Invalid arguments", ProtocolError, Stay, Some("invalid_arguments");
    /// An unparseable BDAT: its octets cannot be told from commands (G4).
    InvalidChunk = "501 5.5.4 Invalid arguments", ProtocolError, Close, Some("invalid_arguments");
    /// EHLO or HELO without a usable argument (B6).
    InvalidHelloDomain = "501 5.5.4 Invalid domain name", ProtocolError, Stay, Some("invalid_hello");
    /// An extension that is switched off, EXPN, AUTH without users, STARTTLS without a certificate.
    NotImplemented = "502 5.5.1 Command not implemented", ProtocolError, Stay, Some("command_not_implemented");

    // Sequence (C1, C2, C4, C12, C13).
    /// MAIL, RCPT, DATA and others before EHLO or HELO.
    HelloFirst = "503 5.5.2 Send hello first", ProtocolError, Stay, Some("hello_first");
    /// A second MAIL in one transaction.
    SenderAlreadySpecified = "503 5.5.2 Sender already specified", ProtocolError, Stay, Some("sender_already_specified");
    /// RCPT or DATA without MAIL.
    NeedMail = "503 5.5.2 Need mail command", ProtocolError, Stay, Some("need_mail");
    /// The same, following only from a refused MAIL: no error of its own (E7).
    NeedMailAfterRefusal = "503 5.5.2 Need mail command", None, Stay, Some("need_mail");
    /// DATA without an accepted recipient.
    NeedRecipient = "503 5.5.2 Need rcpt command", ProtocolError, Stay, Some("need_recipient");
    /// The same, following only from refused recipients: no error of its own (E7).
    NeedRecipientAfterRefusal = "503 5.5.2 Need rcpt command", None, Stay, Some("need_recipient");
    /// MAIL, RCPT or DATA after a chunk (C2, C13), DATA for what only chunks can carry (G1).
    BadSequence = "503 5.5.1 Bad sequence of commands", ProtocolError, Stay, Some("bad_sequence");
    /// The same, following only from a refused chunk: no error of its own (E7).
    BadSequenceAfterFailure = "503 5.5.1 Bad sequence of commands", None, Stay, Some("bad_sequence");

    // MAIL and RCPT (C3 to C19).
    /// The binding requires TLS, and the session has none (C3).
    MustStartTls = "451 5.7.3 Must issue a STARTTLS command first", None, Stay, Some("tls_required");
    /// The binding requires AUTH, and the client has not authenticated (C9).
    NotAuthenticated = "530 5.7.1 Client was not authenticated", None, Stay, Some("authentication_required");
    /// MAIL without `FROM:`, RCPT without `TO:`.
    UnrecognizedParameter = "501 5.5.4 Unrecognized parameter", ProtocolError, Stay, Some("unrecognized_parameter");
    /// The authenticated user may not use this sender (C10).
    SenderNotPermitted =
        "550 5.7.1 Client does not have permissions to submit to this server", None, Stay, Some("sender_not_permitted");
    /// The reverse-path does not parse.
    InvalidSender = "501 5.1.7 Invalid address", None, Stay, Some("invalid_sender");
    /// The forward-path does not parse, or is null.
    InvalidRecipient = "501 5.1.3 Invalid address", None, Stay, Some("invalid_recipient");
    /// An unqualified address and no `--default-domain` (C11): configuration, not a protocol error.
    CannotQualify = "501 5.5.4 Invalid arguments", None, Stay, Some("unqualified_address");
    /// SIZE= at MAIL exceeds the limit (E6).
    SizeTooLarge = "552 5.3.4 Message size exceeds fixed maximum message size", None, Stay, Some("message_size");
    /// The message exceeds the limit (E6).
    MessageTooLarge = "552 5.3.4 Message size exceeds fixed maximum message size", None, CloseIn4, Some("message_size");
    /// Its header does (E5).
    HeaderTooLarge = "552 5.3.4 Header size exceeds fixed maximum size", None, CloseIn4, Some("header_size");
    /// It was received too often (E1).
    TooManyHops = "554 5.4.6 Hop count exceeded - possible mail loop", None, CloseIn4, Some("hop_count");
    /// It was received here too often (E2).
    TooManyLocalHops = "554 5.4.6 Hop count exceeded - possible mail loop", None, CloseIn4, Some("local_hop_count");
    /// Storage or memory is short (C6, E8, a failed commit).
    InsufficientResources = "452 4.3.1 Insufficient system resources", None, Stay, Some("resources");
    /// IPAddressNotAllowed, of a client on a DNS block list (E15).
    OnBlockList =
        "550 5.7.1 Recipient not authorized, your IP has been found on a block list", None, CloseIn4, Some("dnsbl");
    /// The recipient is neither accepted here nor may the client relay (C19).
    UnableToRelay = "550 5.7.1 Unable to relay", None, Stay, Some("relay_denied");
    /// More accepted recipients than the limit (C17); the transaction goes on.
    TooManyRecipients = "452 4.5.3 Too many recipients", None, CloseIn4, Some("too_many_recipients");
    /// XEXCH50 of a client that has not authenticated (G7).
    AuthenticateFirst = "504 5.7.4 Need to authenticate first", None, Stay, Some("authentication_required");

    /// XEXCH50: go ahead (G7).
    SendBinaryData = "354 Send binary data", None, Stay, None;
    /// Its octets were taken.
    Xexch50Ok = "250 2.0.0 XEXCH50 OK", None, Stay, None;

    // Events and timers (D, E): all end the session.
    /// MessageRateLimitExceeded (E4).
    RateExceeded = "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
        None, Close, Some("message_rate");
    /// The same, of an authenticated user of a relay.
    UserRateExceeded = "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
        None, Close, Some("user_message_rate");
    /// ProtocolViolationCount (E7).
    TooManyErrors = "421 4.7.0 Too many errors on this connection, closing transmission channel",
        None, Close, Some("protocol_errors");
    /// The same, by failed logons.
    TooManyLogonFailures = "421 4.7.0 Too many errors on this connection, closing transmission channel",
        None, Close, Some("logon_failures");
    /// ConnectionTimeOut (D1).
    ConnectionTimedOut = "421 4.4.1 Connection timed out", None, Close, Some("connection_timeout");
    /// ConnectionInactivityTimeOut (D2).
    InactivityTimedOut = "451 4.7.0 Timeout waiting for client input", None, Close, Some("inactivity_timeout");
    /// The server is shutting down.
    ShuttingDown = "421 4.3.2 Service shutting down", None, Close, Some("shutdown");
    /// NewConnectionNotAvailable (E9): the shard that should serve the connection hangs or has crashed.
    ConnectionDropped = "421 4.4.2 Connection dropped", None, Close, Some("shard_unavailable");
    /// ConnectionCountExceeded (E11).
    TooManyConnections =
        "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel",
        None, Close, Some("connections_total");
    /// ConnectionCountPerSource (E12).
    TooManyConnectionsFromSource =
        "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",
        None, Close, Some("connections_per_source");
    /// BindingNotConfigured (E10): the client is outside the binding's permitted ranges (A3).
    NotConfigured = "421 4.3.2 Service not available", None, Close, Some("binding_not_configured");
    /// A proxy's connection does not begin with the PROXY protocol's header, or not in time.
    ProxyHeaderMissing = "421 4.3.2 Service not available", None, Close, Some("proxy_header");
    /// A connection begins with that header and comes from no proxy, or through one already.
    ProxyHeaderNotAllowed = "421 4.3.2 Service not available", None, Close, Some("proxy_not_allowed");
    /// OutOfResources (E8), at connect.
    OutOfResources = "452 4.3.1 Insufficient system resources", None, Close, Some("resources");
    /// IPAddressNotAllowed by a static block range (E13); `{ip}` stands for the client's address.
    BlockedSource =
        "550 5.7.1 External client with IP address {ip} does not have permissions to submit to this server. Visit http://support.microsoft.com/kb/928123 for more information",
        None, Close, Some("blocked");
    /// IPAddressNotAllowed by a dynamic block range (E14); `{ip}` stands for the client's address.
    BlockedSourceForATime =
        "550 5.7.1 External client with IP address {ip} does not have permissions to submit to this server",
        None, Close, Some("blocked_for_a_time");
}

impl Reply {
    /// The whole line without CRLF.
    pub const fn text(self) -> &'static str {
        self.row().text
    }

    /// Whether it is the session's last.
    pub const fn closes(self, revision: Revision) -> bool {
        match self.row().after {
            After::Stay => false,
            After::CloseIn4 => matches!(revision, Revision::V4),
            After::Close => true,
        }
    }

    /// Its code (RFC 5321 section 4.2).
    pub const fn code(self) -> u16 {
        let [hundreds, tens, ones, ..] = self.text().as_bytes() else { return 0 };
        (*hundreds - b'0') as u16 * 100 + (*tens - b'0') as u16 * 10 + (*ones - b'0') as u16
    }

    /// Whether it says that a command has failed for good (RFC 5321 section 4.2.1).
    pub const fn is_permanent(self) -> bool {
        self.text().as_bytes()[0] == b'5'
    }

    /// Whether it may stand in place of the banner.
    pub const fn is_said_at_connect(self) -> bool {
        matches!(
            self,
            Reply::BlockedSource
                | Reply::BlockedSourceForATime
                | Reply::NotConfigured
                | Reply::OutOfResources
                | Reply::TooManyConnections
                | Reply::TooManyConnectionsFromSource
                | Reply::ConnectionDropped
                | Reply::ProxyHeaderMissing
                | Reply::ShuttingDown
        )
    }

    /// Whether it may refuse a message whose content has begun.
    pub const fn is_said_of_content(self) -> bool {
        matches!(
            self,
            Reply::TooManyHops
                | Reply::TooManyLocalHops
                | Reply::HeaderTooLarge
                | Reply::MessageTooLarge
                | Reply::InsufficientResources
                | Reply::ConnectionTimedOut
                | Reply::InactivityTimedOut
                | Reply::ShuttingDown
        )
    }

    /// The line without CRLF, as it is said to `client`.
    pub fn said_to(self, client: IpAddr) -> impl fmt::Display {
        SaidTo { reply: self, client }
    }

    /// Appends the line with CRLF, as it is said to `client`.
    pub fn write(self, out: &mut Vec<u8>, client: IpAddr) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{}\r\n", self.said_to(client));
    }
}

struct SaidTo {
    reply: Reply,
    client: IpAddr,
}

impl fmt::Display for SaidTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reply.text().split_once("{ip}") {
            None => f.write_str(self.reply.text()),
            Some((head, tail)) => write!(f, "{head}{}{tail}", self.client.to_canonical()),
        }
    }
}

/// The code of [`banner`].
pub const BANNER_CODE: u16 = 220;

/// The banner, `220 <fqdn> ESMTP Gatepost ready`.
pub fn banner(out: &mut Vec<u8>, hostname: &str) {
    out.extend_from_slice(b"220 ");
    out.extend_from_slice(hostname.as_bytes());
    out.extend_from_slice(b" ESMTP Gatepost ready\r\n");
}

/// A challenge of AUTH: `334 <base64>`.
pub fn challenge(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(b"334 ");
    sasl::encode(message, out);
    out.extend_from_slice(b"\r\n");
}

/// The acceptance of a chunk that is not the last: `250 2.6.0 CHUNK received OK, <n> octets`.
pub fn chunk_received(out: &mut Vec<u8>, octets: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "250 2.6.0 CHUNK received OK, {octets} octets\r\n");
}

/// The acceptance of a message: `250 2.6.0 <queue-id> Queued mail for delivery`.
pub fn queued(out: &mut Vec<u8>, queue_id: &str) {
    out.extend_from_slice(b"250 2.6.0 ");
    out.extend_from_slice(queue_id.as_bytes());
    out.extend_from_slice(b" Queued mail for delivery\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_reply() {
        for reply in Reply::ALL {
            let text = reply.text();
            assert!(text.is_ascii() && !text.contains(['\r', '\n']), "{text}");
            let (code, rest) = text.split_once(' ').expect("a code and a text");
            assert_eq!(code.len(), 3, "{text}");
            assert!(code.starts_with(['2', '3', '4', '5']), "{text}");
            if !matches!(code, "334" | "354") {
                let (enhanced, words) = rest.split_once(' ').expect("an enhanced code");
                assert_eq!(enhanced.split('.').count(), 3, "{text}");
                // C3 is the document's own mixture.
                let mixed = reply == &Reply::MustStartTls;
                assert!(enhanced.as_bytes()[0] == code.as_bytes()[0] || mixed, "{text}");
                assert!(!words.is_empty(), "{text}");
            }
            // RFC 5321 section 4.5.3.1.5: a reply line is at most 512 octets.
            assert!(text.len() <= 510, "{text}");
        }
    }

    #[test]
    fn refusals_have_a_reason_and_successes_have_none() {
        for reply in Reply::ALL {
            let refused = matches!(reply.text().as_bytes()[0], b'4' | b'5');
            assert_eq!(refused, reply.row().reason.is_some(), "{}", reply.text());
        }
    }

    #[test]
    fn protocol_errors_are_those_of_the_document() {
        // [MS-OXSMTP] ProtocolViolationCount: 5yz with 5.5.x or 5.3.3, save the listed exceptions.
        for reply in Reply::ALL {
            let row = reply.row();
            let counted = row.weight == Weight::ProtocolError;
            let shaped =
                row.text.starts_with('5') && (row.text[4..].starts_with("5.5.") || row.text[4..].starts_with("5.3.3"));
            let excepted = matches!(
                reply,
                Reply::NeedMailAfterRefusal
                    | Reply::NeedRecipientAfterRefusal
                    | Reply::BadSequenceAfterFailure
                    | Reply::CannotQualify
            );
            assert_eq!(counted, shaped && !excepted, "{}", row.text);
        }
    }

    #[test]
    fn ends_of_sessions() {
        for reply in Reply::ALL {
            let row = reply.row();
            let closes = row.text.starts_with("421")
                || row.text.starts_with("221")
                || matches!(reply, Reply::InactivityTimedOut | Reply::InvalidChunk | Reply::OutOfResources)
                || matches!(reply, Reply::BlockedSource | Reply::BlockedSourceForATime);
            assert_eq!(row.after == After::Close, closes, "{}", row.text);
            assert_eq!(reply.closes(Revision::V13), closes, "{}", row.text);
            let in_4 = ["452 4.5.3", "550 5.7.1 Recipient", "552 5.3.4", "554 5.4.6"]
                .iter()
                .any(|code| row.text.starts_with(code));
            let at_mail = matches!(reply, Reply::SizeTooLarge);
            assert_eq!(reply.closes(Revision::V4), closes || (in_4 && !at_mail), "{}", row.text);
        }
    }
}
