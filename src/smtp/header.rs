//! The Received field this server puts before every message (RFC 5321 section 4.4).

use std::fmt::Write as _;
use std::net::IpAddr;

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
}

impl Trace<'_> {
    /// Appends the field, folded, with its CRLF. `date` is an RFC 5322 date-time.
    pub fn write_received(&self, out: &mut Vec<u8>, queue_id: &str, date: &str) {
        out.extend_from_slice(b"Received: from ");
        self.write_hello(out);
        let mut rest = String::with_capacity(160);
        let family = if self.client.is_ipv6() { "IPv6:" } else { "" };
        let protocol = if self.extended { "ESMTP" } else { "SMTP" };
        let _ = write!(
            rest,
            " ([{family}{}])\r\n\tby {} (Gatepost) with {protocol} id {queue_id};\r\n\t{date}\r\n",
            self.client, self.hostname
        );
        out.extend_from_slice(rest.as_bytes());
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
        let trace = Trace { hello: hello.as_bytes(), client, hostname: "mx.example.org", extended };
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
    fn hello_cannot_forge() {
        let field = received("a (b) by c; d\u{e9}", "192.0.2.1", true);
        assert!(field.starts_with("Received: from a??b??by?c??d?? (["), "{field}");
    }
}
