//! The one table of which command is legal in which state of the dialogue ([MS-OXSMTP] 4.0 3.2.5,
//! RFC 5321 section 4.1.4, RFC 3030 section 2).

use crate::smtp::command::Verb;
use crate::smtp::reply::Reply::{
    self, BadSequence, BadSequenceAfterFailure, HelloFirst, NeedMail, NeedRecipient, SenderAlreadySpecified,
};

/// A state in which commands are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Neither EHLO nor HELO was accepted.
    Connected,
    /// No transaction.
    Ready,
    /// MAIL was accepted.
    Mail,
    /// And a recipient.
    Recipients,
    /// And a chunk of the message.
    Chunks,
    /// A chunk was refused (CONFORMANCE G4).
    ChunkFailed,
}

const PHASES: usize = Phase::ChunkFailed as usize + 1;

/// `None`: the command may act. What is not listed may always.
const fn row(verb: Verb) -> [Option<Reply>; PHASES] {
    const OK: Option<Reply> = None;
    const HELLO: Option<Reply> = Some(HelloFirst);
    const MAIL: Option<Reply> = Some(NeedMail);
    const RCPT: Option<Reply> = Some(NeedRecipient);
    const TWICE: Option<Reply> = Some(SenderAlreadySpecified);
    const BAD: Option<Reply> = Some(BadSequence);
    const FAIL: Option<Reply> = Some(BadSequenceAfterFailure);
    match verb {
        //                  Connected  Ready  Mail   Recipients  Chunks  ChunkFailed
        //= [MS-OXSMTP] 4.0 3.2.5 MAIL: C1, C4, C2
        Verb::Mail => [HELLO, OK, TWICE, TWICE, BAD, BAD],
        //= [MS-OXSMTP] 4.0 3.2.5 RCPT: C12, need-mail, C13
        Verb::Rcpt => [HELLO, MAIL, OK, OK, BAD, FAIL],
        //= RFC 5321 section 4.1.4: DATA
        Verb::Data => [HELLO, MAIL, RCPT, OK, BAD, FAIL],
        //= RFC 3030 section 2: BDAT
        Verb::Bdat => [HELLO, MAIL, RCPT, OK, OK, FAIL],
        //= RFC 4954 section 4, RFC 3207 section 4: not inside a transaction
        Verb::Auth | Verb::StartTls => [HELLO, OK, BAD, BAD, BAD, BAD],
        Verb::Ehlo
        | Verb::Helo
        | Verb::Rset
        | Verb::Noop
        | Verb::Vrfy
        | Verb::Expn
        | Verb::Help
        | Verb::Quit
        | Verb::Xexch50
        | Verb::Unknown => [OK; PHASES],
    }
}

/// The reply to a command that may not act in this state.
pub const fn refusal(verb: Verb, phase: Phase) -> Option<Reply> {
    row(verb)[phase as usize]
}
