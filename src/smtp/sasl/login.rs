//! LOGIN ([MS-XLOGIN]): the client is asked for its name, then for its password.

use super::Password;

/// What the server asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// The first question, which is not put where the name came with AUTH (RFC 4954 section 4).
    Username,
    /// The second.
    Password,
}

impl Prompt {
    /// The text of the 334, base64 already.
    //= [MS-XLOGIN] 2.2
    pub const fn text(self) -> &'static str {
        match self {
            Prompt::Username => "VXNlcm5hbWU6",
            Prompt::Password => "UGFzc3dvcmQ6",
        }
    }

    /// What a client answers, before base64. It goes by the order of the questions, not by their
    /// texts: servers ask in other words, too.
    pub const fn answer<'c>(self, name: &'c str, password: &'c str) -> &'c str {
        match self {
            Prompt::Username => name,
            Prompt::Password => password,
        }
    }

    /// The question that follows.
    pub const fn next(self) -> Option<Prompt> {
        match self {
            Prompt::Username => Some(Prompt::Password),
            Prompt::Password => None,
        }
    }
}

/// The server's side when the name has come, and the password is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerExchange {
    name: Vec<u8>,
}

impl ServerExchange {
    /// After the name, which came with AUTH or as the answer to [`Prompt::Username`].
    pub fn new(name: &[u8]) -> Self {
        Self { name: name.to_vec() }
    }

    /// After the answer to [`Prompt::Password`]. `None` if name or password is empty, has a NUL, or
    /// is not UTF-8: refused now, and not when the name came, so that all refusals look the same.
    pub fn password(self, answer: &[u8]) -> Option<Password> {
        Password::new(&self.name, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::sasl::decode;

    #[test]
    fn prompts() {
        let asked = |prompt: Prompt| decode(prompt.text().as_bytes()).map(|text| text.to_vec());
        assert_eq!(asked(Prompt::Username).as_deref(), Some(&b"Username:"[..]));
        assert_eq!(asked(Prompt::Password).as_deref(), Some(&b"Password:"[..]));
    }

    #[test]
    fn a_client_answers_a_server() {
        let mut prompt = Some(Prompt::Username);
        let mut answers = Vec::new();
        while let Some(asked) = prompt {
            answers.push(asked.answer("tim", "tanstaaf"));
            prompt = asked.next();
        }
        assert_eq!(answers, ["tim", "tanstaaf"]);
        let given = ServerExchange::new(b"tim").password(b"tanstaaf").expect("valid");
        assert_eq!((given.name.as_str(), given.password.as_str()), ("tim", "tanstaaf"));
    }

    #[test]
    fn refused() {
        for (name, password) in [
            (&b""[..], &b"password"[..]),
            (b"tim", b""),
            (b"", b""),
            (b"t\0m", b"password"),
            (b"tim", b"pass\0word"),
            (b"t\xffm", b"password"),
            (b"tim", b"\xff"),
        ] {
            assert!(ServerExchange::new(name).password(password).is_none(), "{}", name.escape_ascii());
        }
    }
}
