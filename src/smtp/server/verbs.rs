//! What each verb does, in the order of checks that CONFORMANCE states: [MS-OXSMTP] 3.2.5.

use super::{Hello, Input, Query, Session, State, Step};
use crate::limits::HELLO_MAX_OCTETS;
use crate::smtp::address::{Mailbox, Path};
use crate::smtp::command::{self, Command, Number, PathError, Verb};
use crate::smtp::dsn::{self, Notify, Ret};
use crate::smtp::envelope::{BodyType, Envelope, RecipientParameters, SenderParameters};
use crate::smtp::reply::Reply;
use std::io::Write as _;

/// The parameters of MAIL.
#[derive(Default)]
struct MailParameters<'b> {
    size: Option<Number>,
    body_type: Option<BodyType>,
    ret: Option<Ret>,
    envid: Option<&'b [u8]>,
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
                "250-SIZE {size}\r\n250-PIPELINING\r\n250-DSN\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"
            );
        }
    }

    fn mail<'b>(&mut self, arguments: &'b [u8]) -> Option<Step<'b>> {
        match self.check_mail(arguments) {
            Ok((path, parameters)) => {
                let mut envelope = std::mem::take(&mut self.spare);
                let mailbox = match &path {
                    Path::Null => None,
                    Path::Mailbox(mailbox) => Some(mailbox),
                };
                envelope.begin(mailbox, self.profile.default_domain.as_deref(), parameters);
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

    fn check_mail<'b>(&self, arguments: &'b [u8]) -> Result<(Path<'b>, SenderParameters<'b>), Reply> {
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
        let MailParameters { body_type, ret, envid, .. } = parameters;
        Ok((path, SenderParameters { body_type: body_type.unwrap_or_default(), ret, envid }))
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
            Ok((mailbox, parameters)) => {
                let added = envelope.add_recipient(&mailbox, self.qualification(&mailbox), parameters);
                self.state = State::RecipientPending { envelope, added };
                Some(Step::Decide(Query::Recipient(mailbox)))
            }
            Err(reply) => {
                self.refuse_recipient(envelope, reply);
                None
            }
        }
    }

    fn check_rcpt<'b>(&self, arguments: &'b [u8]) -> Result<(Mailbox<'b>, RecipientParameters<'b>), Reply> {
        let (path, rest) = command::path_argument(arguments, b"TO:").map_err(|error| match error {
            PathError::Keyword => Reply::UnrecognizedParameter,
            PathError::Address => Reply::InvalidRecipient,
        })?;
        let Path::Mailbox(mailbox) = path else { return Err(Reply::InvalidRecipient) };
        let parameters = recipient_parameters(rest).ok_or(Reply::InvalidArguments)?;
        if !mailbox.is_postmaster() {
            self.check_qualified(&mailbox)?;
        }
        Ok((mailbox, parameters))
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

/// The parameters of MAIL. `None`: one is unknown, malformed or doubled (C7).
fn mail_parameters(input: &[u8]) -> Option<MailParameters<'_>> {
    let mut found = MailParameters::default();
    for parameter in command::parameters(input) {
        let parameter = parameter?;
        let value = parameter.value?;
        let is = |keyword: &[u8]| parameter.keyword.eq_ignore_ascii_case(keyword);
        if is(b"SIZE") {
            once(&mut found.size, command::number(value))?;
        } else if is(b"BODY") {
            once(&mut found.body_type, body_type(value))?;
        } else if is(b"RET") {
            once(&mut found.ret, Ret::parse(value))?;
        } else if is(b"ENVID") {
            once(&mut found.envid, dsn::is_envid(value).then_some(value))?;
        } else {
            return None;
        }
    }
    Some(found)
}

fn body_type(value: &[u8]) -> Option<BodyType> {
    if value.eq_ignore_ascii_case(b"7BIT") {
        Some(BodyType::SevenBit)
    } else if value.eq_ignore_ascii_case(b"8BITMIME") {
        Some(BodyType::EightBitMime)
    } else {
        None
    }
}

/// The parameters of RCPT. `None`: one is unknown, malformed or doubled (C7).
fn recipient_parameters(input: &[u8]) -> Option<RecipientParameters<'_>> {
    let mut found = RecipientParameters::default();
    for parameter in command::parameters(input) {
        let parameter = parameter?;
        let value = parameter.value?;
        if parameter.keyword.eq_ignore_ascii_case(b"NOTIFY") {
            once(&mut found.notify, Notify::parse(value))?;
        } else if parameter.keyword.eq_ignore_ascii_case(b"ORCPT") {
            once(&mut found.orcpt, dsn::is_orcpt(value).then_some(value))?;
        } else {
            return None;
        }
    }
    Some(found)
}

/// Notes a parameter's value. `None`: it is malformed, or the parameter was there before.
fn once<T>(slot: &mut Option<T>, value: Option<T>) -> Option<()> {
    slot.replace(value?).is_none().then_some(())
}
