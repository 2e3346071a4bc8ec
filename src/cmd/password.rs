//! The password that is typed or piped into a command: the first line of standard input.
//!
//! On a terminal it is asked for twice, and not shown; the terminal is left as it was, also after
//! Ctrl-C, which is read here as a character that ends the line. (SIGTERM ends the process at once,
//! and leaves the terminal to the shell.)

use crate::control::preflight::{ExitCode, Failure};
use crate::limits::PASSWORD_MAX_OCTETS;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::str;
use zeroize::Zeroizing;

/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// Reads a password for `name`; UTF-8, without the line end.
pub fn read(name: &str) -> Result<Zeroizing<String>, Failure> {
    let failed = |error: io::Error| Failure::new(ExitCode::IoError, format!("cannot read the password: {error}"));
    let stdin = io::stdin();
    // Not through the standard library's buffer, which keeps what it has read.
    let mut input = File::from(stdin.as_fd().try_clone_to_owned().map_err(failed)?);
    if !isatty(&stdin) {
        return check(&read_line(&mut input).map_err(failed)?);
    }
    let silence = Silence::new(stdin.as_fd()).map_err(failed)?;
    let mut ask = |question: &str| {
        eprint!("{question}: ");
        let line = read_line(&mut input).map_err(failed)?;
        if line.contains(&INTERRUPT) {
            eprintln!();
            return Err(Failure::new(ExitCode::TempFail, "interrupted: nothing is changed"));
        }
        check(&line)
    };
    let password = ask(&format!("Password for {name}"))?;
    let again = ask("Once more")?;
    drop(silence);
    if password != again {
        return Err(Failure::new(ExitCode::Usage, "the two passwords are not the same; nothing is changed"));
    }
    Ok(password)
}

/// The octets up to the end of the line or of the input; of a longer line, more than a password has.
fn read_line(input: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let room = PASSWORD_MAX_OCTETS + 2;
    let mut line = Zeroizing::new(Vec::with_capacity(room));
    let mut octet = Zeroizing::new([0]);
    while line.len() < room {
        match input.read(octet.as_mut()) {
            Ok(0) => break,
            Ok(_) if *octet == *b"\n" => break,
            Ok(_) => line.extend_from_slice(octet.as_ref()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if line.ends_with(&[INTERRUPT]) {
            break;
        }
    }
    if line.ends_with(b"\r") {
        line.pop();
    }
    Ok(line)
}

fn check(line: &[u8]) -> Result<Zeroizing<String>, Failure> {
    let refused = |message: String| Err(Failure::new(ExitCode::Usage, message));
    if line.is_empty() {
        return refused("the password is empty: give it as the first line of standard input".to_owned());
    }
    if line.len() > PASSWORD_MAX_OCTETS {
        return refused(format!("the password is longer than {PASSWORD_MAX_OCTETS} octets; choose a shorter one"));
    }
    match str::from_utf8(line) {
        Err(_) => refused("the password is not UTF-8: clients could not send it; choose another".to_owned()),
        Ok(text) if text.contains('\0') => {
            refused("the password has a NUL in it: clients could not send it; choose another".to_owned())
        }
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
    }
}

/// A terminal that shows nothing but line ends, until this drops.
struct Silence<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
        // Ctrl-C ends the line, as Enter does.
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        // What was typed before the question was shown, and is no answer to it.
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Silence { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(mut input: &[u8]) -> Result<String, String> {
        let line = read_line(&mut input).expect("a slice");
        check(&line).map(|text| text.as_str().to_owned()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_first_line() {
        for (input, password) in [
            (&b"secret\n"[..], "secret"),
            (b"secret", "secret"),
            (b"secret\r\n", "secret"),
            (b"a b\rc \nmore\n", "a b\rc "),
            ("pässwörd\n".as_bytes(), "pässwörd"),
        ] {
            assert_eq!(read_from(input).as_deref(), Ok(password));
        }
        for longest in [PASSWORD_MAX_OCTETS - 1, PASSWORD_MAX_OCTETS] {
            for end in ["", "\n", "\r\n"] {
                let password = "x".repeat(longest);
                assert_eq!(read_from(format!("{password}{end}").as_bytes()), Ok(password));
            }
        }
    }

    #[test]
    fn refusals_do_not_show_it() {
        let too_long = "x".repeat(PASSWORD_MAX_OCTETS + 1);
        for (input, word) in [
            (&b""[..], "empty"),
            (b"\nsecret", "empty"),
            (b"\r\n", "empty"),
            (too_long.as_bytes(), "longer than 256"),
            (b"secr\xffet\n", "not UTF-8"),
            (b"secr\0et\n", "NUL"),
        ] {
            let error = read_from(input).expect_err(word);
            assert!(error.contains(word) && !error.contains("secr") && !error.contains("xx"), "{error}");
        }
    }
}
