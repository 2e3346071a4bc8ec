//! What each verb does, in the order of checks that CONFORMANCE states: [MS-OXSMTP] 4.0 3.2.5.

use super::content::Content;
use super::{Chunk, Extensions, Hello, Input, Query, Role, Session, State, Step, legality};
use crate::limits::{AUTH_PARAMETER_MAX_OCTETS, HELLO_MAX_OCTETS};
use crate::smtp::address::{self, Mailbox, Path};
use crate::smtp::command::{self, Command, Number, PathError, Verb};
use crate::smtp::dsn::{self, Notify, Ret};
use crate::smtp::envelope::{BodyType, RecipientParameters, SenderParameters};
use crate::smtp::reply::Reply;
use crate::smtp::sasl::Mechanisms;
use std::io::Write as _;

/// The keyword of RFC 3207.
const STARTTLS: &str = "STARTTLS";
/// That of RFC 4954; its mechanisms stand behind it.
const AUTH: &str = "AUTH";

/// AUTH= of a message that nobody has submitted, or nobody who is known.
const NOBODY: &[u8] = b"<>";

/// The parameters of MAIL.
#[derive(Default)]
struct MailParameters<'b> {
    size: Option<Number>,
    body_type: Option<BodyType>,
    ret: Option<Ret>,
    envid: Option<&'b [u8]>,
    auth: Option<&'b [u8]>,
}

impl Session {
    pub(super) fn handle_command<'b>(&mut self, command: Command<'b>) -> Option<Step<'b>> {
        let Command { verb, arguments } = command;
        self.observe_command(verb);
        self.begin_command(verb);
        let illegal = self.sequence_error(verb);
        match verb {
            // A chunk is consumed, whatever is the matter.
            Verb::Bdat => {
                self.bdat(arguments, illegal);
                return None;
            }
            Verb::Data if illegal != Some(Reply::HelloFirst) && !arguments.is_empty() => {
                self.reply(Reply::InvalidArguments);
                return None;
            }
            // What is not offered is not out of place either.
            Verb::StartTls if illegal != Some(Reply::HelloFirst) => {
                self.starttls(arguments, illegal);
                return None;
            }
            Verb::Auth if illegal != Some(Reply::HelloFirst) => {
                self.auth(arguments, illegal);
                return None;
            }
            _ => {}
        }
        match (illegal, verb) {
            // A second MAIL leaves the transaction, and what follows from a refused one, as it is.
            (Some(Reply::HelloFirst), Verb::Mail) => self.refuse_mail(Reply::HelloFirst),
            (Some(reply), _) => self.reply(reply),
            (None, Verb::Mail) => return self.mail(arguments),
            (None, Verb::Rcpt) => return self.rcpt(arguments),
            (None, Verb::Data) => self.data(),
            (None, Verb::Ehlo) => self.hello(arguments, true),
            (None, Verb::Helo) => self.hello(arguments, false),
            (None, Verb::Rset) if arguments.is_empty() => {
                self.reset();
                self.reply(Reply::Resetting);
            }
            (None, Verb::Quit) if arguments.is_empty() => self.reply(Reply::Closing),
            (None, Verb::Vrfy) if !arguments.is_empty() => self.reply(Reply::CannotVerify),
            (None, Verb::Rset | Verb::Quit | Verb::Vrfy) => self.reply(Reply::InvalidArguments),
            (None, Verb::Noop) => self.reply(Reply::Ok),
            (None, Verb::Help) => self.reply(Reply::Help),
            (None, Verb::Expn) => self.reply(Reply::NotImplemented),
            (None, Verb::Xexch50) => self.xexch50(arguments),
            // They were seen to above.
            (None, Verb::Auth | Verb::StartTls | Verb::Bdat) => {}
            (None, Verb::Unknown) => self.reply(Reply::UnrecognizedCommand),
        }
        None
    }

    /// The reply to a command that is not legal here. What follows only from something refused
    /// before is no error of its own (E7).
    fn sequence_error(&self, verb: Verb) -> Option<Reply> {
        Some(match legality::refusal(verb, self.phase())? {
            Reply::NeedMail if self.mail_refused => Reply::NeedMailAfterRefusal,
            Reply::NeedRecipient if self.recipients_refused => Reply::NeedRecipientAfterRefusal,
            reply => reply,
        })
    }

    /// Back to no transaction, by RSET, EHLO or HELO (RFC 5321 section 4.1.4).
    pub(super) fn reset(&mut self) {
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
        let hello = self.hello.get_or_insert_with(Hello::default);
        hello.extended = extended;
        hello.name.clear();
        hello.name.extend_from_slice(name);
        let dash = if extended { '-' } else { ' ' };
        // Writing to a Vec cannot fail.
        let _ = write!(self.replies, "250{dash}{} Hello [{}]\r\n", self.profile.hostname, self.client);
        self.observe_reply(250);
        if extended {
            self.offer();
        }
    }

    /// The list of extensions (CONFORMANCE B2, B3).
    ///
    //= [MS-OXSMTP] 4.0 3.2.5 EHLO
    fn offer(&mut self) {
        let Extensions { pipelining, eight_bit_mime, binary_mime, chunking } = self.profile.extensions;
        // RFC 1870 section 4: 0 says that no limit is in force.
        let size = self.profile.message_size_max.unwrap_or(0);
        let _ = write!(self.replies, "250-SIZE {size}\r\n");
        if self.profile.offers_tls && self.tls.is_none() {
            let _ = write!(self.replies, "250-{STARTTLS}\r\n");
        }
        let mechanisms = self.usable_mechanisms();
        if mechanisms != Mechanisms::default() {
            let _ = write!(self.replies, "250-{AUTH}");
            for mechanism in mechanisms.iter() {
                let _ = write!(self.replies, " {}", mechanism.name());
            }
            self.replies.extend_from_slice(b"\r\n");
        }
        let offers = [
            (pipelining, "PIPELINING"),
            (true, "DSN"),
            (eight_bit_mime, "8BITMIME"),
            (binary_mime, "BINARYMIME"),
            (chunking, "CHUNKING"),
        ];
        for (_, name) in offers.iter().filter(|(offered, _)| *offered) {
            let _ = write!(self.replies, "250-{name}\r\n");
        }
        self.replies.extend_from_slice(b"250 ENHANCEDSTATUSCODES\r\n");
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
                Some(Step::Decide(Query::Sender(path)))
            }
            Err(reply) => {
                self.refuse_mail(reply);
                None
            }
        }
    }

    //= [MS-OXSMTP] 4.0 3.2.5 MAIL: C3, C9, C5, C8, C7, C6, E6, C11, in this order.
    fn check_mail<'b>(&self, arguments: &'b [u8]) -> Result<(Path<'b>, SenderParameters<'b>), Reply> {
        if self.profile.requires_tls && self.tls.is_none() {
            return Err(Reply::MustStartTls);
        }
        if self.profile.requires_auth && self.user.is_none() {
            return Err(Reply::NotAuthenticated);
        }
        let (path, rest) = command::path_argument(arguments, b"FROM:").map_err(|error| match error {
            PathError::Keyword => Reply::UnrecognizedParameter,
            PathError::Address => Reply::InvalidSender,
        })?;
        let parameters =
            mail_parameters(rest, self.profile.extensions, self.knows_auth()).ok_or(Reply::InvalidArguments)?;
        if self.resources_short {
            return Err(Reply::InsufficientResources);
        }
        //= [MS-OXSMTP] 3.2.7 MessageSizeExceeded; what no u64 holds is too large without a limit too.
        match parameters.size {
            None => {}
            Some(Number::Value(size)) if self.profile.message_size_max.is_none_or(|max| size <= max) => {}
            Some(Number::Value(_) | Number::Overflow) => return Err(Reply::SizeTooLarge),
        }
        if let Path::Mailbox(mailbox) = &path {
            self.check_qualified(mailbox)?;
        }
        let MailParameters { body_type, ret, envid, auth, .. } = parameters;
        //= RFC 4954 section 5: of a client that is not trusted, as if it had said that nobody submitted.
        let auth = auth.map(|auth| if self.user.is_some() { auth } else { NOBODY });
        Ok((path, SenderParameters { body_type: body_type.unwrap_or_default(), ret, envid, auth }))
    }

    /// C11: without a domain an address can only be qualified with a configured one.
    ///
    //= [MS-OXSMTP] 4.0 3.2.5 MAIL, RCPT or DATA: domain expansion fails.
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
        let (State::Mail(mut envelope) | State::Recipients(mut envelope)) = self.take_state() else { return None };
        match self.check_rcpt(arguments) {
            Ok((mailbox, parameters)) => {
                let added = envelope.add_recipient(&mailbox, self.qualification(&mailbox), parameters);
                self.state = State::RecipientPending { envelope, added };
                Some(Step::Decide(Query::Recipient(mailbox)))
            }
            Err(reply) => {
                self.state = State::RecipientPending { envelope, added: false };
                self.refuse_recipient(reply);
                None
            }
        }
    }

    //= [MS-OXSMTP] 4.0 3.2.5 RCPT: C14, C15, C18, C16, C7, C11, in this order.
    fn check_rcpt<'b>(&self, arguments: &'b [u8]) -> Result<(Mailbox<'b>, RecipientParameters<'b>), Reply> {
        if self.has_exchange_data {
            return Err(Reply::BadSequence);
        }
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

    /// Refuses the recipient at hand; the transaction goes on with those accepted.
    pub(super) fn refuse_recipient(&mut self, reply: Reply) {
        self.recipients_refused = true;
        self.reply(reply);
        self.state = match self.take_state() {
            State::RecipientPending { mut envelope, added } => {
                if added {
                    envelope.remove_last_recipient();
                }
                if envelope.recipient_count() == 0 { State::Mail(envelope) } else { State::Recipients(envelope) }
            }
            state => state,
        };
    }

    fn data(&mut self) {
        self.state = match self.take_state() {
            State::Recipients(envelope) if envelope.body_type() == BodyType::BinaryMime => {
                //= RFC 3030 section 3: what is no lines cannot be sent by DATA.
                self.state = State::Recipients(envelope);
                return self.reply(Reply::BadSequence);
            }
            State::Recipients(envelope) => State::Data(envelope, Content::default()),
            state => state,
        };
        self.reply(Reply::StartMail);
    }

    /// Takes and throws away what servers of one organisation tell each other ([MS-XEXCH50]). Its
    /// refusals are no protocol errors (E7).
    ///
    //= [MS-OXSMTP] 4.0 3.2.5 RCPT: XEXCH50
    fn xexch50(&mut self, arguments: &[u8]) {
        match self.check_xexch50(arguments) {
            Ok(octets) => {
                self.has_exchange_data = true;
                self.input = Input::ExchangeData(octets);
                self.reply(Reply::SendBinaryData);
            }
            Err(refusal) => self.say(refusal),
        }
    }

    /// How many octets follow.
    fn check_xexch50(&self, arguments: &[u8]) -> Result<u64, Reply> {
        if self.user.is_none() {
            return Err(Reply::AuthenticateFirst);
        }
        if self.profile.role != Role::Relay {
            return Err(Reply::NotImplemented);
        }
        // Its place in a transaction is that of DATA.
        if let Some(refusal) = self.sequence_error(Verb::Data) {
            return Err(refusal);
        }
        match command::exchange_data(arguments).ok_or(Reply::InvalidArguments)? {
            Number::Value(octets) if self.profile.message_size_max.is_none_or(|max| octets <= max) => Ok(octets),
            Number::Value(_) | Number::Overflow => Err(Reply::SizeTooLarge),
        }
    }

    /// Begins a chunk; what is said of it comes when its octets are consumed (G4).
    fn bdat(&mut self, arguments: &[u8], illegal: Option<Reply>) {
        let Some((octets, is_last)) = command::chunk(arguments) else { return self.reply(Reply::InvalidChunk) };
        let refusal = if self.profile.extensions.chunking { illegal } else { Some(Reply::NotImplemented) };
        if refusal.is_none() {
            self.state = match self.take_state() {
                State::Recipients(envelope) => State::Chunks(envelope, Content::default()),
                state => state,
            };
        }
        self.input = Input::Chunk(Chunk { octets, remaining: octets, is_last, refusal });
    }
}

/// The parameters of MAIL. `None`: one is unknown, malformed or doubled (C7).
fn mail_parameters(input: &[u8], extensions: Extensions, knows_auth: bool) -> Option<MailParameters<'_>> {
    let mut found = MailParameters::default();
    for parameter in command::parameters(input) {
        let parameter = parameter?;
        let value = parameter.value?;
        let is = |keyword: &[u8]| parameter.keyword.eq_ignore_ascii_case(keyword);
        if is(b"SIZE") {
            once(&mut found.size, command::number(value))?;
        } else if is(b"BODY") {
            once(&mut found.body_type, body_type(value, extensions))?;
        } else if is(b"RET") {
            once(&mut found.ret, Ret::parse(value))?;
        } else if is(b"ENVID") {
            once(&mut found.envid, dsn::is_envid(value).then_some(value))?;
        } else if is(b"AUTH") && knows_auth {
            once(&mut found.auth, is_submitter(value).then_some(value))?;
        } else {
            return None;
        }
    }
    Some(found)
}

/// Whether `value` is that of AUTH= (RFC 4954 section 5): a mailbox as xtext, or nobody.
fn is_submitter(value: &[u8]) -> bool {
    if value == NOBODY {
        return true;
    }
    let decoded: Option<Vec<u8>> = dsn::decode_xtext(value).collect();
    value.len() <= AUTH_PARAMETER_MAX_OCTETS && decoded.is_some_and(|decoded| address::mailbox(&decoded).is_some())
}

/// What is not offered is no value (CONFORMANCE B4).
fn body_type(value: &[u8], extensions: Extensions) -> Option<BodyType> {
    let is = |name: &[u8], offered: bool| offered && value.eq_ignore_ascii_case(name);
    if is(b"7BIT", extensions.eight_bit_mime) {
        Some(BodyType::SevenBit)
    } else if is(b"8BITMIME", extensions.eight_bit_mime) {
        Some(BodyType::EightBitMime)
    } else if is(b"BINARYMIME", extensions.binary_mime) {
        Some(BodyType::BinaryMime)
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
