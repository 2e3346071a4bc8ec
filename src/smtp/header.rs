//! The Received field this server puts before every message (RFC 5321 section 4.4), and fields that
//! a submitted one lacks.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

/// TLS 1.2, as it is written in fields and records.
pub const TLS_1_2: &str = "TLSv1.2";
/// TLS 1.3, likewise.
pub const TLS_1_3: &str = "TLSv1.3";

/// The TLS that a session is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsParameters {
    /// The protocol: [`TLS_1_2`] or [`TLS_1_3`].
    pub version: &'static str,
    /// The cipher suite's name in IANA's registry.
    pub cipher: &'static str,
}

/// Fields that a submitted message lacks, which this server adds (RFC 6409 section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MissingFields {
    /// Date.
    pub date: bool,
    /// Message-ID.
    pub message_id: bool,
}

impl MissingFields {
    /// Appends the fields. `date` is an RFC 5322 date-time; the queue id is never used again, so the
    /// message id is unique (RFC 5322 section 3.6.4).
    pub fn write(self, out: &mut Vec<u8>, queue_id: &str, hostname: &str, date: &str) {
        // Writing to a Vec cannot fail.
        if self.date {
            let _ = write!(out, "Date: {date}\r\n");
        }
        if self.message_id {
            let _ = write!(out, "Message-ID: <{queue_id}@{hostname}>\r\n");
        }
    }
}

/// What a Received field tells of a message's arrival.
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    /// The argument of EHLO or HELO, as the client gave it.
    pub hello: &'a [u8],
    /// The client's address.
    pub client: IpAddr,
    /// This server's fully qualified domain name.
    pub hostname: &'a str,
    /// Whether the client said EHLO (`ESMTP`) or HELO (`SMTP`), RFC 3848.
    pub extended: bool,
    /// The TLS that the message came under.
    pub tls: Option<TlsParameters>,
    /// Whether the client has authenticated.
    pub authenticated: bool,
}

impl Trace<'_> {
    /// Appends the field, folded, with its CRLF. `date` is an RFC 5322 date-time.
    pub fn write_received(&self, out: &mut Vec<u8>, queue_id: &str, date: &str) {
        out.extend_from_slice(b"Received: from ");
        self.write_hello(out);
        let mut rest = String::with_capacity(160);
        let family = if self.client.is_ipv6() { "IPv6:" } else { "" };
        let _ = write!(rest, " ([{family}{}])\r\n\t", self.client);
        if let Some(TlsParameters { version, cipher }) = self.tls {
            let _ = write!(rest, "(using {version} with cipher {cipher})\r\n\t");
        }
        let (hostname, protocol) = (self.hostname, self.protocol());
        let _ = write!(rest, "by {hostname} (Gatepost) with {protocol} id {queue_id};\r\n\t{date}\r\n");
        out.extend_from_slice(rest.as_bytes());
    }

    //= RFC 3848 section 1: the keywords are of extended SMTP.
    fn protocol(&self) -> &'static str {
        match (self.extended, self.tls.is_some(), self.authenticated) {
            (false, ..) => "SMTP",
            (true, false, false) => "ESMTP",
            (true, true, false) => "ESMTPS",
            (true, false, true) => "ESMTPA",
            (true, true, true) => "ESMTPSA",
        }
    }

    /// The client chooses this text: what has no place in a domain or address literal becomes `?`,
    /// so that it can neither end the field nor forge a clause or comment.
    fn write_hello(&self, out: &mut Vec<u8>) {
        let harmless =
            |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        out.extend(self.hello.iter().map(|&octet| if harmless(octet) { octet } else { b'?' }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(hello: &str, client: &str, extended: bool) -> String {
        let client = client.parse().expect("an address");
        let trace = Trace {
            hello: hello.as_bytes(),
            client,
            hostname: "mx.example.org",
            extended,
            tls: None,
            authenticated: false,
        };
        let mut out = Vec::new();
        trace.write_received(&mut out, "00abc", "Sat, 21 Nov 2026 09:36:24 +0000");
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn field() {
        assert_eq!(
            received("client.example", "192.0.2.1", true),
            "Received: from client.example ([192.0.2.1])\r\n\tby mx.example.org (Gatepost) with ESMTP id 00abc;\r\n\
             \tSat, 21 Nov 2026 09:36:24 +0000\r\n"
        );
        assert!(
            received("x", "2001:db8::1", false)
                .contains("([IPv6:2001:db8::1])\r\n\tby mx.example.org (Gatepost) with SMTP id")
        );
    }

    #[test]
    fn protocols() {
        let tls = Some(TlsParameters { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" });
        for (extended, tls, authenticated, wanted) in [
            (true, None, true, "\r\n\tby mx.example.org (Gatepost) with ESMTPA id"),
            (
                true,
                tls,
                false,
                "\r\n\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n\tby mx.example.org (Gatepost) with ESMTPS id",
            ),
            (true, tls, true, " with ESMTPSA id"),
            (false, tls, true, " with SMTP id"),
        ] {
            let client = [192, 0, 2, 1].into();
            let trace = Trace { hello: b"x", client, hostname: "mx.example.org", extended, tls, authenticated };
            let mut out = Vec::new();
            trace.write_received(&mut out, "00abc", "Sat, 21 Nov 2026 09:36:24 +0000");
            let field = String::from_utf8(out).expect("ASCII");
            assert!(field.contains(wanted), "{field}");
        }
    }

    #[test]
    fn hello_cannot_forge() {
        let field = received("a (b) by c; d\u{e9}", "192.0.2.1", true);
        assert!(field.starts_with("Received: from a??b??by?c??d?? (["), "{field}");
    }
}
