//! One receiving session on its socket: the driver of `smtp::server`.
//!
//! Reads into the shard's scratch buffer, feeds the session, does what its steps ask for. Octets
//! that the session leaves (part of a line, or what arrived behind a message being committed) are
//! kept until its next turn; the scratch buffer is never held across an `.await`.

use super::Context;
use super::current::Binding;
use super::dnsbl;
use super::logon::{self, Unavailable};
use super::message::Message;
use super::net::{Connection, Ready};
use super::outbound::{self, Acknowledgement, Notice};
use super::records::{Origin, Stored};
use super::shared::{Permit, Stage};
use super::stream::Stream;
use crate::limits::{COMMAND_LINE_MAX_OCTETS, LINGER_MAX_MS, READ_MAX_OCTETS, READS_IN_A_ROW_MAX};
use crate::metrics::{self, TlsFailure};
use crate::policy::{self, RecipientVerdict};
use crate::smtp::address::{Mailbox, Path};
use crate::smtp::reply::Reply;
use crate::smtp::sasl::ntlm::filetime;
use crate::smtp::server::{LogonVerdict, Query, Role, Session, Step, Verdict};
use crate::users::User;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the session needs before its next turn.
enum Turn {
    /// More input.
    Read,
    /// Its replies sent; input is left.
    Flush,
    /// The message made durable.
    Commit,
    /// Its replies sent, then TLS.
    StartTls,
    /// Its proof judged.
    Authenticate,
    /// Its client looked up in DNS block lists; this verdict is due if it is on none.
    LookUp(Verdict),
    /// Its replies sent, then its end.
    Close,
}

/// How a session came to its end.
enum Ending {
    /// By its last reply.
    Said,
    /// The peer has ended or reset the connection.
    Gone,
    /// Replies cannot be sent any more.
    Lost,
    /// The TLS handshake failed.
    Tls,
}

/// Who is at the other end.
pub struct Peer {
    /// Whose connection it is.
    pub client: IpAddr,
    /// The proxy that brings it.
    pub proxy: Option<IpAddr>,
    /// When the TCP connection was established (D1).
    pub connected_at: Instant,
}

struct Inbound {
    context: Rc<Context>,
    binding: Rc<Binding>,
    client: IpAddr,
    proxy: Option<IpAddr>,
    /// Messages that were acknowledged.
    messages: u64,
    /// Who the client has proved to be.
    user: Option<Arc<User>>,
    /// Whether the client is on a DNS block list; `None`: nobody has asked yet.
    is_listed: Option<bool>,
    /// Given back just before the last reply leaves, and before the socket closes (it stands before the
    /// connection): a client that reconnects must not meet its own ghost.
    permit: Option<Permit>,
    stream: Stream,
    session: Session,
    message: Option<Message>,
    /// Input that the session has not consumed.
    left: Vec<u8>,
    began: Instant,
    /// Reads since others had a turn; more than one for much input that is commands.
    reads: u32,
    /// The replies to be sent hold a 250 for a message. A client that is gone will send it again
    /// (RFC 1047).
    unsent_acknowledgement: bool,
}

/// Serves a connection to its end.
///
/// The state is boxed and the rare long operations are too: a future holds what it moves more than
/// once, and an idle session is mostly this future.
pub fn serve(
    context: Rc<Context>,
    binding: Rc<Binding>,
    connection: Connection,
    peer: Peer,
    permit: Permit,
) -> impl Future<Output = ()> {
    let now = context.net.now();
    let mut session = Session::new(binding.profile.clone(), peer.client, peer.connected_at);
    // A proxy's header was input (D2).
    session.handle_input(now);
    if cfg!(not(feature = "unobserved")) {
        session.observe(context.next_session_number(), context.observer.clone());
    }
    if let Some(users) = context.shared.users() {
        session.offer_mechanisms(logon::mechanisms(&users));
    }
    if binding.profile.tarpit.is_some() && permit.take_mark(now) {
        context.metrics.tarpit_waits.banner.increment(1);
        session.hold_banner();
    }
    Box::new(Inbound {
        context,
        binding,
        stream: Stream::new(connection),
        client: peer.client,
        proxy: peer.proxy,
        messages: 0,
        user: None,
        is_listed: None,
        permit: Some(permit),
        session,
        message: None,
        left: Vec::new(),
        began: peer.connected_at,
        reads: 0,
        unsent_acknowledgement: false,
    })
    .run()
}

impl Inbound {
    async fn run(mut self: Box<Self>) {
        let ending = self.dialogue().await;
        self.tell_end(&ending);
        match ending {
            Ending::Said | Ending::Tls => self.stream.linger(),
            Ending::Gone => self.stream.close_notify(),
            Ending::Lost => {}
        }
    }

    async fn dialogue(&mut self) -> Ending {
        // Whether `left` holds input that the session has not looked at.
        let mut pending = false;
        if self.binding.implicit_tls && !Box::pin(self.handshake()).await {
            return Ending::Tls;
        }
        loop {
            let turn = if pending { self.take_left() } else { self.read().await };
            pending = false;
            if self.session.take_tarpitted()
                && let Some(permit) = &self.permit
            {
                self.context.metrics.tarpit_waits.replies.increment(1);
                permit.mark(self.context.net.now());
            }
            if matches!(turn, Some(Turn::StartTls)) {
                self.discard_input();
            }
            if !self.flush().await {
                if self.unsent_acknowledgement {
                    self.context.metrics.possible_duplicates.client_gone.increment(1);
                }
                return Ending::Lost;
            }
            self.unsent_acknowledgement = false;
            match turn {
                Some(Turn::Read) => {}
                Some(Turn::Flush) => pending = true,
                Some(Turn::Commit) => {
                    Box::pin(self.commit()).await;
                    pending = true;
                }
                Some(Turn::StartTls) => {
                    if !Box::pin(self.handshake()).await {
                        return Ending::Tls;
                    }
                }
                Some(Turn::Authenticate) => {
                    Box::pin(self.authenticate()).await;
                    pending = true;
                }
                Some(Turn::LookUp(unless_listed)) => {
                    Box::pin(self.look_up(unless_listed)).await;
                    pending = true;
                }
                Some(Turn::Close) => return Ending::Said,
                None => return Ending::Gone,
            }
            if self.message.as_ref().is_some_and(|message| message.must_spill(&self.context, &self.session)) {
                Box::pin(self.spill()).await;
            }
        }
    }

    /// Counts and records the session's end.
    fn tell_end(&self, ending: &Ending) {
        let (metrics, session) = (&self.context.metrics, &self.session);
        let duration = self.context.net.now().saturating_duration_since(self.began);
        metrics.session_seconds.record(duration.as_secs_f64());
        let reason = match (ending, session.last_reply()) {
            (_, Some(reply)) => {
                metrics.count_end(reply);
                reply.row().reason.unwrap_or(metrics::QUIT)
            }
            (ending, None) => {
                let reason = if let Ending::Tls = ending { metrics::TLS_FAILED } else { metrics::CLIENT_GONE };
                metrics.count_other_end(reason);
                reason
            }
        };
        self.context.records.ended(session, self.origin(), reason, self.messages, duration);
    }

    fn origin(&self) -> Origin<'_> {
        Origin { listener: &self.binding.name, proxy: self.proxy }
    }

    /// Waits for input, or for something else that ends the wait, and takes a turn on it.
    async fn read(&mut self) -> Option<Turn> {
        loop {
            if !self.session.replies().is_empty() || self.session.is_held() {
                // The banner, or the replies of a turn that ended by itself.
                return Some(if self.session.is_closed() { Turn::Close } else { Turn::Read });
            }
            match self.context.shared.stage() {
                Stage::Serving => {}
                Stage::Draining => self.session.handle_shutdown(false),
                Stage::Ending => self.session.handle_shutdown(true),
            }
            if self.session.is_closed() {
                return Some(Turn::Close);
            }
            self.stream.set_deadline(self.session.next_deadline());
            // A client that sends as fast as this reads would keep the shard to itself.
            if self.reads >= READS_IN_A_ROW_MAX {
                self.reads = 0;
                self.context.net.next_turn().await;
            }
            match self.stream.ready().await {
                Ready::Bell => {}
                Ready::Deadline => self.session.handle_time(self.context.net.now()),
                Ready::Socket => {
                    self.reads += 1;
                    if let Some(turn) = self.read_socket()? {
                        return Some(turn);
                    }
                }
            }
        }
    }

    /// Reads what is there behind what was left. `None`: the end; `Some(None)`: nothing yet.
    fn read_socket(&mut self) -> Option<Option<Turn>> {
        let context = self.context.clone();
        let mut scratch = context.scratch.borrow_mut();
        let start = self.left.len();
        let in_data = self.session.in_data();
        // As much as there is, of commands too: a pipelined group is to be held back once (E17), not
        // once for each read.
        let buffer = scratch.get_mut(..READ_MAX_OCTETS)?;
        buffer[..start].copy_from_slice(&self.left);
        match self.stream.read(&mut buffer[start..]) {
            Ok(None) => {
                // A part of a TLS record is input too (D2).
                if self.stream.is_secure() {
                    self.session.handle_input(context.net.now());
                }
                Some(None)
            }
            Ok(Some(0)) | Err(_) => None,
            Ok(Some(octets)) => {
                self.session.handle_input(context.net.now());
                if !in_data {
                    // Commands take longer than content.
                    self.reads = self.reads.saturating_add((octets / COMMAND_LINE_MAX_OCTETS) as u32);
                }
                let input = &buffer[..start + octets];
                let (consumed, turn) = self.turn(input);
                self.left.clear();
                self.left.extend_from_slice(&input[consumed..]);
                Some(Some(turn))
            }
        }
    }

    /// Takes a turn on what was left.
    fn take_left(&mut self) -> Option<Turn> {
        let mut input = std::mem::take(&mut self.left);
        let (consumed, turn) = self.turn(&input);
        input.drain(..consumed);
        if !input.is_empty() {
            if input.len() < COMMAND_LINE_MAX_OCTETS {
                // A session that waits for the rest of a line is to be small.
                input.shrink_to_fit();
            }
            self.left = input;
        }
        Some(turn)
    }

    /// Steps the session through `input`; returns the octets consumed.
    fn turn(&mut self, input: &[u8]) -> (usize, Turn) {
        let now = self.context.net.now();
        self.session.handle_resources(self.context.is_short());
        let mut at = 0;
        loop {
            let (consumed, step) = self.session.step(now, &input[at..]);
            at += consumed;
            match step {
                Step::NeedMore => return (at, Turn::Read),
                Step::Flush => return (at, Turn::Flush),
                Step::Commit => return (at, Turn::Commit),
                Step::StartTls => return (at, Turn::StartTls),
                Step::Authenticate => return (at, Turn::Authenticate),
                Step::Challenge => self.challenge(),
                Step::Close => return (at, Turn::Close),
                Step::Abandon => self.message = None,
                Step::Decide(query) => match self.decide(query) {
                    Ok(verdict) => self.session.handle_verdict(now, verdict),
                    Err(turn) => return (at, turn),
                },
                Step::Body(octets) => {
                    self.message.get_or_insert_with(|| Message::begin(&self.context, &self.session)).append(octets);
                }
            }
        }
    }

    /// The verdict, or what must come before it.
    fn decide(&self, query: Query<'_>) -> Result<Verdict, Turn> {
        match query {
            Query::Sender(path) => Ok(self.decide_sender(path)),
            Query::Recipient(mailbox) => self.decide_recipient(mailbox),
        }
    }

    /// E15, then C19.
    fn decide_recipient(&self, mailbox: Mailbox<'_>) -> Result<Verdict, Turn> {
        let (config, profile) = (&self.binding.config, &self.binding.profile);
        let is_postmaster = mailbox.is_postmaster();
        let default = profile.default_domain.as_deref().filter(|_| !is_postmaster);
        let domain = mailbox.domain().or(default.map(str::as_bytes));
        let may_relay = self.user.is_some() || config.relay_from.contains(self.client);
        let accepted = policy::recipient(&config.accepted_domains, may_relay, domain, is_postmaster);
        let unless_listed = match accepted {
            RecipientVerdict::Accept => Verdict::Accept,
            RecipientVerdict::RelayDenied => Verdict::Refuse(Reply::UnableToRelay),
        };
        if config.dnsbl.is_empty() || !policy::minds_block_lists(profile.role, may_relay, is_postmaster, accepted) {
            return Ok(unless_listed);
        }
        let is_listed = self.is_listed.ok_or(Turn::LookUp(unless_listed))?;
        Ok(unless(is_listed, unless_listed))
    }

    /// Looks the client up in DNS block lists, once a session, and gives the verdict that waits for it.
    ///
    //= [MS-OXSMTP] 3.2.7 IPAddressNotAllowed
    async fn look_up(&mut self, unless_listed: Verdict) {
        let zones = &self.binding.config.dnsbl;
        let is_listed = dnsbl::is_listed(&self.context, &self.stream, self.client, zones).await;
        self.is_listed = Some(is_listed);
        self.session.handle_verdict(self.context.net.now(), unless(is_listed, unless_listed));
    }

    /// C10, then E4: on a relay by user, else by source.
    fn decide_sender(&self, path: Path<'_>) -> Verdict {
        let profile = &self.binding.profile;
        let mailbox = match &path {
            Path::Null => None,
            Path::Mailbox(mailbox) => Some(mailbox),
        };
        if self.user.as_ref().is_some_and(|user| !user.may_send_as(mailbox, profile.default_domain.as_deref())) {
            return Verdict::Refuse(Reply::SenderNotPermitted);
        }
        let Some(permit) = &self.permit else { return Verdict::Refuse(Reply::RateExceeded) };
        let (now, limits) = (self.context.net.now(), &self.binding.config.limits);
        let (accepted, refusal) = match &self.user {
            Some(user) if profile.role == Role::Relay => {
                (permit.try_count_message_of_user(user.name(), now, limits), Reply::UserRateExceeded)
            }
            _ => (permit.try_count_message(now, limits), Reply::RateExceeded),
        };
        if accepted { Verdict::Accept } else { Verdict::Refuse(refusal) }
    }

    /// Throws away what has come behind STARTTLS: no client can know yet that TLS begins.
    fn discard_input(&mut self) {
        self.left = Vec::new();
        let mut scratch = self.context.scratch.borrow_mut();
        for _ in 0..READS_IN_A_ROW_MAX {
            if !matches!(self.stream.read(&mut scratch), Ok(Some(1..))) {
                return;
            }
        }
    }

    /// TLS, within the session's timers. False: there is nobody to talk to any more.
    async fn handshake(&mut self) -> bool {
        let began = self.context.net.now();
        let has_begun = self.context.shared.tls().map(|config| self.stream.begin_server(config));
        let mut failure = (!matches!(has_begun, Some(Ok(())))).then_some(TlsFailure::Protocol);
        while failure.is_none() {
            self.context.net.pass().await;
            // There is nothing to finish. The bell may have rung before this wait began.
            if self.context.shared.stage() != Stage::Serving {
                failure = Some(TlsFailure::Drain);
                break;
            }
            self.stream.set_deadline(self.session.next_deadline());
            match self.stream.handshake().await {
                Ok(None) => break,
                Ok(Some(Ready::Socket)) => self.session.handle_input(self.context.net.now()),
                Ok(Some(Ready::Deadline)) => self.session.handle_time(self.context.net.now()),
                Ok(Some(Ready::Bell)) => {}
                Err(error) => failure = Some(failure_of(&error)),
            }
            if self.session.is_closed() {
                failure = Some(TlsFailure::Timeout);
            }
        }
        let metrics = &self.context.metrics;
        let (None, Some(parameters)) = (failure, self.stream.tls_parameters()) else {
            metrics.count_failed_handshake(failure.unwrap_or(TlsFailure::Protocol));
            return false;
        };
        let now = self.context.net.now();
        metrics.count_handshake(parameters.version, self.stream.is_resumed(), now.duration_since(began));
        self.session.handle_tls(now, parameters);
        true
    }

    /// Gives NTLM its challenge.
    fn challenge(&mut self) {
        let nonce = getrandom::u64().expect("the kernel has random numbers").to_ne_bytes();
        self.session.handle_challenge(self.context.net.now(), nonce, filetime(self.context.unix_ms()));
    }

    /// Judges who the client says it is.
    async fn authenticate(&mut self) {
        let Some(logon) = self.session.take_logon() else { return };
        let mechanism = logon.mechanism();
        let limits = &self.binding.config.limits;
        let permit = self.permit.as_ref().filter(|permit| permit.try_count_logon(self.context.net.now(), limits));
        let judgement = match permit {
            Some(_) => logon::judge(&self.context, &self.stream, logon).await,
            None => Err(Unavailable),
        };
        if let (Some(permit), Ok(Some(_)) | Err(_)) = (permit, &judgement) {
            permit.logon_succeeded(limits);
        }
        let verdict = match &judgement {
            Ok(Some(user)) if !user.may_use(self.binding.address) => LogonVerdict::NotHere,
            Ok(Some(user)) => LogonVerdict::Accept(user.name()),
            Ok(None) => LogonVerdict::Refuse,
            Err(Unavailable) => LogonVerdict::Unavailable,
        };
        self.context.metrics.count_logon(mechanism, verdict);
        self.session.handle_logon(self.context.net.now(), verdict);
        self.user = judgement.ok().flatten().filter(|_| self.session.user().is_some());
    }

    async fn commit(&mut self) {
        self.stream.set_deadline(None);
        let message = self.message.take().unwrap_or_else(|| Message::begin(&self.context, &self.session));
        let result = message.commit(&self.context, &self.session, self.client).await;
        let now = self.context.net.now();
        match result {
            Ok((durable, accepted)) => {
                let metrics = &self.context.metrics;
                let octets = accepted.octets;
                let stored = Stored { id: accepted.id, octets };
                metrics.queue_messages.increment(1.0);
                metrics.queue_bytes.increment(octets as f64);
                let notice = outbound::accept(&self.context, accepted, &|| self.stream.nudge());
                let acknowledgement = match notice {
                    Some(notice) => self.await_verdict(&notice).await,
                    None => Acknowledgement::Accept,
                };
                let now = self.context.net.now();
                match acknowledgement {
                    Acknowledgement::Accept => {
                        let metrics = &self.context.metrics;
                        metrics.messages_accepted.increment(1);
                        metrics.message_bytes_accepted.increment(octets);
                        metrics.message_size.record(octets as f64);
                        self.context.records.accepted(&self.session, self.origin(), stored);
                        self.messages += 1;
                        self.session.handle_durable(now, &durable);
                        self.unsent_acknowledgement = true;
                    }
                    Acknowledgement::Refuse(line) => {
                        self.context.metrics.count_passed_on_refusal(octets);
                        self.context.records.refused_by_next_hop(&self.session, stored, &line);
                        self.session.handle_refusal(now, &line);
                    }
                }
            }
            Err(_) => self.session.handle_commit_failure(now),
        }
    }

    /// Waits until the next hop has taken or refused the message, the limit passes, or the process
    /// drains.
    ///
    //= [MS-OXSMTP] 3.2.7 AcknowledgementDelay: when the limit passes the server acknowledges anyway.
    async fn await_verdict(&mut self, notice: &Notice) -> Acknowledgement {
        let delay = self.context.current().config.delivery.ack_delay;
        let began = self.context.net.now();
        self.stream.set_deadline(delay.map(|delay| began + delay));
        let metrics = &self.context.metrics.ack_delays;
        let verdict = loop {
            if let Some(verdict) = notice.verdict() {
                break verdict;
            }
            let skipped = match self.stream.interrupted().await {
                Ready::Deadline => &metrics.limit,
                Ready::Bell if self.context.shared.stage() != Stage::Serving => &metrics.drain,
                Ready::Bell | Ready::Socket => continue,
            };
            if notice.verdict().is_none() && notice.give_up() {
                skipped.increment(1);
                break Acknowledgement::Accept;
            }
        };
        let waited = self.context.net.now().duration_since(began);
        self.context.metrics.ack_delay_seconds.record(waited.as_secs_f64());
        verdict
    }

    async fn spill(&mut self) {
        self.stream.set_deadline(None);
        let Some(message) = &mut self.message else { return };
        if let Err(error) = message.spill(&self.context, &self.session).await {
            let _ = self.context.storage.report(&error);
            self.message = None;
            self.session.handle_body_failure();
        }
    }

    /// Sends the replies, those that are held back when their time has come; false when the
    /// connection is beyond use. A client that does not read them is given until the session's next
    /// deadline.
    async fn flush(&mut self) -> bool {
        loop {
            if self.session.is_closed() && !self.session.is_held() {
                self.permit = None;
            }
            if !self.session.replies().is_empty() {
                if !self.write_some().await {
                    return false;
                }
                continue;
            }
            if !self.session.is_held() {
                match self.stream.flush() {
                    Ok(true) => return true,
                    Ok(false) if self.wait_for_room().await => continue,
                    Ok(false) | Err(_) => return false,
                }
            }
            let now = self.context.net.now();
            if self.context.shared.stage() == Stage::Ending {
                // The doorbell has rung for it, before this wait began perhaps.
                self.session.release(now);
                continue;
            }
            // More replies to the same input than the buffer holds are not late once more.
            self.session.handle_time(now);
            if !self.session.is_held() {
                continue;
            }
            //= [MS-OXSMTP] 3.2.7 Tarpit: only this session waits, and its input is not read meanwhile.
            self.stream.set_deadline(self.session.next_deadline());
            self.context.metrics.tarpitted.increment(1.0);
            let held = self.stream.held().await;
            self.context.metrics.tarpitted.decrement(1.0);
            match held {
                Ready::Deadline => self.session.handle_time(self.context.net.now()),
                Ready::Bell => {}
                Ready::Socket => return false,
            }
        }
    }

    /// Sends some of the replies, or waits until that is possible; false when it never will be.
    async fn write_some(&mut self) -> bool {
        match self.stream.write(self.session.replies()) {
            Ok(Some(sent)) => {
                self.session.replies_sent(sent);
                true
            }
            Ok(None) => self.wait_for_room().await,
            Err(_) => false,
        }
    }

    /// Waits until the socket takes more; false when it never will.
    async fn wait_for_room(&mut self) -> bool {
        let last = self.context.net.now() + Duration::from_millis(LINGER_MAX_MS);
        let deadline = self.session.next_deadline().filter(|_| self.context.shared.stage() != Stage::Ending);
        self.stream.set_deadline(deadline.or(Some(last)));
        match self.stream.writable().await {
            Ready::Socket => true,
            Ready::Deadline if self.session.is_held() => {
                self.session.handle_time(self.context.net.now());
                true
            }
            Ready::Deadline => false,
            Ready::Bell => self.context.shared.stage() != Stage::Ending,
        }
    }
}

/// The verdict on a recipient of a client that is on a block list or not.
fn unless(is_listed: bool, unless_listed: Verdict) -> Verdict {
    if is_listed { Verdict::Refuse(Reply::OnBlockList) } else { unless_listed }
}

/// What ended a handshake.
fn failure_of(error: &io::Error) -> TlsFailure {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => TlsFailure::ClientGone,
        _ => TlsFailure::Protocol,
    }
}
