//! What each verb does, in the order of checks that CONFORMANCE states: [MS-OXSMTP] 3.2.5.

use super::{Hello, Input, Query, Session, State, Step};
use crate::limits::HELLO_MAX_OCTETS;
use crate::smtp::address::{Mailbox, Path};
use crate::smtp::command::{self, Command, Number, PathError, Verb};
use crate::smtp::envelope::{BodyType, Envelope};
use crate::smtp::reply::Reply;
use std::io::Write as _;

/// The parameters of MAIL.
#[derive(Default)]
struct MailParameters {
    size: Option<Number>,
    body_type: Option<BodyType>,
}

impl Session {
    pub(super) fn handle_command<'b>(&mut self, command: Command<'b>) -> Option<Step<'b>> {
        let arguments = command.arguments;
        match command.verb {
            Verb::Mail => return self.mail(arguments),
            Verb::Rcpt => return self.rcpt(arguments),
            Verb::Data => self.data(arguments),
            Verb::Ehlo => self.hello(arguments, true),
            Verb::Helo => self.hello(arguments, false),
            Verb::Rset if arguments.is_empty() => {
                self.reset();
                self.reply(Reply::Resetting);
            }
            Verb::Quit if arguments.is_empty() => self.reply(Reply::Closing),
            Verb::Vrfy if !arguments.is_empty() => self.reply(Reply::CannotVerify),
            Verb::Rset | Verb::Quit | Verb::Vrfy => self.reply(Reply::InvalidArguments),
            Verb::Noop => self.reply(Reply::Ok),
            Verb::Help => self.reply(Reply::Help),
            Verb::Expn => self.reply(Reply::NotImplemented),
            Verb::Bdat => self.bdat(arguments),
            Verb::Auth | Verb::StartTls if self.hello.is_none() => self.reply(Reply::HelloFirst),
            Verb::Auth | Verb::StartTls => self.reply(Reply::NotImplemented),
            Verb::Unknown => self.reply(Reply::UnrecognizedCommand),
        }
        None
    }

    /// Back to no transaction, by RSET, EHLO or HELO (RFC 5321 section 4.1.4).
    fn reset(&mut self) {
        self.end_transaction();
        self.mail_refused = false;
        self.recipients_refused = false;
    }

    fn hello(&mut self, name: &[u8], extended: bool) {
        let valid =
            !name.is_empty() && name.len() <= HELLO_MAX_OCTETS && name.iter().all(|&octet| matches!(octet, 32..=126));
        if !valid {
            return self.reply(Reply::InvalidHelloDomain);
        }
        self.reset();
        self.hello = Some(Hello { extended, name: name.into() });
        let dash = if extended { '-' } else { ' ' };
        // Writing to a Vec cannot fail.
        let _ = write!(self.replies, "250{dash}{} Hello [{}]\r\n", self.profile.hostname, self.client);
        if extended {
            // RFC 1870 section 4: 0 says that no limit is in force.
            let size = self.profile.message_size_max.unwrap_or(0);
            let _ = write!(
                self.replies,
                "250-SIZE {size}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"
            );
        }
    }

    fn mail<'b>(&mut self, arguments: &'b [u8]) -> Option<Step<'b>> {
        match self.check_mail(arguments) {
            Ok((path, body_type)) => {
                let mut envelope = std::mem::take(&mut self.spare);
                let mailbox = match &path {
                    Path::Null => None,
                    Path::Mailbox(mailbox) => Some(mailbox),
                };
                envelope.begin(mailbox, self.profile.default_domain.as_deref(), body_type);
                self.state = State::SenderPending(envelope);
                Some(Step::Decide(Query::Sender))
            }
            // A second MAIL leaves the transaction, and its count, as they are.
            Err(reply @ Reply::SenderAlreadySpecified) => {
                self.reply(reply);
                None
            }
            Err(reply) => {
                self.refuse_mail(reply);
                None
            }
        }
    }

    fn check_mail<'b>(&self, arguments: &'b [u8]) -> Result<(Path<'b>, BodyType), Reply> {
        if self.hello.is_none() {
            return Err(Reply::HelloFirst);
        }
        if self.in_transaction() {
            return Err(Reply::SenderAlreadySpecified);
        }
        let (path, rest) = command::path_argument(arguments, b"FROM:").map_err(|error| match error {
            PathError::Keyword => Reply::UnrecognizedParameter,
            PathError::Address => Reply::InvalidSender,
        })?;
        let parameters = mail_parameters(rest).ok_or(Reply::InvalidArguments)?;
        if self.resources_short {
            return Err(Reply::InsufficientResources);
        }
        //= [MS-OXSMTP] 3.2.7 MessageSizeExceeded; what no u64 holds is too large without a limit too.
        match parameters.size {
            None => {}
            Some(Number::Value(size)) if self.profile.message_size_max.is_none_or(|max| size <= max) => {}
            Some(Number::Value(_) | Number::Overflow) => return Err(Reply::MessageTooLarge),
        }
        if let Path::Mailbox(mailbox) = &path {
            self.check_qualified(mailbox)?;
        }
        Ok((path, parameters.body_type.unwrap_or_default()))
    }

    /// C11: without a domain an address can only be qualified with a configured one.
    fn check_qualified(&self, mailbox: &Mailbox<'_>) -> Result<(), Reply> {
        if mailbox.domain().is_none() && self.profile.default_domain.is_none() {
            return Err(Reply::CannotQualify);
        }
        Ok(())
    }

    pub(super) fn refuse_mail(&mut self, reply: Reply) {
        self.mail_refused = true;
        self.reply(reply);
    }

    fn rcpt<'b>(&mut self, arguments: &'b [u8]) -> Option<Step<'b>> {
        if self.hello.is_none() {
            self.reply(Reply::HelloFirst);
            return None;
        }
        if !self.in_transaction() {
            self.reply(self.need_mail());
            return None;
        }
        let (State::Mail(mut envelope) | State::Recipients(mut envelope)) = self.take_state() else { return None };
        match self.check_rcpt(arguments) {
            Ok(mailbox) => {
                let added = envelope.add_recipient(&mailbox, self.qualification(&mailbox));
                self.state = State::RecipientPending { envelope, added };
                Some(Step::Decide(Query::Recipient(mailbox)))
            }
            Err(reply) => {
                self.refuse_recipient(envelope, reply);
                None
            }
        }
    }

    fn check_rcpt<'b>(&self, arguments: &'b [u8]) -> Result<Mailbox<'b>, Reply> {
        let (path, rest) = command::path_argument(arguments, b"TO:").map_err(|error| match error {
            PathError::Keyword => Reply::UnrecognizedParameter,
            PathError::Address => Reply::InvalidRecipient,
        })?;
        let Path::Mailbox(mailbox) = path else { return Err(Reply::InvalidRecipient) };
        // No parameter of RCPT is offered.
        if command::parameters(rest).next().is_some() {
            return Err(Reply::InvalidArguments);
        }
        if !mailbox.is_postmaster() {
            self.check_qualified(&mailbox)?;
        }
        Ok(mailbox)
    }

    /// The domain that completes an unqualified recipient; a bare Postmaster stays as it is.
    fn qualification(&self, mailbox: &Mailbox<'_>) -> Option<&str> {
        if mailbox.is_postmaster() { None } else { self.profile.default_domain.as_deref() }
    }

    /// Refuses a recipient; the transaction goes on with those accepted.
    pub(super) fn refuse_recipient(&mut self, envelope: Envelope, reply: Reply) {
        self.recipients_refused = true;
        self.state = if envelope.recipient_count() == 0 { State::Mail(envelope) } else { State::Recipients(envelope) };
        self.reply(reply);
    }

    fn data(&mut self, arguments: &[u8]) {
        if self.hello.is_none() {
            return self.reply(Reply::HelloFirst);
        }
        if !arguments.is_empty() {
            return self.reply(Reply::InvalidArguments);
        }
        match self.take_state() {
            State::Recipients(envelope) => {
                self.state = State::Data(envelope, super::Content::default());
                self.reply(Reply::StartMail);
            }
            State::Mail(envelope) => {
                self.state = State::Mail(envelope);
                self.reply(if self.recipients_refused {
                    Reply::NeedRecipientAfterRefusal
                } else {
                    Reply::NeedRecipient
                });
            }
            state => {
                self.state = state;
                self.reply(self.need_mail());
            }
        }
    }

    fn need_mail(&self) -> Reply {
        if self.mail_refused { Reply::NeedMailAfterRefusal } else { Reply::NeedMail }
    }

    /// CHUNKING is not offered. A chunk's octets are consumed all the same: they are a message,
    /// and must never be read as commands.
    fn bdat(&mut self, arguments: &[u8]) {
        match command::chunk(arguments) {
            None => self.reply(Reply::InvalidChunk),
            Some((0, _)) => self.reply(Reply::NotImplemented),
            Some((remaining, _)) => self.input = Input::Chunk { remaining, reply: Reply::NotImplemented },
        }
    }
}

/// `None`: an unknown, malformed or doubled parameter (C7).
fn mail_parameters(input: &[u8]) -> Option<MailParameters> {
    let mut found = MailParameters::default();
    for parameter in command::parameters(input) {
        let parameter = parameter?;
        if parameter.keyword.eq_ignore_ascii_case(b"SIZE") {
            let size = command::number(parameter.value?)?;
            if found.size.replace(size).is_some() {
                return None;
            }
        } else if parameter.keyword.eq_ignore_ascii_case(b"BODY") {
            let body_type = match parameter.value? {
                value if value.eq_ignore_ascii_case(b"7BIT") => BodyType::SevenBit,
                value if value.eq_ignore_ascii_case(b"8BITMIME") => BodyType::EightBitMime,
                _ => return None,
            };
            if found.body_type.replace(body_type).is_some() {
                return None;
            }
        } else {
            return None;
        }
    }
    Some(found)
}
