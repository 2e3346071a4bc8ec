//! What one thread of the sink notes: messages, ids, refusals, and which messages were taken without their reply.
//!
//! A message is noted when its content is complete, before its reply leaves: a sink that is killed has listed what it
//! took. When the reply could not be written, because a fault forbade it or the client had left, a second line of the
//! record says `taken, unanswered`: the client has to send such a message again, and the copy is no fault of its own.
//! That holds for the next copy only; once a copy was answered, any further one is a duplicate like others.
//!
//! ```text
//! run-0000000007 intact 1792540800.123456 3 gateway.example 2     or altered; connection, EHLO, recipients
//! run-0000000007 taken, unanswered 1792540800.223456 3 gateway.example
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::dump::{Directory, Dump, Envelope};
use super::faults::{Action, Faults, Verb};
use super::offer::Offer;
use crate::audit::Tally;
use crate::fault::Fault;
use crate::id::{IdSet, digits, parse_id};
use crate::ledger::Ledger;
use crate::message::verify::{Condition, Verdict};

/// Refusals and faults by verb; the last is for what is no verb of [`Verb`].
pub type ByVerb = [u64; Verb::ALL.len() + 1];

/// Counts besides the messages.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Accepted MAIL commands.
    pub transactions: u64,
    /// The most of them on one connection.
    pub transactions_max: u64,
    /// Messages taken whose reply was not written.
    pub unanswered: u64,
    /// Copies that came after such a one.
    pub after_unanswered: u64,
    /// Replies 4yz and 5yz.
    pub refusals: ByVerb,
    /// Faults that acted.
    pub faults: ByVerb,
}

impl Counts {
    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        self.transactions += other.transactions;
        self.transactions_max = self.transactions_max.max(other.transactions_max);
        self.unanswered += other.unanswered;
        self.after_unanswered += other.after_unanswered;
        for (sums, others) in [(&mut self.refusals, &other.refusals), (&mut self.faults, &other.faults)] {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
    }
}

/// The ids whose last copy was taken without its reply; shared by all threads, and locked only when there are any.
#[derive(Debug, Default)]
pub struct Unanswered {
    any: AtomicBool,
    ids: Mutex<IdSet>,
}

impl Unanswered {
    fn with<R>(&self, visit: impl FnOnce(&mut IdSet) -> R) -> Option<R> {
        self.any.load(Ordering::Acquire).then(|| visit(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn insert(&self, run: &str, number: u64) {
        self.any.store(true, Ordering::Release);
        self.with(|ids| ids.insert(run, number));
    }
}

/// What a thread notes of its messages.
#[derive(Debug)]
pub struct Books {
    tally: Tally,
    counts: Counts,
    ledger: Option<Ledger>,
    directory: Option<Arc<Directory>>,
    unanswered: Arc<Unanswered>,
    offer: Arc<Offer>,
    faults: Arc<Faults>,
    fault: Option<Fault>,
}

impl Books {
    /// Empty books.
    pub fn new(
        offer: Arc<Offer>,
        faults: Arc<Faults>,
        unanswered: Arc<Unanswered>,
        ledger: Option<Ledger>,
        directory: Option<Arc<Directory>>,
    ) -> Self {
        let (tally, counts) = (Tally::default(), Counts::default());
        Self { tally, counts, ledger, directory, unanswered, offer, faults, fault: None }
    }

    /// What is offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Changes what goes wrong.
    pub fn set_faults(&mut self, faults: Arc<Faults>) {
        self.faults = faults;
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.tally.messages()
    }

    /// Counts an accepted MAIL, the so manieth on its connection.
    pub fn note_transaction(&mut self, number: u64) {
        self.counts.transactions += 1;
        self.counts.transactions_max = self.counts.transactions_max.max(number);
    }

    /// Counts a refusal.
    pub fn note_refusal(&mut self, verb: Option<Verb>) {
        self.counts.refusals[verb.map_or(Verb::ALL.len(), |verb| verb as usize)] += 1;
    }

    /// Counts a fault, which may be a refusal too.
    pub fn note_action(&mut self, verb: Verb, action: &Action) {
        self.counts.faults[verb as usize] += 1;
        if matches!(action, Action::Reply { .. }) {
            self.note_refusal(Some(verb));
        }
    }

    /// Counts a message, lists its id, and appends it to `owed` for as long as its reply is not written.
    pub fn note(&mut self, verdict: Verdict<'_>, octets: u64, envelope: &Envelope, owed: &mut Vec<u8>) {
        self.tally.note(verdict, octets);
        let Verdict::Ours { run, number, condition } = verdict else { return };
        if self.unanswered.with(|ids| ids.contains(run, number)) == Some(true) {
            self.counts.after_unanswered += 1;
        }
        if let Some(ledger) = &mut self.ledger {
            let condition = if condition == Condition::Intact { "intact" } else { "altered" };
            let remark = format!("{condition} {} {} {}", now(), envelope.origin(), envelope.recipients());
            ledger.note_id(run, &digits(number), remark.as_bytes());
        }
        for part in [run.as_bytes(), b"-", &digits(number), b"\n"] {
            owed.extend_from_slice(part);
        }
    }

    /// The replies of these messages are known not to be written yet: a copy that comes meanwhile is the sink's fault.
    pub fn delay(&self, owed: &[u8]) {
        ids(owed).for_each(|(run, number)| self.unanswered.insert(run, number));
    }

    /// The replies of these messages are about to be written: said before they are, because the client may send a copy
    /// to another thread as soon as it has read them.
    pub fn answered(&self, owed: &[u8]) {
        if !owed.is_empty() {
            self.unanswered.with(|set| ids(owed).for_each(|(run, number)| set.remove(run, number)));
        }
    }

    /// The replies of these messages will never be written.
    pub fn unanswered(&mut self, owed: &mut Vec<u8>, envelope: &Envelope) {
        self.delay(owed);
        for (run, number) in ids(owed) {
            self.counts.unanswered += 1;
            if let Some(ledger) = &mut self.ledger {
                let remark = format!("taken, unanswered {} {}", now(), envelope.origin());
                ledger.note_id(run, &digits(number), remark.as_bytes());
            }
        }
        owed.clear();
    }

    /// Writes the listed ids.
    pub fn flush(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            ledger.flush();
        }
    }

    /// Ends the record.
    pub fn close_ledger(&mut self) -> std::io::Result<()> {
        self.ledger.take().map_or(Ok(()), Ledger::close)
    }

    /// Keeps the first failure to store something.
    pub fn note_fault(&mut self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.fault.get_or_insert(fault);
        }
    }

    /// Whether messages are stored.
    pub fn dumps(&self) -> bool {
        self.directory.is_some()
    }

    /// Begins to store a message.
    pub fn begin_dump(&mut self) -> Option<Dump> {
        match self.directory.as_ref()?.begin() {
            Ok(dump) => Some(dump),
            Err(fault) => {
                self.note_fault(Err(fault));
                None
            }
        }
    }

    /// What was received, or the first failure to store it.
    pub fn close(self) -> Result<(Tally, Counts), Fault> {
        self.fault.map_or(Ok((self.tally, self.counts)), Err)
    }
}

/// Seconds since the Unix epoch.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", since.as_secs(), since.subsec_micros())
}

fn ids(owed: &[u8]) -> impl Iterator<Item = (&str, u64)> {
    owed.split(|octet| *octet == b'\n').filter_map(parse_id)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Books without files.
    pub fn books(offer: Offer, faults: Faults) -> Books {
        Books::new(Arc::new(offer), Arc::new(faults), Arc::default(), None, None)
    }

    fn ours(number: u64) -> Verdict<'static> {
        Verdict::Ours { run: "r", number, condition: Condition::Intact }
    }

    #[test]
    fn only_the_copy_behind_an_unanswered_one_is_excused() {
        let mut books = books(Offer::new("h", &[], 0), Faults::default());
        let (mut owed, envelope) = (Vec::new(), Envelope::new(String::new(), 1));
        books.note(ours(1), 1, &envelope, &mut owed);
        books.answered(&owed);
        owed.clear();
        // A copy after an answered one, lost itself, then one that is excused, then one that is not.
        for (excused, answered) in [(0, false), (1, true), (1, true), (1, false), (2, false), (3, true)] {
            books.note(ours(1), 1, &envelope, &mut owed);
            assert_eq!(owed, b"r-0000000001\n");
            assert_eq!(books.counts.after_unanswered, excused);
            if answered {
                books.answered(&owed);
                owed.clear();
            } else {
                books.unanswered(&mut owed, &envelope);
            }
            assert!(owed.is_empty());
        }
        books.note(ours(2), 1, &envelope, &mut owed);
        let (tally, counts) = books.close().unwrap();
        assert_eq!((counts.after_unanswered, counts.unanswered), (3, 3));
        assert_eq!(tally.report(None).duplicated, 6);
    }

    #[test]
    fn a_reply_that_is_late_excuses_until_it_is_written() {
        let mut books = books(Offer::new("h", &[], 0), Faults::default());
        let (mut owed, mut other) = (Vec::new(), Vec::new());
        let envelope = Envelope::new(String::new(), 1);
        books.note(ours(1), 1, &envelope, &mut owed);
        books.delay(&owed);
        books.note(ours(1), 1, &envelope, &mut other);
        assert_eq!(books.counts.after_unanswered, 1);
        books.answered(&owed);
        books.note(ours(1), 1, &envelope, &mut other);
        assert_eq!((books.counts.after_unanswered, books.counts.unanswered), (1, 0));
    }

    #[test]
    fn counts_add_up() {
        let mut one = Counts { transactions: 1, transactions_max: 1, ..Counts::default() };
        let mut two = Counts { transactions: 5, transactions_max: 3, unanswered: 2, ..Counts::default() };
        two.refusals[Verb::Rcpt as usize] = 7;
        one.merge(&two);
        one.merge(&two);
        assert_eq!((one.transactions, one.transactions_max, one.unanswered), (11, 3, 4));
        assert_eq!((one.refusals[Verb::Rcpt as usize], one.faults), (14, ByVerb::default()));
    }
}
