//! The queue in memory: which messages there are, what of them is still to be delivered, and when.
//!
//! A message's recipients wait in lanes, one per route: a lane is a first-in-first-out list of
//! jobs, and a job is one message in one lane. A job is taken with [`Schedule::next`], and then
//! deferred, put back, or ended; so it is in one place only, and two deliveries of one message in
//! one lane never overlap. What waits costs at most 128 octets a message with one lane: envelopes
//! and contents are read from the spool at the attempt, unless the driver still has them (`H`).
//!
//! It also keeps the account of the segments (`segments`).
//!
//! Methods in order: construction and messages, lanes, outcomes, segments.

mod segments;

use super::outcome::{Settled, Status, Statuses};
use super::recover::{FoundSegment, Live, Spare};
use super::spool::Location;
use crate::limits::{REWRITE_STEP_MESSAGES, REWRITE_STEP_OCTETS};
use crate::smtp::QueueId;
use segments::Segments;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

/// A message's place in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKey(u32);

/// One message in one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// The message.
    pub message: MessageKey,
    /// The lane.
    pub lane: u16,
    /// Attempts that failed so far.
    pub attempts: u16,
}

/// What the schedule knows of a message.
#[derive(Debug)]
pub struct Message<H> {
    /// Its id.
    pub id: QueueId,
    /// Where its record is.
    pub location: Location,
    /// Octets of the message.
    pub octets: u64,
    /// What the driver still has of it.
    pub hot: Option<Rc<H>>,
    /// How many recipients it has.
    pub recipients: u32,
    /// Whether it is in a spill file.
    pub spilled: bool,
    /// What became of its recipients.
    pub statuses: Statuses,
    /// Jobs that have not ended.
    jobs: u16,
    /// Outcomes that are not on stable storage yet, and whether it is written again.
    unrecorded: u16,
}

/// With its places in a lane and among the arrivals, both of which may have grown by doubling.
const _: () = assert!(
    size_of::<Message<()>>() + size_of::<usize>() + 2 * size_of::<(u64, Job)>() + size_of::<(MessageKey, QueueId)>()
        <= 128
);
/// Below so many arrivals nobody looks which of them are gone.
const ARRIVALS_KEPT: usize = 64;

impl<H> Message<H> {
    /// What has become of a recipient.
    pub fn status(&self, recipient: usize) -> Status {
        self.statuses.of(recipient).0
    }

    /// Milliseconds since the Unix epoch of its arrival: ids are made of them.
    pub fn arrived_unix_ms(&self) -> u64 {
        self.id.unix_ms()
    }
}

/// A message that is done with; what it took can be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: QueueId,
    /// Octets of the message.
    pub octets: u64,
    /// Whether there is a spill file to remove.
    pub spilled: bool,
    /// It was the last one needed in its segment.
    pub emptied_segment: bool,
}

/// The queue of one shard.
#[derive(Debug)]
pub struct Schedule<H> {
    messages: Slab<Message<H>>,
    lanes: Vec<VecDeque<Job>>,
    deferred: BinaryHeap<Reverse<(u64, Job)>>,
    segments: Segments,
    /// Messages in the order of their arrival, with some that are gone.
    arrivals: VecDeque<(MessageKey, QueueId)>,
    /// Jobs in lanes, and jobs that have not ended.
    ready: usize,
    jobs: usize,
    /// Messages with jobs.
    busy: usize,
}

/// How much there is in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Jobs that wait for their turn.
    pub ready: usize,
    /// Jobs that were taken.
    pub active: usize,
    /// Jobs that wait for their next try.
    pub deferred: usize,
    /// Messages for which nothing is tried: without a lane, or with a report owed.
    pub idle_messages: usize,
    /// Segments that are needed or written to.
    pub segments: usize,
    /// Octets of their files.
    pub segment_octets: u64,
    /// Octets of the records in them of messages that are in the queue.
    pub live_octets: u64,
}

impl<H> Schedule<H> {
    /// An empty queue with this many lanes.
    pub fn new(lanes: usize) -> Self {
        Schedule {
            messages: Slab::new(),
            lanes: (0..lanes).map(|_| VecDeque::new()).collect(),
            deferred: BinaryHeap::new(),
            segments: Segments::default(),
            arrivals: VecDeque::new(),
            ready: 0,
            jobs: 0,
            busy: 0,
        }
    }

    /// Adds what recovery found.
    pub fn resume(&mut self, live: Vec<Live>, segments: Vec<FoundSegment>) {
        self.segments.resume(segments);
        self.messages.reserve(live.len());
        for message in live {
            let lanes = message.lanes;
            let key = self.insert(Message {
                id: message.id,
                location: message.location,
                octets: message.message_octets,
                hot: None,
                recipients: message.recipients,
                spilled: message.spilled,
                statuses: message.statuses,
                jobs: 0,
                unrecorded: 0,
            });
            self.enqueue(key, &lanes);
        }
    }

    /// Adds a message that was made durable just now. Its jobs are begun by [`Self::enqueue`].
    pub fn add(
        &mut self,
        id: QueueId,
        location: Location,
        octets: u64,
        spilled: bool,
        recipients: u32,
        hot: Option<Rc<H>>,
    ) -> MessageKey {
        let statuses = Statuses::default();
        self.insert(Message { id, location, octets, hot, recipients, spilled, statuses, jobs: 0, unrecorded: 0 })
    }

    fn insert(&mut self, message: Message<H>) -> MessageKey {
        self.segments.add(message.location);
        let id = message.id;
        // 2^32 messages would take 300 GB.
        let key = MessageKey(self.messages.insert(message) as u32);
        self.note_arrival(key, id);
        key
    }

    /// Puts a message at the end of these lanes.
    pub fn enqueue(&mut self, key: MessageKey, lanes: &[u16]) {
        for &lane in lanes {
            if let (Some(message), Some(queue)) =
                (self.messages.get_mut(key.0 as usize), self.lanes.get_mut(usize::from(lane)))
            {
                self.busy += usize::from(message.jobs == 0);
                self.jobs += 1;
                self.ready += 1;
                message.jobs += 1;
                queue.push_back(Job { message: key, lane, attempts: 0 });
            }
        }
    }

    /// How much there is.
    pub fn figures(&self) -> Figures {
        Figures {
            ready: self.ready,
            active: self.jobs - self.ready - self.deferred.len(),
            deferred: self.deferred.len(),
            idle_messages: self.messages.len() - self.busy,
            segments: self.segments.len(),
            segment_octets: self.segments.octets(),
            live_octets: self.segments.live_octets(),
        }
    }

    /// The message that arrived first. Those that are gone are forgotten on the way.
    pub fn oldest(&mut self) -> Option<&Message<H>> {
        while let Some(&(key, id)) = self.arrivals.front() {
            if self.messages.get(key.0 as usize).is_some_and(|message| message.id == id) {
                return self.message(key);
            }
            self.arrivals.pop_front();
        }
        None
    }

    /// Messages behind one that stays come and go: what is gone may not pile up.
    fn note_arrival(&mut self, key: MessageKey, id: QueueId) {
        if self.arrivals.len() >= 2 * self.messages.len().max(ARRIVALS_KEPT) {
            let messages = &self.messages;
            self.arrivals.retain(|(key, id)| messages.get(key.0 as usize).is_some_and(|message| message.id == *id));
        }
        self.arrivals.push_back((key, id));
    }

    /// A message that is in the queue.
    pub fn message(&self, key: MessageKey) -> Option<&Message<H>> {
        self.messages.get(key.0 as usize)
    }

    /// Lets go of what the driver still has of a message.
    pub fn cool(&mut self, key: MessageKey) -> Option<Rc<H>> {
        self.messages.get_mut(key.0 as usize)?.hot.take()
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// How many jobs wait in a lane, to be taken now.
    pub fn waiting(&self, lane: u16) -> usize {
        self.lanes.get(usize::from(lane)).map_or(0, VecDeque::len)
    }

    /// Takes the next job of a lane.
    pub fn next(&mut self, lane: u16) -> Option<Job> {
        let job = self.lanes.get_mut(usize::from(lane))?.pop_front()?;
        self.ready -= 1;
        Some(job)
    }

    /// The job that [`Self::next`] would take.
    pub fn peek(&self, lane: u16) -> Option<Job> {
        self.lanes.get(usize::from(lane))?.front().copied()
    }

    /// Puts a job back where it was taken: it was not its turn.
    pub fn put_back(&mut self, job: Job) {
        if let Some(queue) = self.lanes.get_mut(usize::from(job.lane)) {
            queue.push_front(job);
            self.ready += 1;
        }
    }

    /// Lets a job wait until `due_ms`.
    pub fn defer(&mut self, job: Job, due_ms: u64) {
        self.deferred.push(Reverse((due_ms, Job { attempts: job.attempts.saturating_add(1), ..job })));
    }

    /// Moves the jobs whose time has come to their lanes.
    pub fn release_due(&mut self, now_ms: u64) {
        while let Some(&Reverse((due_ms, job))) = self.deferred.peek()
            && due_ms <= now_ms
        {
            self.deferred.pop();
            if let Some(queue) = self.lanes.get_mut(usize::from(job.lane)) {
                queue.push_back(job);
                self.ready += 1;
            }
        }
    }

    /// When [`Self::release_due`] has something to do.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.deferred.peek().map(|Reverse((due_ms, _))| *due_ms)
    }

    /// Notes what became of recipients; an outcome that says so must be written, and
    /// [`Self::recorded`] called when it is on stable storage. Those that are settled stay as they
    /// are.
    pub fn settle<R: AsRef<str>>(&mut self, key: MessageKey, settled: &[Settled<R>]) {
        let Some(message) = self.messages.get_mut(key.0 as usize) else { return };
        message.unrecorded += 1;
        for one in settled {
            let place = one.recipient as usize;
            message.statuses.settle(message.recipients as usize, place, one.status, one.reply.as_ref());
        }
    }

    /// Takes a message back whose recipients were all refused: the client is told instead.
    pub fn withdraw(&mut self, key: MessageKey) {
        if let Some(message) = self.messages.get_mut(key.0 as usize) {
            message.statuses.settle_rest(message.recipients as usize, Status::Withdrawn, "");
        }
    }

    /// Notes that an outcome about this message is in the segment with this generation.
    pub fn outcome_is_in(&mut self, key: MessageKey, generation: u64) {
        if let Some(message) = self.messages.get(key.0 as usize) {
            self.segments.note_settles(generation, message.location.generation);
        }
    }

    /// Ends a job: nothing is left to be done for the message in this lane.
    pub fn end(&mut self, job: Job) -> Option<Finished> {
        let message = self.messages.get_mut(job.message.0 as usize)?;
        message.jobs = message.jobs.saturating_sub(1);
        self.jobs -= 1;
        if message.jobs == 0 {
            self.busy -= 1;
            message.hot = None;
        }
        self.finish(job.message)
    }

    /// An outcome of this message is on stable storage.
    pub fn recorded(&mut self, key: MessageKey) -> Option<Finished> {
        let message = self.messages.get_mut(key.0 as usize)?;
        message.unrecorded = message.unrecorded.saturating_sub(1);
        self.finish(key)
    }

    /// Removes a message that is done with.
    fn finish(&mut self, key: MessageKey) -> Option<Finished> {
        let message = self.messages.get(key.0 as usize)?;
        if message.jobs > 0 || message.unrecorded > 0 || !message.statuses.is_finished() {
            return None;
        }
        let message = self.messages.remove(key.0 as usize);
        let emptied_segment = self.segments.remove(message.location);
        Some(Finished { id: message.id, octets: message.octets, spilled: message.spilled, emptied_segment })
    }

    /// A message is being written to the segment with this generation, or read from it: it stays
    /// until [`Self::unhold`]. Between a message's sync and [`Self::add`] its segment may be the last
    /// one written to no more, and nothing else would say that it is needed.
    pub fn hold(&mut self, generation: u64) {
        self.segments.hold(generation);
    }

    /// That message was added, or read, or is not kept.
    pub fn unhold(&mut self, generation: u64) {
        self.segments.unhold(generation);
    }

    /// A segment was made, with so many octets; it says what is void in `voids`.
    pub fn segment_is_made(&mut self, generation: u64, octets: u64, voids: Option<u64>) {
        self.segments.made(generation, octets, voids);
    }

    /// A segment that nothing needs, older than the oldest in use. It is told once; the driver calls
    /// [`Self::segment_is_gone`] when its name is off the disk for good.
    pub fn removable_segment(&mut self, oldest_in_use: u64) -> Option<Spare> {
        self.segments.removable(oldest_in_use)
    }

    /// It could not be removed: it is told again.
    pub fn segment_stays(&mut self, generation: u64) {
        self.segments.stays(generation);
    }

    /// A segment's name is off the disk for good: what settled its messages is needed no more.
    pub fn segment_is_gone(&mut self, generation: u64) {
        self.segments.gone(generation);
    }

    /// The segment whose messages are to be written again, so that the segments take no more than
    /// their bound; older than the oldest in use. `capacity` is a new segment's.
    pub fn segment_to_rewrite(&self, oldest_in_use: u64, capacity: u64) -> Option<u64> {
        self.segments.to_rewrite(oldest_in_use, capacity)
    }

    /// Messages of a segment, of which the next [`REWRITE_STEP_MESSAGES`] of the queue from `from` on
    /// are looked at, and at most so many that their records have [`REWRITE_STEP_OCTETS`]. Returns
    /// where to go on; `None`: there are no more.
    pub fn messages_in(&self, generation: u64, from: usize, keys: &mut Vec<MessageKey>) -> Option<usize> {
        let mut octets = 0;
        let last = from.saturating_add(REWRITE_STEP_MESSAGES).min(self.messages.capacity());
        for place in from..last {
            let Some(message) = self.messages.get(place) else { continue };
            if message.location.generation == generation {
                keys.push(MessageKey(place as u32));
                octets += u64::from(message.location.octets);
            }
            if octets >= REWRITE_STEP_OCTETS {
                return Some(place + 1);
            }
        }
        (last < self.messages.capacity()).then_some(last)
    }

    /// A message's record is being written again: it stays until [`Self::recorded`].
    pub fn begin_rewrite(&mut self, key: MessageKey) {
        if let Some(message) = self.messages.get_mut(key.0 as usize) {
            message.unrecorded += 1;
        }
    }

    /// A message's record is damaged, and was put aside: nothing is to be read any more.
    pub fn lose(&mut self, key: MessageKey) {
        if let Some(message) = self.messages.get_mut(key.0 as usize) {
            let nowhere = Location { generation: 0, offset: 0, octets: 0 };
            self.segments.remove(std::mem::replace(&mut message.location, nowhere));
            self.segments.add(nowhere);
        }
    }

    /// The message's record is on stable storage in another place, which counts from now on.
    pub fn relocate(&mut self, key: MessageKey, location: Location) {
        if let Some(message) = self.messages.get_mut(key.0 as usize) {
            let before = std::mem::replace(&mut message.location, location);
            self.segments.remove(before);
            self.segments.add(location);
            self.segments.note_settles(location.generation, before.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn add(schedule: &mut Schedule<()>, id: u64, generation: u64, recipients: u32, lanes: &[u16]) -> MessageKey {
        let location = Location { generation, offset: 72, octets: 80 };
        let key = schedule.add(QueueId::from_number(id), location, 10, false, recipients, None);
        schedule.enqueue(key, lanes);
        key
    }

    fn settle(schedule: &mut Schedule<()>, key: MessageKey, recipient: u32, status: Status, generation: u64) {
        schedule.settle(key, &[Settled { recipient, status, reply: "" }]);
        schedule.outcome_is_in(key, generation);
    }

    fn known(statuses: &[Status]) -> Statuses {
        let mut known = Statuses::default();
        for (place, status) in statuses.iter().enumerate().filter(|(_, status)| **status != Status::Pending) {
            known.settle(statuses.len(), place, *status, "");
        }
        known
    }

    fn removable(schedule: &mut Schedule<()>, oldest_in_use: u64) -> Option<u64> {
        schedule.removable_segment(oldest_in_use).map(|spare| spare.generation)
    }

    /// A message that stays in a segment newer than those of the test.
    fn newest(schedule: &mut Schedule<()>) {
        add(schedule, 99, 99, 1, &[]);
    }

    #[test]
    fn figures_and_the_oldest() {
        let mut schedule = Schedule::new(2);
        assert_eq!((schedule.figures(), schedule.oldest().is_none()), (Figures::default(), true));
        let first = add(&mut schedule, 1, 1, 1, &[0, 1]);
        add(&mut schedule, 2, 2, 1, &[]);
        schedule.segment_is_made(2, 1000, None);
        assert_eq!((schedule.figures().segment_octets, schedule.figures().live_octets), (1000, 160));
        let counts = |schedule: &Schedule<()>| Figures { segment_octets: 0, live_octets: 0, ..schedule.figures() };
        let job = schedule.next(0).expect("a job");
        let figures = |ready, active, deferred, idle_messages, segments| Figures {
            ready,
            active,
            deferred,
            idle_messages,
            segments,
            ..Figures::default()
        };
        assert_eq!(counts(&schedule), figures(1, 1, 0, 1, 2));
        schedule.defer(job, 10);
        assert_eq!(counts(&schedule), figures(1, 0, 1, 1, 2));
        schedule.release_due(10);
        assert_eq!(counts(&schedule), figures(2, 0, 0, 1, 2));
        let job = schedule.next(0).expect("a job");
        schedule.put_back(job);
        assert_eq!(counts(&schedule), figures(2, 0, 0, 1, 2));
        for lane in [0, 1] {
            let job = schedule.next(lane).expect("a job");
            settle(&mut schedule, first, 0, Status::Delivered, 1);
            schedule.end(job);
        }
        assert_eq!(counts(&schedule), figures(0, 0, 0, 2, 2), "its outcomes are not recorded");
        assert_eq!(schedule.oldest().map(|message| message.id), Some(QueueId::from_number(1)));
        schedule.recorded(first);
        schedule.recorded(first);
        assert_eq!(schedule.oldest().map(|message| message.id), Some(QueueId::from_number(2)));
        // One stays, and a great many come and go.
        for id in 3..1000 {
            let key = add(&mut schedule, id, 1, 1, &[0]);
            let job = schedule.next(0).expect("a job");
            settle(&mut schedule, key, 0, Status::Delivered, 1);
            schedule.end(job);
            schedule.recorded(key);
        }
        assert!(schedule.arrivals.len() <= 2 * ARRIVALS_KEPT, "{}", schedule.arrivals.len());
        assert_eq!(schedule.oldest().map(|message| message.id), Some(QueueId::from_number(2)));
    }

    #[test]
    fn the_newest_segment_stays() {
        let mut schedule: Schedule<()> = Schedule::new(0);
        let segment = |generation| FoundSegment { generation, octets: 100, settles: BTreeSet::new() };
        schedule.resume(Vec::new(), vec![segment(1), segment(2)]);
        assert_eq!(removable(&mut schedule, 9), Some(1));
        assert_eq!(removable(&mut schedule, 9), None, "it tells which ids were given out");
    }

    #[test]
    fn a_lane_is_first_in_first_out() {
        let mut schedule = Schedule::new(2);
        let first = add(&mut schedule, 1, 1, 1, &[0]);
        let second = add(&mut schedule, 2, 1, 2, &[0, 1]);
        assert_eq!((schedule.waiting(0), schedule.waiting(1)), (2, 1));
        let job = schedule.next(0).expect("a job");
        assert_eq!(job.message, first);
        schedule.put_back(job);
        let job = schedule.next(0).expect("a job");
        assert_eq!(job.message, first);
        schedule.defer(job, 100);
        assert_eq!(schedule.next(0).map(|job| job.message), Some(second));
        assert_eq!(schedule.next(0), None);
        assert_eq!(schedule.next_due_ms(), Some(100));
        schedule.release_due(99);
        assert_eq!(schedule.next(0), None);
        schedule.release_due(100);
        assert_eq!(schedule.next(0).map(|job| (job.message, job.attempts)), Some((first, 1)));
        assert_eq!(schedule.next(1).map(|job| job.message), Some(second));
    }

    #[test]
    fn a_message_is_done_with_when_all_is_settled_and_recorded() {
        let mut schedule = Schedule::new(2);
        newest(&mut schedule);
        let key = add(&mut schedule, 1, 1, 2, &[0, 1]);
        let (one, other) = (schedule.next(0).expect("a job"), schedule.next(1).expect("a job"));
        settle(&mut schedule, key, 0, Status::Delivered, 1);
        assert_eq!(schedule.end(one), None);
        assert_eq!(schedule.recorded(key), None, "the other lane is pending");
        settle(&mut schedule, key, 1, Status::Delivered, 1);
        assert_eq!(schedule.end(other), None, "not recorded yet");
        assert!(removable(&mut schedule, 2).is_none());
        let finished = schedule.recorded(key).expect("done with");
        let expected = Finished { id: QueueId::from_number(1), octets: 10, spilled: false, emptied_segment: true };
        assert_eq!(finished, expected);
        assert!(removable(&mut schedule, 1).is_none(), "still written to");
        assert_eq!(removable(&mut schedule, 2), Some(1));
        assert!(removable(&mut schedule, 2).is_none(), "told once");
    }

    #[test]
    fn a_segment_stays_while_a_message_is_on_its_way_into_it() {
        let mut schedule = Schedule::new(1);
        newest(&mut schedule);
        schedule.hold(1);
        let earlier = add(&mut schedule, 1, 1, 1, &[0]);
        let job = schedule.next(0).expect("a job");
        settle(&mut schedule, earlier, 0, Status::Delivered, 1);
        schedule.end(job);
        assert_eq!(schedule.recorded(earlier).map(|finished| finished.emptied_segment), Some(false));
        assert_eq!(removable(&mut schedule, 2), None, "a message in it is durable and not added yet");
        let held = add(&mut schedule, 2, 1, 1, &[0]);
        schedule.unhold(1);
        assert_eq!(removable(&mut schedule, 2), None);
        let job = schedule.next(0).expect("a job");
        settle(&mut schedule, held, 0, Status::Delivered, 1);
        schedule.end(job);
        assert!(schedule.recorded(held).is_some());
        assert_eq!(removable(&mut schedule, 2), Some(1));
    }

    #[test]
    fn undeliverable_mail_stays() {
        let mut schedule = Schedule::new(1);
        let key = add(&mut schedule, 1, 1, 2, &[0]);
        let job = schedule.next(0).expect("a job");
        settle(&mut schedule, key, 0, Status::Failed, 1);
        settle(&mut schedule, key, 1, Status::Delivered, 1);
        // Settled once: the first word holds.
        settle(&mut schedule, key, 0, Status::Delivered, 1);
        assert_eq!((schedule.end(job), schedule.recorded(key), schedule.recorded(key)), (None, None, None));
        assert_eq!(schedule.recorded(key), None);
        assert_eq!(schedule.message(key).expect("kept").status(0), Status::Failed);
        assert!(removable(&mut schedule, 9).is_none());
    }

    #[test]
    fn an_outcome_outlives_its_messages_segment() {
        let mut schedule = Schedule::new(1);
        newest(&mut schedule);
        let in_one = add(&mut schedule, 1, 1, 1, &[0]);
        let stuck = add(&mut schedule, 2, 1, 1, &[0]);
        let in_two = add(&mut schedule, 3, 2, 1, &[0]);
        for key in [in_one, in_two, stuck] {
            let job = schedule.next(0).expect("a job");
            if key == stuck {
                schedule.put_back(job);
                continue;
            }
            settle(&mut schedule, job.message, 0, Status::Delivered, 2);
            let message = job.message;
            let ended = schedule.end(job);
            assert!(ended.or(schedule.recorded(message)).is_some());
        }
        // The jobs were taken in order: one and stuck were settled, three waits.
        assert_eq!(removable(&mut schedule, 3), Some(1));
        assert!(removable(&mut schedule, 3).is_none(), "two settles one's messages, and one is still there");
        schedule.segment_is_gone(1);
        assert!(removable(&mut schedule, 3).is_none(), "two has a message");
        let job = schedule.next(0).expect("a job");
        settle(&mut schedule, job.message, 0, Status::Delivered, 2);
        schedule.end(job);
        assert!(schedule.recorded(job.message).is_some());
        assert_eq!(removable(&mut schedule, 3), Some(2));
    }

    #[test]
    fn goes_on_with_what_recovery_found() {
        let live = |id, generation, statuses: &[Status], lanes: &[u16]| Live {
            id: QueueId::from_number(id),
            location: Location { generation, offset: 72, octets: 80 },
            message_octets: 5,
            spilled: false,
            recipients: 2,
            statuses: known(statuses),
            lanes: lanes.into(),
        };
        let segment = |generation, settles: &[u64]| FoundSegment {
            generation,
            octets: 100,
            settles: settles.iter().copied().collect(),
        };
        let mut schedule: Schedule<()> = Schedule::new(1);
        schedule.resume(
            vec![
                live(1, 2, &[Status::Delivered, Status::Pending], &[0]),
                live(2, 2, &[Status::Delivered, Status::Failed], &[0]),
            ],
            vec![segment(2, &[1]), segment(3, &[2]), segment(4, &[1]), segment(5, &[])],
        );
        assert_eq!(removable(&mut schedule, 9), Some(4), "what it settles is gone already");
        assert!(removable(&mut schedule, 9).is_none());
        let job = schedule.next(0).expect("a job");
        assert_eq!(schedule.message(job.message).expect("there").status(1), Status::Pending);
        settle(&mut schedule, job.message, 1, Status::Delivered, 5);
        assert_eq!(schedule.end(job), None);
        assert!(schedule.recorded(job.message).is_some());
        let job = schedule.next(0).expect("a job");
        assert_eq!(schedule.end(job), None, "undeliverable");
        assert!(removable(&mut schedule, 5).is_none());
    }
}
