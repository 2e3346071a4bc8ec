//! What must hold, whatever happened.
//!
//! A *message* is what a client wants delivered; a *submission* is one transaction in which it was
//! handed over, and has a reverse-path of its own; a *copy* is what became of one submission in
//! the queue, and has an id. Every copy that was answered with 250 is delivered to each recipient
//! as it was sent, or settled as failed or expired, or still queued. It is delivered once, unless
//! the next hop's reply was lost, or a crash came before the outcome was on stable storage.

use crate::random::Random;
use gatepost::queue::outcome::Status;
use gatepost::smtp::QueueId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A message, and one of its submissions.
pub type Submission = (u64, u64);

/// The reverse-path of a submission.
pub fn reverse_path((message, submission): Submission) -> String {
    format!("m{message}.{submission}@client.test")
}

fn submission_of(reverse_path: &[u8]) -> Option<Submission> {
    let text = std::str::from_utf8(reverse_path).ok()?.strip_prefix('m')?.strip_suffix("@client.test")?;
    let (message, submission) = text.split_once('.')?;
    Some((message.parse().ok()?, submission.parse().ok()?))
}

/// What a client wants delivered.
#[derive(Clone, Debug)]
pub struct Message {
    pub recipients: Vec<String>,
    pub content: Vec<u8>,
}

impl Message {
    /// A message unlike any other.
    pub fn random(number: u64, random: &mut Random) -> Self {
        const DOMAINS: [&str; 4] = ["a.test", "b.test", "c.test", "d.test"];
        let count = random.pick(&[1, 1, 1, 2, 3, 6]);
        let domain = random.pick(&DOMAINS);
        let recipients = (0..count).map(|place| {
            let domain = if random.percent(60) { domain } else { random.pick(&DOMAINS) };
            format!("r{place}@{domain}")
        });
        let recipients = recipients.collect();
        let mut content =
            format!("Subject: message {number}\r\nX-Token: {number:x}-{:x}\r\n\r\n", random.next()).into_bytes();
        let octets = random.pick(&[0, 100, 700, 2000, 6000]) as usize;
        while content.len() < octets {
            if random.percent(10) {
                content.extend_from_slice(random.pick(&[&b"."[..], b"..", b".\r\n.", b"GPrc", b"DATA"]));
            }
            let octet = b'a' + random.below(26) as u8;
            content.resize(content.len() + random.place(70), octet);
            content.extend_from_slice(b"\r\n");
        }
        Message { recipients, content }
    }
}

#[derive(Debug)]
struct Delivery {
    life: u64,
    /// The next hop's 250 came to a living process.
    is_heard: bool,
    /// Its outcome is on stable storage.
    is_recorded: bool,
}

#[derive(Debug)]
struct Copy {
    submission: Submission,
    recipients: Vec<String>,
    /// In which life of the process it was taken.
    life: u64,
    is_acknowledged: bool,
    /// The client was told 452.
    is_refused: bool,
    /// And a segment says so.
    is_void: bool,
    deliveries: Vec<Vec<Delivery>>,
    settled: Vec<Status>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    at_ms: u64,
    life: u64,
    may_repeat: bool,
}

/// How many of what a run had.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub acknowledged: u64,
    pub refused: u64,
    pub delivered: u64,
    pub repeated: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub flips: u64,
    pub failed: u64,
    pub expired: u64,
    pub disk_failures: u64,
    pub used_again: u64,
    pub written_again: u64,
    pub voids: u64,
}

/// Keeps the book.
pub struct Judge {
    pub messages: BTreeMap<u64, Message>,
    copies: BTreeMap<QueueId, Copy>,
    by_submission: BTreeMap<Submission, QueueId>,
    attempts: BTreeMap<(Submission, String), Attempt>,
    refusals: BTreeSet<(Submission, String)>,
    connects: BTreeMap<usize, VecDeque<u64>>,
    /// Copies of which a record was damaged.
    pub damaged: BTreeSet<QueueId>,
    /// A bit has flipped.
    pub has_rot: bool,
    /// The first thing that does not hold.
    pub violation: Option<String>,
    /// 0.8 of the shortest wait.
    shortest_wait_ms: u64,
    connects_max: usize,
    pub tally: Tally,
}

impl Judge {
    pub fn new(shortest_wait_ms: u64, connects_max: usize) -> Self {
        Judge {
            messages: BTreeMap::new(),
            copies: BTreeMap::new(),
            by_submission: BTreeMap::new(),
            attempts: BTreeMap::new(),
            refusals: BTreeSet::new(),
            connects: BTreeMap::new(),
            damaged: BTreeSet::new(),
            has_rot: false,
            violation: None,
            shortest_wait_ms,
            connects_max,
            tally: Tally::default(),
        }
    }

    pub fn blame(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A copy is on its way into the spool.
    pub fn taken(&mut self, id: QueueId, life: u64, reverse_path: &[u8], recipients: Vec<String>) {
        let Some(submission) = submission_of(reverse_path) else {
            return self.blame(format!("{id}: no client has the reverse-path {}", reverse_path.escape_ascii()));
        };
        let count = recipients.len();
        let copy = Copy {
            submission,
            recipients,
            life,
            is_acknowledged: false,
            is_refused: false,
            is_void: false,
            deliveries: (0..count).map(|_| Vec::new()).collect(),
            settled: vec![Status::Pending; count],
        };
        if self.copies.insert(id, copy).is_some() {
            self.blame(format!("{id} was given out twice"));
        }
        self.by_submission.insert(submission, id);
    }

    /// 250 was said.
    pub fn acknowledged(&mut self, id: QueueId) {
        self.tally.acknowledged += 1;
        match self.copies.get_mut(&id) {
            Some(copy) => copy.is_acknowledged = true,
            None => self.blame(format!("{id} was acknowledged, and never taken")),
        }
    }

    /// 452 was said.
    pub fn refused(&mut self, id: QueueId) {
        self.tally.refused += 1;
        if let Some(copy) = self.copies.get_mut(&id) {
            copy.is_refused = true;
        }
    }

    /// A segment was made that says that what failed in this life is void.
    pub fn voided(&mut self, life: u64) {
        self.tally.voids += 1;
        for copy in self.copies.values_mut().filter(|copy| copy.is_refused && copy.life == life) {
            copy.is_void = true;
        }
    }

    /// A next hop has read RCPT.
    pub fn attempted(&mut self, now_ms: u64, life: u64, sender: &[u8], recipient: &str) {
        let Some(submission) = submission_of(sender) else {
            return self.blame(format!("no client has the reverse-path {}", sender.escape_ascii()));
        };
        let attempt = Attempt { at_ms: now_ms, life, may_repeat: false };
        let Some(last) = self.attempts.insert((submission, recipient.to_owned()), attempt) else { return };
        let is_hurried = last.life == life && now_ms - last.at_ms < self.shortest_wait_ms;
        if is_hurried && !last.may_repeat {
            let waited_ms = now_ms - last.at_ms;
            self.blame(format!("{submission:?} was tried again for {recipient} after {waited_ms} ms"));
        }
    }

    /// What came of that attempt may be tried again at once: too many recipients, while others were
    /// delivered.
    pub fn may_repeat(&mut self, sender: &[u8], recipient: &str) {
        let Some(submission) = submission_of(sender) else { return };
        if let Some(attempt) = self.attempts.get_mut(&(submission, recipient.to_owned())) {
            attempt.may_repeat = true;
        }
    }

    /// The recipients of the message that has this reverse-path.
    pub fn recipients_of(&self, sender: &[u8]) -> Vec<String> {
        let message = submission_of(sender).and_then(|(message, _)| self.messages.get(&message));
        message.map_or_else(Vec::new, |message| message.recipients.clone())
    }

    /// A next hop refused a recipient for good.
    pub fn refused_by_next_hop(&mut self, sender: &[u8], recipient: &str) {
        if let Some(submission) = submission_of(sender) {
            self.refusals.insert((submission, recipient.to_owned()));
        }
    }

    /// A connection to a next hop that has no other failed.
    pub fn failed_connect(&mut self, now_ms: u64, next_hop: usize) {
        let connects = self.connects.entry(next_hop).or_default();
        connects.push_back(now_ms);
        while connects.front().is_some_and(|&at_ms| at_ms + self.shortest_wait_ms <= now_ms) {
            connects.pop_front();
        }
        let count = connects.len();
        if count > self.connects_max {
            let within_ms = self.shortest_wait_ms;
            self.blame(format!("{count} connections to next hop {next_hop} within {within_ms} ms, and all failed"));
        }
    }

    /// The process has ended: it forgets its waits.
    pub fn crashed(&mut self) {
        self.connects.clear();
    }

    /// A next hop has taken a message. Returns the copy and the places of its recipients, by which
    /// [`Self::heard`] is told.
    pub fn delivered(&mut self, life: u64, sender: &[u8], recipients: &[String], content: &[u8]) -> Option<Taken> {
        let taken = self.find(sender, content);
        let (id, submission) = match taken {
            Ok(found) => found,
            Err(what) => {
                self.blame(what);
                return None;
            }
        };
        let is_damaged = self.damaged.contains(&id);
        let mut blame = None;
        let copy = self.copies.get_mut(&id)?;
        let is_known = copy.is_acknowledged || (copy.life != life);
        if !is_known || (copy.is_refused && copy.life == life) {
            blame = Some(format!("{id} was delivered, and its client never had a 250"));
        }
        if copy.is_void && !self.has_rot {
            blame = Some(format!("{id} was delivered, and a segment says that it is void"));
        }
        let mut places = Vec::new();
        for recipient in recipients {
            let Some(place) = copy.recipients.iter().position(|known| known == recipient) else {
                blame = Some(format!("{id} {submission:?} was delivered to {recipient}, who is no recipient of it"));
                continue;
            };
            let deliveries = &mut copy.deliveries[place];
            if let Some(last) = deliveries.last() {
                self.tally.repeated += 1;
                let is_explained = !last.is_heard || (last.life != life && !last.is_recorded) || is_damaged;
                if !is_explained {
                    blame = Some(format!(
                        "{id} {submission:?} was delivered again to {recipient}: {last:?}, now life {life}"
                    ));
                }
            }
            self.tally.delivered += 1;
            deliveries.push(Delivery { life, is_heard: false, is_recorded: false });
            places.push(place);
        }
        blame.into_iter().for_each(|what| self.blame(what));
        Some(Taken { id, places })
    }

    fn find(&self, sender: &[u8], content: &[u8]) -> Result<(QueueId, Submission), String> {
        let strange = |what: &str| format!("{what}: from {}: {}", sender.escape_ascii(), content.escape_ascii());
        let submission = submission_of(sender).ok_or_else(|| strange("no client has this reverse-path"))?;
        let text = std::str::from_utf8(content).map_err(|_| strange("not what a client sent"))?;
        // The Received field, which is folded twice.
        let mut end = 0;
        for _ in 0..3 {
            end += text[end..].find("\r\n").ok_or_else(|| strange("no Received field"))? + 2;
        }
        let (field, rest) = text.split_at(end);
        let id = field.split_once(" id ").and_then(|(_, id)| QueueId::parse(id.get(..11)?));
        let id = id.ok_or_else(|| strange("no id"))?;
        let message = self.messages.get(&submission.0).ok_or_else(|| strange("nobody sent this"))?;
        if rest.as_bytes() != message.content {
            return Err(strange(&format!("{id}: not what its client sent")));
        }
        match self.copies.get(&id) {
            Some(copy) if copy.submission == submission => Ok((id, submission)),
            _ => Err(strange(&format!("{id} belongs to another message"))),
        }
    }

    /// The next hop's 250 has come to a living process.
    pub fn heard(&mut self, taken: &Taken) {
        if let Some(copy) = self.copies.get_mut(&taken.id) {
            for &place in &taken.places {
                if let Some(delivery) = copy.deliveries[place].last_mut() {
                    delivery.is_heard = true;
                }
            }
        }
    }

    /// An outcome is on stable storage.
    pub fn recorded(&mut self, id: QueueId, place: usize, status: Status) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        let Some(deliveries) = copy.deliveries.get_mut(place) else { return };
        if status == Status::Delivered {
            deliveries.iter_mut().for_each(|delivery| delivery.is_recorded = true);
        }
        copy.settled[place] = status;
    }

    /// The end: `listed` is what the spool says, by id: a status for each recipient.
    pub fn close(&mut self, listed: &BTreeMap<QueueId, Vec<Status>>, now_unix_ms: u64, lifetime_ms: u64) {
        let mut blames = Vec::new();
        for (id, copy) in &self.copies {
            for (place, recipient) in copy.recipients.iter().enumerate() {
                let listed = listed.get(id).and_then(|statuses| statuses.get(place)).copied();
                let is_delivered = !copy.deliveries[place].is_empty();
                let who = || format!("{id} {:?} for {recipient}", copy.submission);
                match listed {
                    _ if self.damaged.contains(id) => {}
                    None if copy.is_acknowledged && !is_delivered => {
                        blames.push(format!("{} was acknowledged, and is lost", who()))
                    }
                    None => {}
                    Some(Status::Delivered) if !is_delivered => {
                        blames.push(format!("{} counts as delivered, and was not", who()))
                    }
                    Some(Status::Failed) => {
                        self.tally.failed += 1;
                        if !self.refusals.contains(&(copy.submission, recipient.clone())) {
                            blames.push(format!("{} counts as refused, and was not", who()));
                        }
                    }
                    Some(Status::Expired) => {
                        self.tally.expired += 1;
                        if id.unix_ms() + lifetime_ms > now_unix_ms {
                            blames.push(format!("{} counts as too old, and is not", who()));
                        }
                    }
                    Some(Status::Withdrawn) => {
                        blames.push(format!("{} was withdrawn, and its client has a 250", who()))
                    }
                    Some(Status::Pending) => blames.push(format!("{} waits, though every next hop works", who())),
                    Some(Status::Delivered) => {}
                }
            }
        }
        blames.into_iter().for_each(|what| self.blame(what));
    }
}

/// A message that a next hop has taken.
#[derive(Clone, Debug)]
pub struct Taken {
    id: QueueId,
    places: Vec<usize>,
}
