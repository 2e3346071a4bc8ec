//! One receiving session on its socket: the driver of `smtp::server`.
//!
//! Reads into the shard's scratch buffer, feeds the session, does what its steps ask for. Octets
//! that the session leaves (part of a line, or what arrived behind a message being committed) are
//! kept until its next turn; the scratch buffer is never held across an `.await`.

use super::Context;
use super::message::Message;
use super::net::{Connection, Ready};
use super::outbound::{self, Acknowledgement, Notice};
use super::shared::{Permit, Stage};
use crate::limits::{COMMAND_LINE_MAX_OCTETS, LINGER_MAX_MS, READ_MAX_OCTETS, READS_IN_A_ROW_MAX};
use crate::policy::{self, RecipientVerdict};
use crate::smtp::reply::Reply;
use crate::smtp::server::{Profile, Query, Session, Step, Verdict};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// What the session needs before its next turn.
enum Turn {
    /// More input.
    Read,
    /// Its replies sent; input is left.
    Flush,
    /// The message made durable.
    Commit,
    /// Its replies sent, then its end.
    Close,
}

struct Inbound {
    context: Rc<Context>,
    profile: Rc<Profile>,
    client: IpAddr,
    /// Given back just before the last reply leaves, and before the socket closes (it stands before the
    /// connection): a client that reconnects must not meet its own ghost.
    permit: Option<Permit>,
    connection: Connection,
    session: Session,
    message: Option<Message>,
    /// Input that the session has not consumed.
    left: Vec<u8>,
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
    profile: Rc<Profile>,
    connection: Connection,
    client: IpAddr,
    permit: Permit,
) -> impl Future<Output = ()> {
    let now = context.net.now();
    let mut session = Session::new(profile.clone(), client, now);
    if profile.tarpit.is_some() && permit.take_mark(now) {
        session.hold_banner();
    }
    Box::new(Inbound {
        context,
        profile,
        connection,
        client,
        permit: Some(permit),
        session,
        message: None,
        left: Vec::new(),
        reads: 0,
        unsent_acknowledgement: false,
    })
    .run()
}

impl Inbound {
    async fn run(mut self: Box<Self>) {
        // Whether `left` holds input that the session has not looked at.
        let mut pending = false;
        loop {
            let turn = if pending { self.take_left() } else { self.read().await };
            pending = false;
            for reply in self.session.take_refusals() {
                self.context.metrics.count_refusal(reply);
            }
            if self.session.take_tarpitted()
                && let Some(permit) = &self.permit
            {
                permit.mark(self.context.net.now());
            }
            if !self.flush().await {
                if self.unsent_acknowledgement {
                    self.context.metrics.possible_duplicates.client_gone.increment(1);
                }
                return;
            }
            self.unsent_acknowledgement = false;
            match turn {
                Some(Turn::Read) => {}
                Some(Turn::Flush) => pending = true,
                Some(Turn::Commit) => {
                    Box::pin(self.commit()).await;
                    pending = true;
                }
                Some(Turn::Close) => break,
                // The peer has ended, or reset.
                None => return,
            }
            if self.message.as_ref().is_some_and(|message| message.must_spill(&self.context)) {
                Box::pin(self.spill()).await;
            }
        }
        self.connection.linger();
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
            self.connection.set_deadline(self.session.next_deadline());
            // A client that sends as fast as this reads would keep the shard to itself.
            if self.reads >= READS_IN_A_ROW_MAX {
                self.reads = 0;
                self.context.net.next_turn().await;
            }
            match self.connection.ready().await {
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
        match self.connection.read(&mut buffer[start..]) {
            Ok(None) => Some(None),
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
        self.session.handle_resources(self.context.shared.resources_short() || self.context.storage.is_short(now));
        let mut at = 0;
        loop {
            let (consumed, step) = self.session.step(now, &input[at..]);
            at += consumed;
            match step {
                Step::NeedMore => return (at, Turn::Read),
                Step::Flush => return (at, Turn::Flush),
                Step::Commit => return (at, Turn::Commit),
                Step::Close => return (at, Turn::Close),
                Step::Abandon => self.message = None,
                Step::Decide(query) => {
                    let verdict = self.decide(query);
                    self.session.handle_verdict(now, verdict);
                }
                Step::Body(octets) => {
                    self.message.get_or_insert_with(|| Message::begin(&self.context, &self.session)).append(octets);
                }
            }
        }
    }

    fn decide(&self, query: Query<'_>) -> Verdict {
        let context = &*self.context;
        let accepted = match query {
            Query::Sender => {
                let now = context.net.now();
                let within = |permit: &Permit| permit.try_count_message(now, &context.config.limits);
                let accepted = self.permit.as_ref().is_some_and(within);
                return if accepted { Verdict::Accept } else { Verdict::Refuse(Reply::RateExceeded) };
            }
            Query::Recipient(mailbox) => {
                let default = self.profile.default_domain.as_deref().filter(|_| !mailbox.is_postmaster());
                policy::recipient(
                    &context.config.accepted_domains,
                    context.config.relay_from.contains(self.client),
                    mailbox.domain().or(default.map(str::as_bytes)),
                    mailbox.is_postmaster(),
                )
            }
        };
        match accepted {
            RecipientVerdict::Accept => Verdict::Accept,
            RecipientVerdict::RelayDenied => Verdict::Refuse(Reply::UnableToRelay),
        }
    }

    async fn commit(&mut self) {
        self.connection.set_deadline(None);
        let message = self.message.take().unwrap_or_else(|| Message::begin(&self.context, &self.session));
        let result = message.commit(&self.context, &self.session, self.client).await;
        let now = self.context.net.now();
        match result {
            Ok((durable, accepted)) => {
                let metrics = &self.context.metrics;
                let octets = accepted.octets;
                metrics.queue_messages.increment(1.0);
                metrics.queue_bytes.increment(octets as f64);
                let notice = outbound::accept(&self.context, accepted, &|| self.connection.nudge());
                let acknowledgement = match notice {
                    Some(notice) => self.await_verdict(&notice).await,
                    None => Acknowledgement::Accept,
                };
                let now = self.context.net.now();
                match acknowledgement {
                    Acknowledgement::Accept => {
                        self.context.metrics.messages_accepted.increment(1);
                        self.context.metrics.message_bytes_accepted.increment(octets);
                        self.session.handle_durable(now, &durable);
                        self.unsent_acknowledgement = true;
                    }
                    Acknowledgement::Refuse(line) => self.session.handle_refusal(now, &line),
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
        let delay = self.context.config.delivery.ack_delay;
        self.connection.set_deadline(delay.map(|delay| self.context.net.now() + delay));
        let metrics = &self.context.metrics.ack_delays;
        loop {
            if let Some(verdict) = notice.verdict() {
                return verdict;
            }
            let skipped = match self.connection.interrupted().await {
                Ready::Deadline => &metrics.limit,
                Ready::Bell if self.context.shared.stage() != Stage::Serving => &metrics.drain,
                Ready::Bell | Ready::Socket => continue,
            };
            if notice.verdict().is_none() && notice.give_up() {
                skipped.increment(1);
                return Acknowledgement::Accept;
            }
        }
    }

    async fn spill(&mut self) {
        self.connection.set_deadline(None);
        let Some(message) = &mut self.message else { return };
        if let Err(error) = message.spill(&self.context).await {
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
                return true;
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
            self.connection.set_deadline(self.session.next_deadline());
            match self.connection.held().await {
                Ready::Deadline => self.session.handle_time(self.context.net.now()),
                Ready::Bell => {}
                Ready::Socket => return false,
            }
        }
    }

    /// Sends some of the replies, or waits until that is possible; false when it never will be.
    async fn write_some(&mut self) -> bool {
        match self.connection.write(self.session.replies()) {
            Ok(Some(sent)) => {
                self.session.replies_sent(sent);
                true
            }
            Ok(None) => {
                let last = self.context.net.now() + Duration::from_millis(LINGER_MAX_MS);
                let deadline = self.session.next_deadline().filter(|_| self.context.shared.stage() != Stage::Ending);
                self.connection.set_deadline(deadline.or(Some(last)));
                match self.connection.writable().await {
                    Ready::Socket => true,
                    Ready::Deadline if self.session.is_held() => {
                        self.session.handle_time(self.context.net.now());
                        true
                    }
                    Ready::Deadline => false,
                    Ready::Bell => self.context.shared.stage() != Stage::Ending,
                }
            }
            Err(_) => false,
        }
    }
}
