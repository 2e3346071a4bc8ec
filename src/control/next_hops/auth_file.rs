//! The file with name and password for AUTH at a next hop.
//!
//! `NAME:PASSWORD` in one line; or NAME in the first and PASSWORD in the second, for names with a
//! colon. Nobody but its owner may have any right to it.

use crate::limits::AUTH_FILE_MAX_OCTETS;
use crate::smtp::client::Credentials;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Reads it. What is said on failure never has anything of its content.
pub fn read(path: &Path) -> Result<Credentials, String> {
    let name = path.display();
    let failed = |error: io::Error| format!("auth-file={name}: {error}");
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("auth-file={name}: it is not a file"));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "auth-file={name}: its mode is {mode:04o}, others could read or change it: chmod 600 {name}"
        ));
    }
    // With room for all of it, none is left behind by a buffer that grows.
    let mut content = Zeroizing::new(Vec::with_capacity(AUTH_FILE_MAX_OCTETS + 1));
    file.take(AUTH_FILE_MAX_OCTETS as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() > AUTH_FILE_MAX_OCTETS {
        return Err(format!("auth-file={name}: it has more than {AUTH_FILE_MAX_OCTETS} octets"));
    }
    let expected =
        || format!("auth-file={name}: expected one line NAME:PASSWORD, or NAME and below it PASSWORD, in UTF-8");
    std::str::from_utf8(&content).ok().and_then(parse).ok_or_else(expected)
}

fn parse(content: &str) -> Option<Credentials> {
    let mut lines = content.lines();
    let (first, second) = (lines.next()?, lines.next());
    if lines.next().is_some() {
        return None;
    }
    let (name, password) = second.map_or_else(|| first.split_once(':'), |password| Some((first, password)))?;
    Credentials::new(name, password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn contents() {
        for (content, name) in [
            ("tim:secret", "tim"),
            ("tim:secret\n", "tim"),
            ("tim:secret\r\n", "tim"),
            ("tim: s:e cret ", "tim"),
            ("EXAMPLE\\tim:secret", "EXAMPLE\\tim"),
            ("urn:tim\nsecret\n", "urn:tim"),
            ("tim\nsec:ret", "tim"),
            ("Jürgen:pässword", "Jürgen"),
        ] {
            let credentials = parse(content).unwrap_or_else(|| panic!("{content:?}"));
            assert_eq!(format!("{credentials:?}"), format!("Credentials {{ name: {name:?}, .. }}"));
        }
        for malformed in [
            "",
            "\n",
            "tim",
            "tim\n",
            ":secret",
            "tim:",
            "tim\n\n",
            "\nsecret",
            "tim\nsecret\nx",
            "tim:sec\0ret",
            "t\0m:secret",
        ] {
            assert!(parse(malformed).is_none(), "{malformed:?}");
        }
    }

    #[test]
    fn files() {
        let directory = std::env::temp_dir().join(format!("gatepost-auth-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let path = directory.join("auth");
        let with_mode = |content: &[u8], mode| {
            fs::write(&path, content).expect("space");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            read(&path).map(drop)
        };
        assert_eq!(with_mode(b"tim:secret\n", 0o600), Ok(()));
        assert_eq!(with_mode(b"tim:secret\n", 0o400), Ok(()));
        for mode in [0o644, 0o640, 0o604, 0o620, 0o610, 0o601, 0o602] {
            let error = with_mode(b"tim:secret\n", mode).expect_err("others may");
            assert!(error.contains(&format!("its mode is {mode:04o}")), "{error}");
            assert!(error.ends_with(&format!("chmod 600 {}", path.display())), "{error}");
        }
        for content in [&b""[..], b"secret\n", b"tim:\xff", b"secret\nsecret\nsecret"] {
            let error = with_mode(content, 0o600).expect_err("malformed");
            assert!(error.contains("NAME:PASSWORD") && !error.contains("secret"), "{error}");
        }
        let long = [b"tim:".as_slice(), &[b'x'; AUTH_FILE_MAX_OCTETS]].concat();
        assert!(with_mode(&long, 0o600).expect_err("too long").contains("more than"));
        assert!(read(&directory).expect_err("a directory").contains("it is not a file"));
        fs::remove_dir_all(&directory).expect("ours");
        assert!(read(&path).expect_err("it is not there").starts_with(&format!("auth-file={}: ", path.display())));
    }
}
