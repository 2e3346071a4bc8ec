//! A client session: opens connections and takes messages through them until the run has no more.
//!
//! A refused or interrupted message is counted and given up, unless `--retries` allows to send it again under its id,
//! which is only done when the server cannot have taken it: after 4yz, or when the connection broke before the final
//! dot left. A message without a reply to its final dot is never sent again, so that every duplicate at the other end
//! is the server's. A session that cannot be opened is tried again after a delay that doubles.

use std::sync::Arc;
use std::time::Instant;

use super::lane;
use super::plan::{Envelope, Plan};
use super::run::Run;
use super::stats::{Breakage, Failure, Step, record};
use super::wire::Wire;
use crate::id::{NUMBER_DIGITS, digits};
use crate::message::template::Cursor;

/// Code of a reply after which the server closes the connection.
const CLOSING: u16 = 421;

/// What the server offers in its reply to EHLO.
#[derive(Debug, Default, Clone, Copy)]
struct Offers {
    pipelining: bool,
    size: bool,
}

/// One of the run's concurrent sessions.
pub struct Session {
    plan: Arc<Plan>,
    run: Arc<Run>,
    wire: Wire,
    offers: Offers,
    /// Messages that may still go through this connection.
    left: u64,
    chunk: Vec<u8>,
}

impl Session {
    /// A session that has not begun.
    pub fn new(plan: Arc<Plan>, run: Arc<Run>) -> Self {
        let wire = Wire::new(plan.timeout);
        Self { plan, run, wire, offers: Offers::default(), left: 0, chunk: Vec::new() }
    }

    /// Sends messages until there are no more.
    pub async fn work(mut self) {
        while let Some(number) = self.run.claim(Instant::now()) {
            if !self.message(number).await {
                return;
            }
            if self.left == 0 && self.wire.is_open() {
                self.quit().await;
            }
        }
        if self.wire.is_open() {
            self.quit().await;
        }
    }

    /// Takes one message to its outcome. False when the run ended before it could be sent.
    async fn message(&mut self, number: u64) -> bool {
        let digits = digits(number);
        for attempt in 0u64.. {
            if !self.ready().await {
                if attempt > 0 {
                    lane::with(|lane| lane.stats.interrupted += 1);
                }
                return false;
            }
            lane::with(|lane| match attempt {
                0 => lane.stats.sent += 1,
                _ => lane.stats.retries += 1,
            });
            self.left -= 1;
            let Err(failure) = self.transaction(&digits).await else { return true };
            self.run.note_error();
            let again = attempt < self.plan.retries && may_repeat(failure);
            lane::with(|lane| {
                // Refused recipients have been counted one by one.
                if !matches!(failure, Failure::Refused(Step::Rcpt, _)) {
                    lane.stats.note(failure);
                }
                if !again {
                    match failure {
                        Failure::Refused(..) => lane.stats.refused += 1,
                        Failure::Broken(Step::FinalDot, _) => lane.stats.unacknowledged += 1,
                        Failure::Broken(..) => lane.stats.interrupted += 1,
                    }
                }
            });
            self.recover(failure).await;
            if !again {
                break;
            }
        }
        true
    }

    /// Leaves a session fit for the next message, or closes it.
    async fn recover(&mut self, failure: Failure) {
        match failure {
            Failure::Refused(_, CLOSING) | Failure::Broken(..) => self.wire.close(),
            // The transaction is still open: its recipients must not be the next message's.
            Failure::Refused(Step::Rcpt | Step::Data, _) => {
                if let Err(failure) = self.command(Step::Rset, b"RSET\r\n").await {
                    lane::with(|lane| lane.stats.note(failure));
                    self.wire.close();
                }
            }
            Failure::Refused(..) => {}
        }
    }

    /// Opens a connection if there is none. False when the run ended meanwhile.
    async fn ready(&mut self) -> bool {
        let mut delay = self.plan.retry_delay;
        while !self.wire.is_open() {
            if self.run.stopped().is_some() {
                return false;
            }
            let Err(failure) = self.open().await else { return true };
            self.wire.close();
            lane::with(|lane| lane.stats.note(failure));
            self.run.note_error();
            self.run.note_unopened(Instant::now());
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(self.plan.retry_delay_max);
        }
        true
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let plan = self.plan.clone();
        let began = Instant::now();
        self.wire.connect(plan.target, plan.sources.next()).await.map_err(broken(Step::Connect))?;
        self.wire.extend();
        self.positive(Step::Greeting).await?;
        let greeted = Instant::now();
        self.wire.send(&plan.ehlo).await.map_err(broken(Step::Ehlo))?;
        let reply = self.wire.reply().await.map_err(broken(Step::Ehlo))?;
        self.offers = Offers::default();
        match reply.code {
            250 => {
                for line in reply.lines().skip(1) {
                    let keyword = line.split(|octet| *octet == b' ').next().unwrap_or_default();
                    self.offers.pipelining |= keyword.eq_ignore_ascii_case(b"PIPELINING");
                    self.offers.size |= keyword.eq_ignore_ascii_case(b"SIZE");
                }
            }
            500..=599 => self.command(Step::Ehlo, &plan.helo).await?,
            code => return Err(Failure::Refused(Step::Ehlo, code)),
        }
        self.left = plan.messages_per_connection;
        self.run.note_opened(Instant::now());
        lane::with(|lane| {
            lane.stats.connections += 1;
            record(&mut lane.stats.connect, greeted - began);
        });
        Ok(())
    }

    async fn transaction(&mut self, number: &[u8; NUMBER_DIGITS]) -> Result<(), Failure> {
        let plan = self.plan.clone();
        let envelope = if self.offers.size { &plan.envelope_with_size } else { &plan.envelope };
        let began = Instant::now();
        if plan.pipelining && self.offers.pipelining {
            self.envelope_at_once(envelope).await?;
        } else {
            self.envelope_by_steps(envelope).await?;
        }
        let mut cursor = Cursor::default();
        while !plan.template.chunk(number, &mut cursor, &mut self.chunk) {
            self.wire.send(&self.chunk).await.map_err(broken(Step::Content))?;
        }
        let ending = Instant::now();
        self.wire.send(&self.chunk).await.map_err(broken(Step::FinalDot))?;
        let reply = self.wire.reply().await.map_err(broken(Step::FinalDot))?;
        if !reply.is_positive() {
            return Err(Failure::Refused(Step::FinalDot, reply.code));
        }
        let ended = Instant::now();
        lane::with(|lane| {
            lane.accepted(&plan.run_id, number, || reply.queue_id());
            record(&mut lane.stats.transaction, ended - began);
            record(&mut lane.stats.final_dot, ended - ending);
        });
        Ok(())
    }

    async fn envelope_by_steps(&mut self, envelope: &Envelope) -> Result<(), Failure> {
        self.command(Step::Mail, envelope.mail()).await?;
        let mut refusals = Refusals::default();
        for index in 0..envelope.recipients() {
            refusals.add(self.command(Step::Rcpt, envelope.rcpt(index)).await)?;
        }
        if let Some(failure) = refusals.all(envelope) {
            return Err(failure);
        }
        self.wire.send(b"DATA\r\n").await.map_err(broken(Step::Data))?;
        self.go_ahead().await?;
        refusals.settle();
        Ok(())
    }

    /// RFC 2920: replies come one by one; a DATA without a valid recipient may still get 354 and then needs its dot.
    async fn envelope_at_once(&mut self, envelope: &Envelope) -> Result<(), Failure> {
        self.wire.send(envelope.all()).await.map_err(broken(Step::Mail))?;
        let mail = self.positive(Step::Mail).await;
        stay(mail)?;
        let mut refusals = Refusals::default();
        for _ in 0..envelope.recipients() {
            self.wire.extend();
            refusals.add(self.positive(Step::Rcpt).await)?;
        }
        self.wire.extend();
        let data = self.go_ahead().await;
        stay(data)?;
        if let Some(failure) = mail.err().or_else(|| refusals.all(envelope)) {
            if data.is_ok() {
                // Whatever the server says to an empty message without recipients, it has taken none.
                self.wire.send(b".\r\n").await.map_err(broken(Step::Data))?;
                self.wire.reply().await.map_err(broken(Step::Data))?;
            }
            return Err(failure);
        }
        data?;
        refusals.settle();
        Ok(())
    }

    async fn quit(&mut self) {
        if let Err(failure) = self.command(Step::Quit, b"QUIT\r\n").await {
            lane::with(|lane| lane.stats.note(failure));
        }
        self.wire.close();
    }

    async fn command(&mut self, step: Step, command: &[u8]) -> Result<(), Failure> {
        self.wire.send(command).await.map_err(broken(step))?;
        self.positive(step).await
    }

    async fn positive(&mut self, step: Step) -> Result<(), Failure> {
        let reply = self.wire.reply().await.map_err(broken(step))?;
        if reply.is_positive() { Ok(()) } else { Err(Failure::Refused(step, reply.code)) }
    }

    async fn go_ahead(&mut self) -> Result<(), Failure> {
        let reply = self.wire.reply().await.map_err(broken(Step::Data))?;
        if reply.code == 354 { Ok(()) } else { Err(Failure::Refused(Step::Data, reply.code)) }
    }
}

/// Recipients refused in one envelope.
#[derive(Default)]
struct Refusals {
    count: usize,
    last_code: u16,
}

impl Refusals {
    /// Notes the result of one RCPT. An error is the end of the connection.
    fn add(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(failure @ Failure::Refused(step, code)) = result {
            self.count += 1;
            self.last_code = code;
            lane::with(|lane| lane.stats.note(Failure::Refused(step, code)));
            if code == CLOSING {
                return Err(failure);
            }
            return Ok(());
        }
        result
    }

    /// The failure of the message when no recipient is left.
    fn all(&self, envelope: &Envelope) -> Option<Failure> {
        (self.count == envelope.recipients()).then_some(Failure::Refused(Step::Rcpt, self.last_code))
    }

    /// Counts the refused recipients of a message that goes on without them.
    fn settle(&self) {
        if self.count > 0 {
            lane::with(|lane| lane.stats.recipients_refused += self.count as u64);
        }
    }
}

fn may_repeat(failure: Failure) -> bool {
    match failure {
        Failure::Refused(_, code) => code / 100 == 4,
        Failure::Broken(step, _) => step != Step::FinalDot,
    }
}

/// Lets a refusal pass for now, as replies to later commands of the group are still to be read.
fn stay(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure @ (Failure::Broken(..) | Failure::Refused(_, CLOSING))) => Err(failure),
        _ => Ok(()),
    }
}

fn broken(step: Step) -> impl Fn(Breakage) -> Failure {
    move |breakage| Failure::Broken(step, breakage)
}
