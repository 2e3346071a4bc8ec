//! How a session fails: where, and why.

use super::reply::Answer;
use crate::smtp::sasl::Mechanism;
use std::fmt;
use std::rc::Rc;

/// What the session was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for the greeting.
    Greeting,
    /// Waiting for the reply to EHLO or HELO.
    Hello,
    /// Waiting for the reply to STARTTLS.
    StartTls,
    /// In the TLS handshake.
    Handshake,
    /// Waiting for a reply in an AUTH exchange of this mechanism.
    Auth(Mechanism),
    /// Between transactions.
    Idle,
    /// Waiting for the reply to MAIL, or to the RSET before it.
    Mail,
    /// Waiting for the reply to a RCPT.
    Rcpt,
    /// Waiting for the reply to DATA.
    Data,
    /// Sending the content.
    Body,
    /// All content was handed out, and its reply is awaited.
    EndOfData,
    /// Waiting for the reply to QUIT.
    Quit,
}

impl Stage {
    /// The stage's name in messages and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Greeting => "greeting",
            Stage::Hello => "EHLO",
            Stage::StartTls => "STARTTLS",
            Stage::Handshake => "TLS handshake",
            Stage::Auth(Mechanism::Ntlm) => "AUTH NTLM",
            Stage::Auth(Mechanism::Login) => "AUTH LOGIN",
            Stage::Auth(Mechanism::Plain) => "AUTH PLAIN",
            Stage::Idle => "idle",
            Stage::Mail => "MAIL",
            Stage::Rcpt => "RCPT",
            Stage::Data => "DATA",
            Stage::Body => "content",
            Stage::EndOfData => "end of data",
            Stage::Quit => "QUIT",
        }
    }
}

/// Why the session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The next hop kept silent, or took nothing, for too long.
    Timeout,
    /// The next hop closed or reset the connection.
    Closed,
    /// What came is no reply, no reply to what was said, or a reply to nothing.
    Garbage,
    /// The greeting or the hello was refused; a 421; or an error reply where none was due.
    Refused(Rc<Answer>),
    /// STARTTLS is not offered, and nothing may be sent without it.
    NoTls,
    /// No mechanism of AUTH is offered that may be used.
    NoMechanism,
    /// A challenge in an AUTH exchange is none of its mechanism.
    Challenge,
    /// Our own fault: BDAT announced another number of octets than there were.
    Miscounted,
}

/// The end of a session that was not its regular one: the connection must be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the session was doing.
    pub stage: Stage,
    /// Why it ended.
    pub cause: Cause,
}

impl Failure {
    /// Whether no transaction was open: this says something about the next hop, and nothing about
    /// a message.
    pub fn is_before_transaction(&self) -> bool {
        matches!(
            self.stage,
            Stage::Greeting | Stage::Hello | Stage::StartTls | Stage::Handshake | Stage::Auth(_) | Stage::Idle
        )
    }

    /// Whether the next hop refused this connection, and may take another one later: not where it
    /// refuses who logs on.
    pub fn is_refusal_for_now(&self) -> bool {
        match (&self.cause, self.stage) {
            (Cause::Refused(answer), Stage::Auth(_)) => !answer.is_permanent(),
            (cause, _) => matches!(cause, Cause::Refused(_)),
        }
    }

    /// Whether the next hop may have taken the message all the same: it had been handed all the
    /// content, and its reply is missing (RFC 1047). Sending again may make a duplicate; not
    /// sending again may lose the message.
    pub fn maybe_delivered(&self) -> bool {
        self.stage == Stage::EndOfData && !matches!(self.cause, Cause::Refused(_))
    }

    /// The answer for recipients whose fate this failure left open: a 4yz, the next hop's own
    /// words where it said one.
    pub(super) fn answer(&self) -> Rc<Answer> {
        // RFC 3463: X.4.2 bad connection (section 3.5; a timeout inside a transaction too, 4.4.1
        // is for hosts that do not answer at all), X.5.0 other protocol status, X.3.0 other system
        // status.
        let enhanced = match &self.cause {
            Cause::Refused(answer) if !answer.is_permanent() => return Rc::clone(answer),
            Cause::Timeout | Cause::Closed | Cause::Refused(_) | Cause::NoTls | Cause::NoMechanism => "4.4.2",
            Cause::Garbage | Cause::Challenge => "4.5.0",
            Cause::Miscounted => "4.3.0",
        };
        Rc::new(Answer::new(451, format!("{enhanced} Next hop: {self}").as_bytes()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage.as_str();
        match &self.cause {
            Cause::Timeout => write!(f, "timed out at {stage}"),
            Cause::Closed => write!(f, "connection lost at {stage}"),
            Cause::Garbage => write!(f, "senseless reply at {stage}"),
            Cause::Refused(answer) => write!(f, "refused at {stage}: {answer}"),
            Cause::NoTls => f.write_str("STARTTLS is required and not offered"),
            Cause::NoMechanism => f.write_str("no mechanism of AUTH is offered that may be used"),
            Cause::Challenge => write!(f, "senseless challenge at {stage}"),
            Cause::Miscounted => write!(f, "content of another size than announced at {stage}"),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_is_deferred() {
        let answer = |cause| Failure { stage: Stage::Rcpt, cause }.answer().to_string();
        assert_eq!(answer(Cause::Timeout), "451 4.4.2 Next hop: timed out at RCPT");
        assert_eq!(answer(Cause::Closed), "451 4.4.2 Next hop: connection lost at RCPT");
        assert_eq!(answer(Cause::Garbage), "451 4.5.0 Next hop: senseless reply at RCPT");
        let refused = |code| Cause::Refused(Rc::new(Answer::new(code, b"x")));
        assert_eq!(answer(refused(421)), "421 x");
        assert_eq!(answer(refused(554)), "451 4.4.2 Next hop: refused at RCPT: 554 x");
    }

    #[test]
    fn only_a_missing_final_reply_leaves_doubt() {
        let refused = Cause::Refused(Rc::new(Answer::new(421, b"x")));
        for stage in [Stage::Greeting, Stage::Idle, Stage::Mail, Stage::Data, Stage::Body, Stage::EndOfData] {
            let doubt = |cause| Failure { stage, cause }.maybe_delivered();
            for cause in [Cause::Timeout, Cause::Closed, Cause::Garbage] {
                assert_eq!(doubt(cause), stage == Stage::EndOfData);
            }
            assert!(!doubt(refused.clone()));
        }
    }
}
