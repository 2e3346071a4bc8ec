//! Reading a shard's directory: at start, to go on where it ended, and offline, to list and print.
//!
//! | found | means | done at start |
//! |---|---|---|
//! | message record with right checksums | a message that was or may have been acknowledged | queued |
//! | the same again, later in the log | it was written again to free its segment | the later one counts |
//! | the same, and outcomes that settle every recipient without failures | delivered, or withdrawn | its spill file is removed |
//! | outcome record of a message that is there no more | its segment was removed as finished | nothing |
//! | an end mark behind the last record | the end, whatever an earlier use of the file left behind it | cut off |
//! | an end mark before the last record | a batch whose beginning is not on the disk: of the last one, nobody was told | the mark and what is no record behind it are damage |
//! | a void said by a later header | a batch that failed, and everybody was told so | cut off |
//! | no end mark | a batch that was cut off before anybody was told, or damage | copied to a quarantine file, reported, cut off |
//! | octets before the end that are no record | damage: acknowledged messages may be hit | copied to a quarantine file, reported |
//! | segment without a right header | damage | its header is copied and reported; its records count |
//! | segment without a record | abandoned | removed |
//! | spare segment | waits to be used again, or was being made | kept if it is whole, else removed |
//! | probe | storage was failing and was tried out | removed |
//! | spill file that no record names | its message was never acknowledged; or its record is damaged | removed, but put aside where there is or may be damage |
//! | record whose spill file is missing or has another length | damage | kept, reported |
//!
//! Reading twice gives the same result, and so does reading again after a crash in the middle of
//! tidying; only an end that was open is closed, and told once. The newest segment is synced in any
//! case: a process that was killed may have left its last batch in the kernel's cache alone. Segments
//! that nothing needs any more are removed later, by [`super::schedule`]'s rule.

use super::disk::{
    Disk, PROBE_NAME, quarantine_name, quarantined_generation, quarantined_spill_name, segment_generation,
    segment_name, spare_generation, spill_id, spill_name,
};
use super::outcome::Statuses;
use super::record::{
    END_MARK_OCTETS, HEADER_OCTETS, Kind, Record, RecordHeader, SegmentHeader, end_mark, find_end_mark, find_record,
};
use super::spool::{Location, Resume};
use crate::limits::{BATCH_MAX_OCTETS, RECORD_MAX_OCTETS, SEGMENT_MAX_OCTETS, SPARE_SEGMENTS_MAX};
use crate::smtp::QueueId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;

/// Something that is not as this program left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A segment's header is wrong.
    SegmentHeader {
        /// The segment.
        generation: u64,
    },
    /// Octets among the records are none.
    Records {
        /// The segment.
        generation: u64,
        /// Where they begin.
        offset: u64,
        /// How many.
        octets: u64,
    },
    /// Nothing marks the end of the records. For who reads beside the writer that is no news.
    End {
        /// The segment.
        generation: u64,
        /// Where the last record ends.
        offset: u64,
        /// What behind it may be a record's.
        octets: u64,
    },
    /// A record's spill file is missing or has the wrong length.
    Spill {
        /// The message.
        id: QueueId,
    },
}

impl Damage {
    /// The octets of a segment that are to be put aside.
    fn region(&self) -> Option<(u64, u64, u64)> {
        match *self {
            Damage::SegmentHeader { generation } => Some((generation, 0, HEADER_OCTETS as u64)),
            Damage::Records { generation, offset, octets } | Damage::End { generation, offset, octets } => {
                Some((generation, offset, octets))
            }
            Damage::Spill { .. } => None,
        }
    }

    fn is_open_end(&self) -> bool {
        matches!(self, Damage::End { .. })
    }

    /// The name of the file that keeps them after [`recover`].
    pub fn kept_as(&self) -> Option<String> {
        self.region().map(|(generation, offset, _)| quarantine_name(generation, offset))
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::SegmentHeader { generation } => write!(f, "{}: damaged header", segment_name(*generation)),
            Damage::Records { generation, offset, octets } => {
                write!(f, "{}: {octets} octets at {offset} are no intact record", segment_name(*generation))
            }
            Damage::End { generation, offset, octets } => write!(
                f,
                "{}: the log is cut off at {offset}; {octets} octets there are of a batch that nobody was told of, or damaged",
                segment_name(*generation)
            ),
            Damage::Spill { id } => write!(f, "message {id}: {} is missing or has another length", spill_name(*id)),
        }
    }
}

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Where writing goes on.
    pub resume: Resume,
    /// Messages in the queue, undeliverable ones included.
    pub messages: u64,
    /// Their octets.
    pub octets: u64,
    /// What is not as it should be.
    pub damage: Vec<Damage>,
    /// The messages in the queue, in the order of their ids. For [`recover`] only.
    pub live: Vec<Live>,
    /// The segments. For [`recover`] only.
    pub segments: Vec<FoundSegment>,
    /// Segments that may be used again. For [`recover`] only.
    pub spares: Vec<Spare>,
}

/// A message in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its id.
    pub id: QueueId,
    /// Where its record is.
    pub location: Location,
    /// Octets of the message.
    pub message_octets: u64,
    /// Whether it is in a spill file.
    pub spilled: bool,
    /// How many recipients it has.
    pub recipients: u32,
    /// What became of them.
    pub statuses: Statuses,
    /// The lanes of its recipients.
    pub lanes: Box<[u16]>,
}

/// A segment that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSegment {
    /// Its generation.
    pub generation: u64,
    /// Octets of its file.
    pub octets: u64,
    /// The segments whose messages its outcomes are about, or its records were in: it must outlive
    /// them.
    pub settles: BTreeSet<u64>,
}

/// A segment that waits to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// The one in its name.
    pub generation: u64,
    /// Octets of its file.
    pub octets: u64,
}

/// How often a segment that looks damaged is read when its writer may be at work: a read that
/// overlaps a write can see its later pages without its earlier ones.
const READS_BESIDE_A_WRITER: usize = 5;

/// Reads the directory of a shard, shows every queued message to `visit` in the order of their
/// arrival in the log, with what became of its recipients, and changes nothing. The gateway may be
/// running; what it writes at that moment may be missed.
pub fn read(disk: &impl Disk, mut visit: impl FnMut(&Record<'_>, &Statuses)) -> io::Result<Found> {
    let mut found = Found::default();
    let mut log = Log::default();
    scan(disk, READS_BESIDE_A_WRITER, &mut found, &mut |record, location| log.add(record, location))?;
    scan(disk, READS_BESIDE_A_WRITER, &mut Found::default(), &mut |record, location| {
        if let Some(message) = log.messages.get(&record.header.id)
            && message.location == location
        {
            visit(record, &message.statuses);
        }
    })?;
    let mut missing = log.missing_spills(disk)?;
    if !missing.is_empty() {
        // Those that were delivered meanwhile are no damage.
        let mut now = Log::default();
        let add = &mut |record: &Record<'_>, location| now.add(record, location);
        scan(disk, READS_BESIDE_A_WRITER, &mut Found::default(), add)?;
        missing.retain(|id| now.messages.contains_key(id));
    }
    // A batch that is being written.
    found.damage.retain(|damage| !damage.is_open_end());
    found.count(&log, missing);
    Ok(found)
}

/// Reads the directory of a shard and tidies it as the table above says. For the process that
/// holds the spool's lock. `lanes` says in which lanes a message's recipients wait.
pub fn recover(disk: &mut impl Disk, lanes: impl Fn(&Record<'_>) -> Box<[u16]>) -> io::Result<Found> {
    let mut found = Found::default();
    let mut log = Log::default();
    let ends = scan(disk, 1, &mut found, &mut |record, location| {
        log.add(record, location);
        if let Some(message) = log.messages.get_mut(&record.header.id)
            && message.location == location
        {
            message.lanes = lanes(record);
        }
    })?;
    put_aside(disk, &found.damage)?;
    // What the process before was killed at may be in the kernel's cache only: it goes to stable storage
    // before anything is removed on the strength of it. All that is older was synced before it.
    let newest = ends.iter().filter(|end| end.has_records).map(|end| end.generation).max();
    for end in ends {
        let is_doubtful = newest == Some(end.generation);
        if let Some(octets) = end.tidy(disk, is_doubtful)? {
            let settles = log.settles.remove(&end.generation).unwrap_or_default();
            found.segments.push(FoundSegment { generation: end.generation, octets, settles });
        }
    }
    let names = disk.names()?;
    found.spares = spares(disk, &names)?;
    // The record that names a spill file may be among the damaged ones.
    let is_in_doubt = !found.damage.is_empty();
    for name in names {
        let Some(id) = spill_id(&name).filter(|id| !log.messages.contains_key(id)) else { continue };
        if is_in_doubt && !log.finished_spills.contains(&id) {
            disk.rename(&name, &quarantined_spill_name(id))?;
        } else {
            disk.remove(&name)?;
        }
    }
    let missing = log.missing_spills(disk)?;
    found.count(&log, missing);
    found.live = log.messages.into_iter().map(|(id, message)| message.into_live(id)).collect();
    found.live.sort_unstable_by_key(|message| message.id);
    Ok(found)
}

/// Copies what is no record to files of its own, unless a former start has done so.
fn put_aside(disk: &mut impl Disk, damage: &[Damage]) -> io::Result<()> {
    let mut octets = Vec::new();
    let mut in_memory = None;
    for (generation, offset, length) in damage.iter().filter_map(Damage::region) {
        let name = quarantine_name(generation, offset);
        if in_memory != Some(generation) {
            disk.read(&segment_name(generation), &mut octets)?;
            in_memory = Some(generation);
        }
        let begin = octets.len().min(offset as usize);
        let end = octets.len().min(offset.saturating_add(length) as usize);
        if begin < end && disk.length(&name)? != Some((end - begin) as u64) {
            disk.create(&name, &octets[begin..end])?;
        }
    }
    Ok(())
}

/// Keeps the spare segments that are as large as new ones, as many as are of use; removes a probe.
fn spares(disk: &mut impl Disk, names: &[String]) -> io::Result<Vec<Spare>> {
    let mut kept = Vec::new();
    for name in names {
        if name == PROBE_NAME {
            disk.remove(name)?;
        }
        let Some(generation) = spare_generation(name) else { continue };
        match disk.length(name)? {
            Some(octets @ SEGMENT_MAX_OCTETS) if kept.len() < SPARE_SEGMENTS_MAX => {
                kept.push(Spare { generation, octets })
            }
            _ => disk.remove(name)?,
        }
    }
    Ok(kept)
}

impl Found {
    fn count(&mut self, log: &Log, missing: Vec<QueueId>) {
        self.messages = log.messages.len() as u64;
        self.octets = log.messages.values().map(|message| message.octets).sum();
        self.damage.extend(missing.into_iter().map(|id| Damage::Spill { id }));
    }
}

/// What the records say, read in their order.
#[derive(Default)]
struct Log {
    /// Messages that are not finished.
    messages: HashMap<QueueId, LoggedMessage>,
    /// By generation: the other segments whose messages its outcomes settle, or its records were in.
    settles: BTreeMap<u64, BTreeSet<u64>>,
    finished_spills: HashSet<QueueId>,
    /// Where finished messages are: their outcomes must last as long.
    finished: HashMap<QueueId, u64>,
}

struct LoggedMessage {
    location: Location,
    octets: u64,
    spilled: bool,
    recipients: u32,
    statuses: Statuses,
    lanes: Box<[u16]>,
}

impl Log {
    fn add(&mut self, record: &Record<'_>, location: Location) {
        if record.header.kind == Kind::Outcome {
            self.add_outcome(record, location);
        } else {
            self.add_message(record, location);
        }
    }

    fn add_message(&mut self, record: &Record<'_>, location: Location) {
        let id = record.header.id;
        let envelope = record.stored_envelope().unwrap_or_default();
        if let Some(message) = self.messages.get_mut(&id) {
            let before = std::mem::replace(&mut message.location, location);
            message.statuses.add(envelope.outcomes(), message.recipients as usize);
            self.note_settles(location.generation, before.generation);
            return self.finish(id);
        }
        // It was finished while it was written again: this record says so too.
        if let Some(generation) = self.finished.get_mut(&id) {
            let before = std::mem::replace(generation, location.generation);
            return self.note_settles(location.generation, before);
        }
        let recipients = envelope.recipient_count();
        let mut statuses = Statuses::default();
        statuses.add(envelope.outcomes(), recipients);
        let message = LoggedMessage {
            location,
            octets: record.header.message_octets,
            spilled: record.header.kind == Kind::Spilled,
            recipients: u32::try_from(recipients).unwrap_or(u32::MAX),
            statuses,
            lanes: Box::default(),
        };
        self.messages.insert(id, message);
        self.finish(id);
    }

    fn add_outcome(&mut self, record: &Record<'_>, location: Location) {
        let id = record.header.id;
        if let Some(message) = self.messages.get_mut(&id) {
            let generation = message.location.generation;
            message.statuses.add(record.envelope, message.recipients as usize);
            self.note_settles(location.generation, generation);
            self.finish(id);
        } else if let Some(&generation) = self.finished.get(&id) {
            // More about a finished message. Or else its segment is gone, and nothing is needed.
            self.note_settles(location.generation, generation);
        }
    }

    /// Takes note of a message that is done with.
    fn finish(&mut self, id: QueueId) {
        if let Some(message) = self.messages.get(&id)
            && message.statuses.is_finished()
        {
            if message.spilled {
                self.finished_spills.insert(id);
            }
            self.finished.insert(id, message.location.generation);
            self.messages.remove(&id);
        }
    }

    fn note_settles(&mut self, by: u64, generation: u64) {
        if by != generation {
            self.settles.entry(by).or_default().insert(generation);
        }
    }

    /// Messages whose spill file is not there as it should be.
    fn missing_spills(&self, disk: &impl Disk) -> io::Result<Vec<QueueId>> {
        let mut missing = Vec::new();
        for (&id, message) in self.messages.iter().filter(|(_, message)| message.spilled) {
            if disk.length(&spill_name(id))? != Some(message.octets) {
                missing.push(id);
            }
        }
        missing.sort_unstable();
        Ok(missing)
    }
}

impl LoggedMessage {
    fn into_live(self, id: QueueId) -> Live {
        Live {
            id,
            location: self.location,
            message_octets: self.octets,
            spilled: self.spilled,
            recipients: self.recipients,
            statuses: self.statuses,
            lanes: self.lanes,
        }
    }
}

/// How a segment's file ends.
struct End {
    generation: u64,
    /// Octets of the file.
    length: u64,
    /// Where its records end.
    offset: u64,
    /// The segment's key; without one nothing in it could be told from what it is not.
    key: Option<u64>,
    has_mark: bool,
    has_records: bool,
}

impl End {
    /// Removes the file if nothing is in it, else ends it with a mark where its records end. The last
    /// batch of one that is doubtful is written once more: after a sync that failed, the kernel may take
    /// what is in its cache to be on the disk. Returns its length.
    fn tidy(&self, disk: &mut impl Disk, is_doubtful: bool) -> io::Result<Option<u64>> {
        let name = segment_name(self.generation);
        let Some(key) = self.key.filter(|_| self.has_records) else {
            disk.remove(&name)?;
            return Ok(None);
        };
        let mark = end_mark(key, self.generation, self.offset);
        let length = self.offset + END_MARK_OCTETS as u64;
        if is_doubtful {
            let mut octets = Vec::new();
            disk.read(&name, &mut octets)?;
            octets.truncate(self.offset as usize);
            octets.extend_from_slice(&mark);
            let from = octets.len().saturating_sub(BATCH_MAX_OCTETS + RECORD_MAX_OCTETS);
            disk.write_end(&name, from as u64, &octets[from..])?;
        } else if self.length != length || !self.has_mark {
            disk.write_end(&name, self.offset, &mark)?;
        }
        Ok(Some(length))
    }
}

/// Reads all segments in their order, shows their records, and returns how each ends. What seems
/// damaged is read so many times.
fn scan(
    disk: &impl Disk,
    reads: usize,
    found: &mut Found,
    visit: &mut impl FnMut(&Record<'_>, Location),
) -> io::Result<Vec<End>> {
    let names = disk.names()?;
    let mut generations: Vec<u64> = names.iter().filter_map(|name| segment_generation(name)).collect();
    // A name that was in use is not used again: the one file would replace the other.
    let others = names.iter().filter_map(|name| quarantined_generation(name).or_else(|| spare_generation(name)));
    if let Some(highest) = others.chain(generations.iter().copied()).max() {
        found.resume.next_generation = highest.saturating_add(1);
    }
    generations.sort_unstable();
    let voids = voids(disk, &generations)?;
    let mut octets = Vec::new();
    let mut ends = Vec::new();
    for generation in generations {
        let name = segment_name(generation);
        let void = voids.get(&generation).copied();
        for left in (0..reads).rev() {
            match disk.read(&name, &mut octets) {
                Ok(()) => {}
                // A running gateway has no more use for it: its messages are finished.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
            let scanned = Scanned::new(generation, void, found.resume.next_sequence, &octets);
            if left == 0 || scanned.damage.iter().all(Damage::is_open_end) {
                ends.push(scanned.show(&octets, found, visit));
                break;
            }
        }
    }
    Ok(ends)
}

/// What segments' headers say of records that are none: by generation, from which offset on.
fn voids(disk: &impl Disk, generations: &[u64]) -> io::Result<HashMap<u64, u64>> {
    let mut voids = HashMap::new();
    let mut octets = Vec::new();
    for &generation in generations {
        match disk.read_beginning(&segment_name(generation), HEADER_OCTETS, &mut octets) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        }
        let header = SegmentHeader::decode(&octets).filter(|header| header.generation == generation);
        if let Some(void) = header.and_then(|header| header.void).filter(|void| void.generation < generation) {
            voids.insert(void.generation, void.offset);
        }
    }
    Ok(voids)
}

/// What a segment holds.
struct Scanned {
    generation: u64,
    header: Option<SegmentHeader>,
    key: Option<u64>,
    /// Where the intact records begin, and their headers.
    records: Vec<(usize, RecordHeader)>,
    damage: Vec<Damage>,
    /// Where the records end.
    end: usize,
    has_mark: bool,
}

impl Scanned {
    /// Finds the intact records of a segment, with sequences from `next_sequence` on. From `void` on
    /// there are none.
    fn new(generation: u64, void: Option<u64>, mut next_sequence: u64, octets: &[u8]) -> Self {
        let header = SegmentHeader::decode(octets).filter(|header| header.generation == generation);
        // Without a header the first record says what the key was; records inside messages stand later.
        let key = header.map(|header| header.key).or_else(|| first_key(octets, generation));
        let (records, damage, end) = (Vec::new(), Vec::new(), HEADER_OCTETS);
        let mut scanned = Scanned { generation, header, key, records, damage, end, has_mark: false };
        if header.is_none() {
            scanned.damage.push(Damage::SegmentHeader { generation });
        }
        let Some(key) = key else {
            scanned.end = octets.len();
            let all = octets.len().saturating_sub(HEADER_OCTETS) as u64;
            scanned.damage.push(Damage::Records { generation, offset: HEADER_OCTETS as u64, octets: all });
            return scanned;
        };
        let void = void.and_then(|void| usize::try_from(void).ok()).filter(|void| *void <= octets.len());
        let searched = &octets[..void.unwrap_or(octets.len())];
        let mut at = HEADER_OCTETS;
        while let Some(start) = find_record(searched, at) {
            let intact = RecordHeader::decode(&searched[start..])
                .filter(|header| (header.generation, header.key) == (generation, key))
                .filter(|header| header.sequence >= next_sequence)
                .filter(|header| Record::decode(*header, &searched[start..]).is_some());
            let Some(header) = intact else {
                at = start + 8;
                continue;
            };
            scanned.note_damage_before(start);
            next_sequence = header.sequence + 1;
            scanned.records.push((start, header));
            scanned.end = start + usize::try_from(header.octets()).unwrap_or(usize::MAX);
            at = scanned.end;
        }
        // One that stands before a record was to be overwritten by it.
        let mark = find_end_mark(octets, key, generation, scanned.end);
        let end = void.into_iter().chain(mark).min();
        scanned.has_mark = mark.is_some() && end == mark;
        match end {
            Some(end) => {
                scanned.note_damage_before(end);
                scanned.end = end;
            }
            None => scanned.note_open_end(octets),
        }
        scanned
    }

    fn note_damage_before(&mut self, start: usize) {
        if start > self.end {
            let (offset, octets) = (self.end as u64, (start - self.end) as u64);
            self.damage.push(Damage::Records { generation: self.generation, offset, octets });
        }
    }

    /// How much behind the last record may be part of one: as much as its header says, else the
    /// largest record, but no zeros at the end.
    fn note_open_end(&mut self, octets: &[u8]) {
        let rest = octets.get(self.end..).unwrap_or_default();
        let said = RecordHeader::decode(rest)
            .filter(|header| header.generation == self.generation)
            .map(|header| usize::try_from(header.octets()).unwrap_or(usize::MAX));
        let octets = used_octets(&rest[..rest.len().min(said.unwrap_or(RECORD_MAX_OCTETS))]) as u64;
        self.damage.push(Damage::End { generation: self.generation, offset: self.end as u64, octets });
    }

    /// Adds the segment to what was found, and shows its records.
    fn show(self, octets: &[u8], found: &mut Found, visit: &mut impl FnMut(&Record<'_>, Location)) -> End {
        found.damage.extend(self.damage);
        if let Some(header) = self.header {
            found.resume.highest_id = found.resume.highest_id.max(header.highest_id);
        }
        for &(start, header) in &self.records {
            found.resume.next_sequence = header.sequence + 1;
            found.resume.highest_id = found.resume.highest_id.max(header.id);
            if let Some(record) = Record::decode(header, &octets[start..]) {
                // A segment has at most 64 MB.
                let (offset, octets) = (start as u32, header.octets() as u32);
                visit(&record, Location { generation: self.generation, offset, octets });
            }
        }
        End {
            generation: self.generation,
            length: octets.len() as u64,
            offset: self.end as u64,
            key: self.key,
            has_mark: self.has_mark,
            has_records: !self.records.is_empty(),
        }
    }
}

/// The key of a segment whose header is damaged: its first record's.
fn first_key(octets: &[u8], generation: u64) -> Option<u64> {
    let mut at = HEADER_OCTETS;
    while let Some(start) = find_record(octets, at) {
        match RecordHeader::decode(&octets[start..]) {
            Some(header) if header.generation == generation => return Some(header.key),
            _ => at = start + 8,
        }
    }
    None
}

/// The octets up to the last one that is not zero.
fn used_octets(octets: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = octets.len();
    while octets[..end].last_chunk() == Some(&ZEROS) {
        end -= ZEROS.len();
    }
    octets[..end].iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests;
