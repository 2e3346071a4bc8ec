//! PLAIN (RFC 4616): one message of the client, with name and password.

use super::Password;

/// Reads `[authzid] NUL authcid NUL passwd`. `None` if it is not that, or if who authenticates wants
/// to act for another: nobody may.
//= RFC 4616 section 2
pub fn parse(message: &[u8]) -> Option<Password> {
    let mut parts = message.split(|&octet| octet == 0);
    let (authzid, authcid, passwd) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !(authzid.is_empty() || authzid == authcid) {
        return None;
    }
    Password::new(authcid, passwd)
}

/// Appends the message of a client that acts for itself. Neither part may have a NUL.
pub fn write(name: &str, password: &str, out: &mut Vec<u8>) {
    for part in [name, password] {
        out.push(0);
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(message: &[u8]) -> Option<(String, String)> {
        parse(message).map(|given| (given.name, given.password.to_string()))
    }

    #[test]
    fn messages() {
        let tim = Some(("tim".to_owned(), "tanstaaftanstaaf".to_owned()));
        // RFC 4616 section 4, the first example.
        assert_eq!(parsed(b"\0tim\0tanstaaftanstaaf"), tim);
        assert_eq!(parsed(b"tim\0tim\0tanstaaftanstaaf"), tim);
        assert_eq!(parsed("\0Jürgen\0 p ä ".as_bytes()), Some(("Jürgen".to_owned(), " p ä ".to_owned())));
        let mut written = Vec::new();
        write("tim", "tanstaaftanstaaf", &mut written);
        assert_eq!(written, b"\0tim\0tanstaaftanstaaf");
    }

    #[test]
    fn refused() {
        for message in [
            &b""[..],
            b"\0",
            b"\0\0",
            b"tim",
            b"\0tim",
            b"\0tim\0",
            b"\0\0password",
            b"tim\0password",
            b"\0tim\0password\0",
            b"\0tim\0pass\0word",
            b"\0\0tim\0password",
            // The second example: to act for another.
            b"Ursel\0Kurt\0xipj3plmq",
            b"TIM\0tim\0password",
            b"tim\0\0password",
            b"\0t\xffm\0password",
            b"\0tim\0p\xe4",
        ] {
            assert_eq!(parsed(message), None, "{}", message.escape_ascii());
        }
    }
}
