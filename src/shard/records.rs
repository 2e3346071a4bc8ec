//! What a shard writes into the log of its sessions, messages and deliveries: one record each at the
//! end of a session, for an accepted message, a refusal, and an attempt at delivery.
//!
//! A message is followed by its `id`, a client by its `session`. Nothing here allocates: a record is
//! made in the sender's buffer.

use crate::log::{Event, Field, Record, Sender};
use crate::queue::stored::StoredEnvelope;
use crate::smtp::QueueId;
use crate::smtp::client::{Answer, Disposition};
use crate::smtp::header::TlsParameters;
use crate::smtp::reply::Reply;
use crate::smtp::server::Session;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A session's number is below its shard's.
const SESSION_NUMBER_BITS: u32 = 48;

/// The number before the first one of a shard's sessions.
pub fn first_session_number(shard: usize) -> u64 {
    (shard as u64) << SESSION_NUMBER_BITS
}

/// Writes a shard's records, or the watchdog's.
#[derive(Clone, Debug)]
pub struct Records(Rc<Sender>);

/// Where a session is served.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The address that the client connected to, as text: it is written twice for each session.
    pub listener: &'a str,
    /// The proxy that brought it.
    pub proxy: Option<IpAddr>,
}

/// A message that is on stable storage.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Its id.
    pub id: QueueId,
    /// Its octets, with our Received field.
    pub octets: u64,
}

/// An attempt at delivery.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The message.
    pub id: QueueId,
    /// Its octets.
    pub octets: u64,
    /// The stored envelope.
    pub envelope: &'a [u8],
    /// The next hop, as the operator wrote it, and the address that was tried; none where nobody was.
    pub relay: Option<(&'a str, SocketAddr)>,
    /// The TLS of the connection.
    pub tls: Option<TlsParameters>,
    /// How long the transaction took.
    pub duration: Duration,
    /// Attempts so far, with this one.
    pub attempts: u16,
}

impl Records {
    /// Writes by this sender.
    pub fn new(sender: Sender) -> Self {
        Records(Rc::new(sender))
    }

    fn begin(&self, event: Event) -> Option<Record<'_>> {
        self.0.record(event, SystemTime::now())
    }

    /// A connection was refused in place of the banner.
    pub fn refused_connection(&self, origin: Origin<'_>, client: IpAddr, reply: Reply) {
        let Some(mut record) = self.begin(Event::Refused) else { return };
        record.address(Field::Client, client);
        add_origin(&mut record, origin);
        add_reply(&mut record, reply, client);
    }

    /// A command or a message was refused, or a session ended by the server.
    pub fn refused(&self, session: &Session, reply: Reply) {
        let Some(mut record) = self.begin(Event::Refused) else { return };
        add_client(&mut record, session);
        if let Some(path) = session.reverse_path() {
            record.text(Field::From, path);
        }
        if let Some(path) = session.recipient_at_hand() {
            record.text(Field::To, path);
        }
        if let Some(octets) = session.content_octets() {
            record.number(Field::Size, octets);
        }
        add_reply(&mut record, reply, session.client());
        add_security(&mut record, session);
    }

    /// A message that was refused by a next hop while its client waited: that is told the refusal.
    pub fn refused_by_next_hop(&self, session: &Session, message: Stored, line: &str) {
        let Some(mut record) = self.begin(Event::Refused) else { return };
        add_client(&mut record, session);
        add_message(&mut record, session, message);
        record.str(Field::Reply, line).str(Field::Reason, "next_hop");
        add_security(&mut record, session);
    }

    /// A message was acknowledged.
    pub fn accepted(&self, session: &Session, origin: Origin<'_>, message: Stored) {
        let Some(mut record) = self.begin(Event::Accepted) else { return };
        add_client(&mut record, session);
        add_origin(&mut record, origin);
        add_message(&mut record, session, message);
        record.seconds(Field::Duration, age(message.id));
        add_security(&mut record, session);
    }

    /// A session has ended, for this reason.
    pub fn ended(&self, session: &Session, origin: Origin<'_>, reason: &str, messages: u64, duration: Duration) {
        let Some(mut record) = self.begin(Event::Session) else { return };
        add_client(&mut record, session);
        add_origin(&mut record, origin);
        record.number(Field::Messages, messages).seconds(Field::Duration, duration).str(Field::Reason, reason);
        add_security(&mut record, session);
    }

    /// What an attempt came to: one disposition for each of these places in the envelope. Recipients that
    /// follow each other and fared alike share a record. `acceptance`: what the next hop said in the end.
    pub fn attempted(&self, attempt: &Attempt<'_>, places: &[u32], of: &[Disposition], acceptance: Option<&Answer>) {
        let mut rest = places;
        for alike in of.chunk_by(|one, other| one == other) {
            let (Some(first), Some((these, others))) = (alike.first(), rest.split_at_checked(alike.len())) else {
                return;
            };
            rest = others;
            match first {
                Disposition::Delivered => self.settled(Event::Delivered, attempt, these, acceptance),
                Disposition::Failed(answer) => self.settled(Event::Failed, attempt, these, Some(answer)),
                Disposition::Deferred(answer) | Disposition::TooMany(answer) => {
                    self.settled(Event::Deferred, attempt, these, Some(answer));
                }
            }
        }
    }

    /// What has become of these recipients.
    pub fn settled(&self, event: Event, attempt: &Attempt<'_>, places: &[u32], answer: Option<&Answer>) {
        let Some(mut record) = self.begin(event) else { return };
        let envelope = StoredEnvelope::decode(attempt.envelope).unwrap_or_default();
        record.str(Field::Id, attempt.id.text().as_str()).text(Field::From, envelope.reverse_path());
        let recipients = (0_u32..).zip(envelope.recipients());
        let these = recipients.filter(|(place, _)| places.binary_search(place).is_ok());
        add_recipients(&mut record, these.map(|(_, recipient)| recipient.path));
        record.number(Field::Size, attempt.octets).number(Field::Nrcpt, places.len() as u64);
        if let Some((name, address)) = attempt.relay {
            record.display(Field::Relay, &Relay { name, address });
        }
        if let Some(answer) = answer {
            record.display(Field::Reply, answer);
            if let Some(code) = answer.enhanced_code() {
                record.str(Field::Dsn, code);
            }
        }
        record.seconds(Field::Delay, age(attempt.id)).seconds(Field::Duration, attempt.duration);
        record.str(Field::Status, event.name()).number(Field::Attempts, u64::from(attempt.attempts));
        if let Some(tls) = attempt.tls {
            add_tls(&mut record, tls);
        }
    }
}

/// How long ago a message began to arrive.
fn age(id: QueueId) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(id.unix_ms()))
}

fn add_client(record: &mut Record<'_>, session: &Session) {
    record.display(Field::Session, &SessionNumber(session.number())).address(Field::Client, session.client());
    let hello = session.trace().hello;
    if !hello.is_empty() {
        record.text(Field::Helo, hello);
    }
}

fn add_origin(record: &mut Record<'_>, origin: Origin<'_>) {
    record.str(Field::Listener, origin.listener);
    if let Some(proxy) = origin.proxy {
        record.address(Field::Proxy, proxy);
    }
}

fn add_message(record: &mut Record<'_>, session: &Session, message: Stored) {
    record.str(Field::Id, message.id.text().as_str());
    let Some(envelope) = session.envelope() else { return };
    record.text(Field::From, envelope.reverse_path());
    add_recipients(record, envelope.recipients().map(|recipient| recipient.path));
    record.number(Field::Size, message.octets).number(Field::Nrcpt, envelope.recipient_count() as u64);
}

fn add_reply(record: &mut Record<'_>, reply: Reply, client: IpAddr) {
    record.display(Field::Reply, &reply.said_to(client));
    if let Some(reason) = reply.row().reason {
        record.str(Field::Reason, reason);
    }
}

fn add_security(record: &mut Record<'_>, session: &Session) {
    if let Some(tls) = session.trace().tls {
        add_tls(record, tls);
    }
    if let Some(user) = session.user() {
        record.str(Field::Auth, user);
    }
}

fn add_tls(record: &mut Record<'_>, tls: TlsParameters) {
    record.display(Field::Tls, &format_args!("{} {}", tls.version, tls.cipher));
}

fn add_recipients<'a>(record: &mut Record<'_>, paths: impl Iterator<Item = &'a [u8]>) {
    record.display(Field::To, &Joined(Cell::new(Some(paths))));
}

/// Paths with commas between, shown once.
struct Joined<I>(Cell<Option<I>>);

impl<'a, I: Iterator<Item = &'a [u8]>> Display for Joined<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, path) in self.0.take().into_iter().flatten().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            f.write_str(&String::from_utf8_lossy(path))?;
        }
        Ok(())
    }
}

/// The shard and what it has counted.
struct SessionNumber(u64);

impl Display for SessionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shard, number) = (self.0 >> SESSION_NUMBER_BITS, self.0 & ((1 << SESSION_NUMBER_BITS) - 1));
        write!(f, "{shard}-{number}")
    }
}

/// A next hop by its name, and by its address where that says more.
struct Relay<'a> {
    name: &'a str,
    address: SocketAddr,
}

impl Display for Relay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Relay { name, address } = self;
        // A name of letters; an address is written like itself.
        let is_address = name.parse::<SocketAddr>().is_ok();
        if is_address { f.write_str(name) } else { write!(f, "{name} ({address})") }
    }
}
