//! A transaction: the message to send, its commands, and what became of each recipient.

use super::capabilities::Capabilities;
use super::reply::Answer;
use crate::smtp::dsn::{Notify, Ret};
use crate::smtp::envelope::BodyType;
use std::fmt;
use std::io::Write as _;
use std::rc::Rc;

/// A message to be sent. Paths stand without angle brackets; parameters as they are to be written.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// The reverse-path; empty is the null reverse-path.
    pub reverse_path: &'a [u8],
    /// The content's octets: exactly these will be given to [`Session::body`](super::Session::body).
    pub octets: u64,
    /// `BODY=` as the client declared it.
    pub body_type: BodyType,
    /// Whether the content has octets above 127.
    pub eight_bit: bool,
    /// `RET=`.
    pub ret: Option<Ret>,
    /// `ENVID=`, xtext.
    pub envid: Option<&'a [u8]>,
    /// `AUTH=`, xtext or `<>`. Passed on to a next hop where this server has authenticated.
    pub auth: Option<&'a [u8]>,
    /// The recipients, in the order of their dispositions.
    pub recipients: &'a [Recipient<'a>],
}

/// A recipient of a message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'a> {
    /// The forward-path.
    pub path: &'a [u8],
    /// `NOTIFY=`.
    pub notify: Option<Notify>,
    /// `ORCPT=`, address type and xtext.
    pub orcpt: Option<&'a [u8]>,
}

/// Why a message cannot be sent to this next hop, now or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsendable {
    /// It has more octets than the next hop takes (RFC 1870): 5.3.4.
    TooLarge {
        /// The next hop's limit in octets.
        limit: u64,
    },
    /// It is declared 8BITMIME, needs it, and the next hop does not offer it (RFC 6152): 5.6.3.
    EightBit,
    /// It is declared BINARYMIME, and the next hop does not offer that (RFC 3030): 5.6.3.
    Binary,
}

impl Unsendable {
    /// The answer for the recipients: a refusal for good (RFC 3463: X.3.4 message too big, X.6.3
    /// conversion required but not supported).
    pub fn answer(&self) -> Answer {
        let (code, enhanced) = match self {
            Unsendable::TooLarge { .. } => (552, "5.3.4"),
            Unsendable::EightBit | Unsendable::Binary => (554, "5.6.3"),
        };
        Answer::new(code, format!("{enhanced} {self}").as_bytes())
    }
}

impl fmt::Display for Unsendable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsendable::TooLarge { limit } => write!(f, "the next hop takes no message over {limit} octets"),
            Unsendable::EightBit => f.write_str("the next hop does not offer 8BITMIME"),
            Unsendable::Binary => f.write_str("the next hop does not offer BINARYMIME"),
        }
    }
}

impl std::error::Error for Unsendable {}

/// What became of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The next hop has taken the message for it.
    Delivered,
    /// To be tried again later. The answer is a 4yz, or a 552 to RCPT.
    Deferred(Rc<Answer>),
    /// Refused for good.
    Failed(Rc<Answer>),
    /// Refused for the number of recipients, while others were delivered: to be sent again at once
    /// (RFC 5321 section 4.5.3.1.10). It cannot go on forever: each time somebody is delivered.
    TooMany(Rc<Answer>),
}

impl Transaction<'_> {
    /// Whether a next hop with these capabilities can take the message.
    pub(super) fn check(&self, offered: &Capabilities) -> Result<(), Unsendable> {
        if let Some(limit) = offered.size.filter(|&limit| self.octets > limit) {
            return Err(Unsendable::TooLarge { limit });
        }
        // RFC 6152 section 3: what was declared must not be sent on undeclared. What never was
        // declared is sent as it came: next hops take it, and a report would help nobody.
        if self.body_type == BodyType::EightBitMime && self.eight_bit && !offered.eight_bit_mime {
            return Err(Unsendable::EightBit);
        }
        // RFC 3030 section 3: it can only be sent in chunks, as it is.
        if self.body_type == BodyType::BinaryMime && !(offered.binary_mime && offered.chunking) {
            return Err(Unsendable::Binary);
        }
        Ok(())
    }

    /// Appends MAIL and a RCPT for each recipient.
    ///
    //= RFC 4954 section 5: AUTH= is for those who know who says it.
    pub(super) fn write(&self, offered: &Capabilities, logged_on: bool, out: &mut Vec<u8>) {
        write_path(out, b"MAIL FROM:<", self.reverse_path);
        if offered.size_declaration {
            // Writing to a Vec cannot fail.
            let _ = write!(out, " SIZE={}", self.octets);
        }
        if offered.eight_bit_mime && self.body_type == BodyType::EightBitMime {
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if self.body_type == BodyType::BinaryMime {
            out.extend_from_slice(b" BODY=BINARYMIME");
        }
        if offered.dsn {
            if let Some(ret) = self.ret {
                write_parameter(out, b" RET=", ret.as_str().as_bytes());
            }
            if let Some(envid) = self.envid {
                write_parameter(out, b" ENVID=", envid);
            }
        }
        if let Some(auth) = self.auth.filter(|_| logged_on) {
            write_parameter(out, b" AUTH=", auth);
        }
        out.extend_from_slice(b"\r\n");
        for recipient in self.recipients {
            write_path(out, b"RCPT TO:<", recipient.path);
            if offered.dsn {
                if let Some(notify) = recipient.notify {
                    out.extend_from_slice(b" NOTIFY=");
                    notify.write(out);
                }
                if let Some(orcpt) = recipient.orcpt {
                    write_parameter(out, b" ORCPT=", orcpt);
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn write_path(out: &mut Vec<u8>, command: &[u8], path: &[u8]) {
    write_parameter(out, command, path);
    out.push(b'>');
}

/// Whoever made the transaction has parsed its text; a line end in it would forge a command.
fn write_parameter(out: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    debug_assert!(!value.iter().any(u8::is_ascii_control), "a control character in a command");
    out.extend_from_slice(keyword);
    out.extend_from_slice(value);
}

/// Where a recipient stands.
#[derive(Debug)]
enum Standing {
    Unanswered,
    Accepted,
    Refused(Rc<Answer>),
}

/// What the next hop said of a transaction so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    mail_refusal: Option<Rc<Answer>>,
    recipients: Vec<Standing>,
}

impl Ledger {
    /// Starts a transaction.
    pub fn begin(&mut self, recipients: usize) {
        self.mail_refusal = None;
        self.recipients.clear();
        self.recipients.extend(std::iter::repeat_with(|| Standing::Unanswered).take(recipients));
    }

    /// MAIL was refused, and with it everybody.
    pub fn refuse_mail(&mut self, answer: Rc<Answer>) {
        self.mail_refusal = Some(answer);
    }

    /// This recipient was accepted, or refused with `refusal`.
    pub fn answer_recipient(&mut self, index: usize, refusal: Option<Rc<Answer>>) {
        if let Some(standing) = self.recipients.get_mut(index) {
            *standing = refusal.map_or(Standing::Accepted, Standing::Refused);
        }
    }

    /// Whether there is anybody to settle.
    pub fn is_open(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Whether MAIL was refused.
    pub fn is_mail_refused(&self) -> bool {
        self.mail_refusal.is_some()
    }

    /// How many recipients there are.
    pub fn recipient_count(&self) -> usize {
        self.recipients.len()
    }

    /// Whether there is anybody to send the content for.
    pub fn has_accepted(&self) -> bool {
        self.mail_refusal.is_none() && self.recipients.iter().any(|standing| matches!(standing, Standing::Accepted))
    }

    /// Ends the transaction. Without a `refusal` those accepted are delivered; with one, everybody
    /// who was not refused before gets it.
    pub fn settle(&mut self, refusal: Option<&Rc<Answer>>) -> Vec<Disposition> {
        let mail_refusal = self.mail_refusal.take();
        let standings = self.recipients.drain(..);
        let mut settled: Vec<Disposition> = standings
            .map(|standing| match (&mail_refusal, standing, refusal) {
                (Some(answer), _, _) => refused(answer),
                (None, Standing::Refused(answer), _) if matches!(answer.code, 452 | 552) => {
                    Disposition::TooMany(answer)
                }
                (None, Standing::Refused(answer), _) => refused(&answer),
                (None, _, Some(answer)) => refused(answer),
                (None, Standing::Accepted, None) => Disposition::Delivered,
                (None, Standing::Unanswered, None) => Disposition::Deferred(Rc::new(Answer::new(451, b"4.5.0"))),
            })
            .collect();
        if !settled.contains(&Disposition::Delivered) {
            for disposition in &mut settled {
                if let Disposition::TooMany(answer) = disposition {
                    *disposition = Disposition::Deferred(Rc::clone(answer));
                }
            }
        }
        settled
    }
}

fn refused(answer: &Rc<Answer>) -> Disposition {
    let answer = Rc::clone(answer);
    if answer.is_permanent() { Disposition::Failed(answer) } else { Disposition::Deferred(answer) }
}
