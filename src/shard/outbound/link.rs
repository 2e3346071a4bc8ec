//! A connection to a next hop: the driver of `smtp::client`.

use super::security::ClientTls;
use crate::delivery::NextHopId;
use crate::limits::{NEXT_HOP_CLEAR_MS, NEXT_HOP_CONNECT_MS, READ_MAX_OCTETS};
use crate::shard::Context;
use crate::shard::net::{Connection, Nudge, Ready};
use crate::shard::shared::{NextHop, Stage};
use crate::shard::stream::Stream;
use crate::smtp::client::{self, Failure, Session, Step, Timeouts, Transaction, Unsendable};
use crate::smtp::header::TlsParameters;
use crate::stderr;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// What a turn of the dialogue came to.
pub enum Event {
    /// The TLS handshake is due; only before it is ready for the first time.
    StartTls,
    /// The next hop is ready for a transaction.
    Ready,
    /// It wants the content.
    SendBody,
    /// The transaction is over.
    Answered,
    /// Somebody nudged this connection's task, or the doorbell rang, while nothing was asked.
    Nudged,
    /// The connection is of no more use.
    Lost(Lost),
}

/// How a wait without anything to do ended.
pub enum Idle {
    /// Somebody nudged this connection's task, or the doorbell rang.
    Nudged,
    /// With time.
    Passed,
    /// The connection is of no more use.
    Over,
}

/// Why a connection is of no more use.
#[derive(Debug)]
pub enum Lost {
    /// No name server knows its name, or has not answered yet.
    Unresolved,
    /// Connecting failed.
    Connect(SocketAddr, io::Error),
    /// The TLS handshake failed, or whoever is there could not be verified.
    Handshake(SocketAddr, io::Error),
    /// The dialogue failed.
    Dialogue(Failure),
    /// The content could not be read to its end: the transaction was broken off.
    Content(String),
    /// It was ended in order.
    Closed,
    /// The process ends.
    Ending,
}

impl Lost {
    /// Whether this machine had no descriptor, port or memory for a connection: that says nothing of
    /// the next hop.
    pub fn is_our_shortage(&self) -> bool {
        let Lost::Connect(_, error) = self else { return false };
        matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL | libc::EAGAIN)
        )
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Unresolved => f.write_str("its name has no address"),
            Lost::Connect(address, error) => write!(f, "cannot connect to {address}: {error}"),
            Lost::Handshake(address, error) => write!(f, "TLS with {address} failed: {error}"),
            Lost::Dialogue(failure) => failure.fmt(f),
            Lost::Content(reason) => write!(f, "the message cannot be read: {reason}"),
            Lost::Closed => f.write_str("the connection was closed"),
            Lost::Ending => f.write_str("this server is stopping"),
        }
    }
}

/// A connection and its dialogue.
pub struct Link {
    context: Rc<Context>,
    address: SocketAddr,
    stream: Stream,
    session: Session,
    /// Input that the dialogue has not consumed.
    left: Vec<u8>,
    /// What it came to while output was being sent.
    event: Option<Event>,
    /// Its hello was answered.
    is_open: bool,
}

impl Link {
    /// Connects, address by address, until one is ready for a transaction. When the process drains,
    /// no transaction will begin: then it is given up.
    pub async fn open(context: &Rc<Context>, id: NextHopId) -> Result<Link, Lost> {
        let mut lost = Lost::Unresolved;
        for &address in context.shared.next_hop(id).addresses().iter() {
            match Link::open_address(context, id, address).await {
                Err(Lost::Ending) => return Err(Lost::Ending),
                Err(reason) => lost = reason,
                opened => return opened,
            }
        }
        Err(lost)
    }

    /// Where TLS is optional and fails, another connection goes without; if it comes about, so do
    /// those after it for some time.
    async fn open_address(context: &Rc<Context>, id: NextHopId, address: SocketAddr) -> Result<Link, Lost> {
        let (next_hop, pool) = (context.shared.next_hop(id), &context.outbound.pools[id.index()]);
        let avoids_tls = context.now_ms() < pool.clear_until_ms.get();
        let lost = match Link::connect(context, next_hop, address, avoids_tls).await {
            Err(lost @ Lost::Handshake(..)) if next_hop.security.is_optional() => lost,
            opened => return opened,
        };
        let link = Link::connect(context, next_hop, address, true).await?;
        let now_ms = context.now_ms();
        if pool.clear_until_ms.replace(now_ms + NEXT_HOP_CLEAR_MS) <= now_ms {
            stderr::say(format_args!("next hop {}: {lost}; its mail goes in clear for an hour", next_hop.name));
        }
        Ok(link)
    }

    async fn connect(
        context: &Rc<Context>,
        next_hop: &NextHop,
        address: SocketAddr,
        avoids_tls: bool,
    ) -> Result<Link, Lost> {
        if context.shared.stage() != Stage::Serving {
            // The bell has rung already.
            return Err(Lost::Ending);
        }
        let failed = |error| Lost::Connect(address, error);
        let reply = context.current().config.delivery.next_hop_timeout;
        let connection = Connection::connect(&context.net, address).map_err(failed)?;
        connection.set_deadline(Some(context.net.now() + Duration::from_millis(NEXT_HOP_CONNECT_MS).min(reply)));
        loop {
            match connection.writable().await {
                Ready::Socket => break connection.connect_result().map_err(failed)?,
                Ready::Deadline => return Err(failed(io::ErrorKind::TimedOut.into())),
                Ready::Bell if context.shared.stage() != Stage::Serving => return Err(Lost::Ending),
                Ready::Bell => {}
            }
        }
        let wants = next_hop.security.wants(avoids_tls, context.unix_ms()).map_err(failed)?;
        let timeouts = Timeouts::from_reply(reply);
        let session = Session::new(context.hostname.clone(), timeouts, wants, context.net.now());
        let stream = Stream::new(connection);
        let mut link =
            Link { context: context.clone(), address, stream, session, left: Vec::new(), event: None, is_open: false };
        loop {
            match link.turn().await {
                Event::Ready => {
                    link.is_open = true;
                    if let Some(mechanism) = link.session.logged_on() {
                        context.metrics.next_hop_logons.count(mechanism, true);
                    }
                    return Ok(link);
                }
                Event::StartTls => {
                    // The session asks for it only where it was told to.
                    let Some(tls) = &next_hop.security.tls else { return Err(Lost::Closed) };
                    link.start_tls(tls, address).await?;
                }
                Event::Lost(lost) => {
                    if let Lost::Dialogue(Failure { stage: client::Stage::Auth(mechanism), .. }) = &lost {
                        context.metrics.next_hop_logons.count(*mechanism, false);
                    }
                    return Err(lost);
                }
                _ => {}
            }
        }
    }

    /// Does the TLS handshake, in the time that a reply may take.
    async fn start_tls(&mut self, tls: &ClientTls, address: SocketAddr) -> Result<(), Lost> {
        let result = self.handshake(tls, address).await;
        let metrics = &self.context.metrics.next_hop_tls_handshakes;
        match &result {
            Ok(()) => metrics.ok.increment(1),
            Err(Lost::Handshake(..)) => metrics.failed.increment(1),
            Err(_) => {}
        }
        result
    }

    async fn handshake(&mut self, tls: &ClientTls, address: SocketAddr) -> Result<(), Lost> {
        let failed = |error| Lost::Handshake(address, error);
        self.left.clear();
        self.stream.begin_client(tls.config.clone(), tls.name.clone()).map_err(failed)?;
        loop {
            self.stream.set_deadline(self.session.next_deadline());
            let Some(ready) = self.stream.handshake().await.map_err(failed)? else {
                self.session.handle_tls(self.context.net.now());
                return Ok(());
            };
            match ready {
                Ready::Deadline if self.session.handle_time(self.context.net.now()).is_some() => {
                    return Err(failed(io::ErrorKind::TimedOut.into()));
                }
                Ready::Bell if self.is_over() => return Err(Lost::Ending),
                _ => {}
            }
        }
    }

    /// What wakes the task that waits for this connection.
    pub fn nudge(&self) -> Nudge {
        self.stream.nudge()
    }

    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The TLS that it is under.
    pub fn tls_parameters(&self) -> Option<TlsParameters> {
        self.stream.tls_parameters()
    }

    /// The dialogue.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Begins a transaction; nothing was asked before.
    pub fn begin(&mut self, transaction: &Transaction<'_>) -> Result<(), Unsendable> {
        self.session.begin(self.context.net.now(), transaction)
    }

    /// Goes on with the dialogue until it comes to something.
    pub async fn turn(&mut self) -> Event {
        if let Some(event) = self.event.take().or_else(|| self.take_left()) {
            return event;
        }
        loop {
            if let Err(lost) = self.flush().await {
                return Event::Lost(lost);
            }
            if let Some(event) = self.event.take() {
                return event;
            }
            self.stream.set_deadline(self.session.next_deadline());
            match self.stream.ready().await {
                Ready::Socket => {
                    if let Some(event) = self.read() {
                        return event;
                    }
                }
                Ready::Deadline => {
                    if let Some(failure) = self.session.handle_time(self.context.net.now()) {
                        return Event::Lost(Lost::Dialogue(failure));
                    }
                }
                Ready::Bell if self.is_over() => return Event::Lost(Lost::Ending),
                Ready::Bell if self.session.is_idle() => return Event::Nudged,
                Ready::Bell => {}
            }
        }
    }

    /// Whether the process leaves no time for what this connection is at.
    fn is_over(&self) -> bool {
        match self.context.shared.stage() {
            Stage::Serving => false,
            Stage::Draining => !self.is_open,
            Stage::Ending => true,
        }
    }

    /// Looks whether the next hop has said something while content is being sent: nothing is due,
    /// so it must not get the content's end.
    pub fn check_silence(&mut self) -> Result<(), Lost> {
        match self.read() {
            Some(Event::Lost(lost)) => Err(lost),
            _ => Ok(()),
        }
    }

    /// Waits for a nudge, or for the next hop to end the connection, at most this long.
    pub async fn idle(&mut self, longest: Duration) -> Idle {
        self.stream.set_deadline(Some(self.context.net.now() + longest));
        loop {
            match self.stream.ready().await {
                Ready::Bell => return Idle::Nudged,
                Ready::Deadline => return Idle::Passed,
                // Whatever it says now, nobody asked: a 421, its end, or octets out of turn.
                Ready::Socket => {
                    if self.read().is_some() {
                        return Idle::Over;
                    }
                }
            }
        }
    }

    fn take_left(&mut self) -> Option<Event> {
        if self.left.is_empty() {
            return None;
        }
        let mut input = std::mem::take(&mut self.left);
        let (consumed, event) = self.take_step(&input);
        input.drain(..consumed);
        self.left = input;
        event
    }

    /// Reads what is there behind what was left.
    fn read(&mut self) -> Option<Event> {
        let context = self.context.clone();
        let mut scratch = context.scratch.borrow_mut();
        let start = self.left.len();
        let buffer = scratch.get_mut(..READ_MAX_OCTETS)?;
        // The dialogue takes whole lines, and refuses long ones: little is ever left.
        buffer.get_mut(..start)?.copy_from_slice(&self.left);
        match self.stream.read(&mut buffer[start..]) {
            Ok(None) => None,
            Ok(Some(0)) | Err(_) => Some(Event::Lost(Lost::Dialogue(self.session.handle_end()))),
            Ok(Some(octets)) => {
                let input = &buffer[..start + octets];
                let (consumed, event) = self.take_step(input);
                self.left.clear();
                self.left.extend_from_slice(&input[consumed..]);
                event
            }
        }
    }

    fn take_step(&mut self, input: &[u8]) -> (usize, Option<Event>) {
        let now = self.context.net.now();
        let (consumed, step) = self.session.step(now, input);
        let event = match step {
            Step::NeedMore => None,
            Step::StartTls => Some(Event::StartTls),
            Step::Ready => Some(Event::Ready),
            Step::SendBody => Some(Event::SendBody),
            Step::Answered => Some(Event::Answered),
            Step::Failed(failure) => Some(Event::Lost(Lost::Dialogue(failure))),
            Step::Closed => Some(Event::Lost(Lost::Closed)),
        };
        (consumed, event)
    }

    /// Sends what there is to send, and reads meanwhile: a next hop whose replies are not read may
    /// read no more itself, or have refused what is being sent. What that comes to is told by
    /// [`Self::turn`].
    pub async fn flush(&mut self) -> Result<(), Lost> {
        loop {
            match self.send() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => return Err(Lost::Dialogue(self.session.handle_end())),
            }
            self.stream.set_deadline(self.session.next_deadline());
            match self.stream.ready_or_writable().await {
                Ready::Socket => match self.read() {
                    Some(Event::Lost(lost)) => return Err(lost),
                    Some(event) => self.event = Some(event),
                    None => {}
                },
                Ready::Deadline => {
                    if let Some(failure) = self.session.handle_time(self.context.net.now()) {
                        return Err(Lost::Dialogue(failure));
                    }
                }
                Ready::Bell if self.is_over() => return Err(Lost::Ending),
                Ready::Bell => {}
            }
        }
    }

    /// Sends what the socket takes. True: all has left.
    fn send(&mut self) -> io::Result<bool> {
        while !self.session.output().is_empty() {
            let Some(sent) = self.stream.write(self.session.output())? else { return Ok(false) };
            self.session.output_sent(self.context.net.now(), sent);
        }
        self.stream.flush()
    }

    /// Says goodbye without waiting for the answer.
    pub async fn quit(mut self) {
        self.session.quit(self.context.net.now());
        // A next hop that does not read it is of no more interest.
        let _ = self.send();
        self.stream.linger();
    }
}
