//! Reading a shard's directory: at start, to go on where it ended, and offline, to list and print.
//!
//! | found | means | done at start |
//! |---|---|---|
//! | message record with right checksums | a message that was or may have been acknowledged | queued |
//! | the same, and outcomes that settle every recipient without failures | delivered, or withdrawn | its spill file is removed |
//! | outcome record of a message that is there no more | its segment was removed as finished | nothing |
//! | zeros behind the last record | unused space | cut off |
//! | the beginning of the next record behind the last one, its end never written | a batch that was cut off before its sync, so that nobody was told | reported; goes with its segment |
//! | other octets behind the last record | the same, or damage | kept, reported |
//! | octets between records that are none | damage: acknowledged messages may be hit | kept, reported |
//! | segment without a record, else zero | abandoned | removed |
//! | segment without a right header | cut off while it was made, or damaged | removed if all zero, else kept, reported |
//! | spill file that no record names | its message was never acknowledged; or its record is damaged | removed, but kept where there is or may be damage, or a quarantined segment |
//! | record whose spill file is missing or has another length | damage | kept, reported |
//!
//! Reading twice gives the same result, and so does reading again after a crash in the middle of
//! tidying. Segments that nothing needs any more are removed later, by [`super::schedule`]'s rule.

use super::disk::{Disk, quarantined_generation, segment_generation, segment_name, spill_id, spill_name};
use super::outcome::{Status, Statuses};
use super::record::{HEADER_OCTETS, Kind, Record, RecordHeader, SegmentHeader, begins_like_record, find_record};
use super::spool::{Location, Resume};
use crate::smtp::QueueId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;

/// Something that is not as this program left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A segment's header is wrong though it has content.
    SegmentHeader {
        /// The file.
        segment: String,
    },
    /// Octets between records are none.
    Records {
        /// The file.
        segment: String,
        /// Where they begin.
        offset: u64,
        /// How many.
        octets: u64,
    },
    /// A record's spill file is missing or has the wrong length.
    Spill {
        /// The message.
        id: QueueId,
    },
}

impl Damage {
    fn segment(&self) -> Option<&String> {
        match self {
            Damage::SegmentHeader { segment } | Damage::Records { segment, .. } => Some(segment),
            Damage::Spill { .. } => None,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::SegmentHeader { segment } => write!(f, "{segment}: damaged header; the file is kept as it is"),
            Damage::Records { segment, offset, octets } => {
                write!(f, "{segment}: {octets} octets at {offset} are no intact record; the file is kept as it is")
            }
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
    /// Batches that were cut off, each as the octets it left: after a crash nothing unusual.
    pub unfinished: Vec<Unfinished>,
    /// The messages in the queue, in the order of their ids. For [`recover`] only.
    pub live: Vec<Live>,
    /// The segments. For [`recover`] only.
    pub segments: Vec<FoundSegment>,
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
    /// What became of them; empty while nothing did.
    pub statuses: Box<[Status]>,
    /// The lanes of its recipients.
    pub lanes: Box<[u16]>,
}

/// A segment that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSegment {
    /// Its generation.
    pub generation: u64,
    /// The segments whose messages its outcomes are about: it must outlive them.
    pub settles: BTreeSet<u64>,
    /// It holds something that is no record: to be quarantined rather than removed.
    pub damaged: bool,
}

/// Octets behind the last record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    segment: String,
    offset: u64,
    octets: u64,
    /// They are not the beginning of a record, so they may be damage.
    doubtful: bool,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unfinished { segment, offset, octets, doubtful } = self;
        let end = if *doubtful { ", or damage; they are kept" } else { "; they go with the segment" };
        write!(f, "{segment}: {octets} octets at {offset} are a batch that was cut off before anybody was told{end}")
    }
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
    found.count(&log, missing);
    Ok(found)
}

/// Reads the directory of a shard and tidies it as the table above says. For the process that
/// holds the spool's lock. `lanes` says in which lanes a message's recipients wait.
pub fn recover(disk: &mut impl Disk, lanes: impl Fn(&Record<'_>) -> Box<[u16]>) -> io::Result<Found> {
    let mut found = Found::default();
    let mut log = Log::default();
    let fates = scan(disk, 1, &mut found, &mut |record, location| {
        log.add(record, location);
        if let Some(message) = log.messages.get_mut(&record.header.id)
            && message.location == location
        {
            message.lanes = lanes(record);
        }
    })?;
    for (name, fate) in fates {
        match fate {
            Fate::Remove => disk.remove(&name)?,
            Fate::Cut(octets) => disk.truncate(&name, octets)?,
            Fate::Keep => {}
        }
        if let (Some(generation), false) = (segment_generation(&name), matches!(fate, Fate::Remove)) {
            let damaged = found.damage.iter().any(|damage| damage.segment() == Some(&name))
                || found.unfinished.iter().any(|unfinished| unfinished.doubtful && unfinished.segment == name);
            let settles = log.settles.remove(&generation).unwrap_or_default();
            found.segments.push(FoundSegment { generation, settles, damaged });
        }
    }
    // A damaged record, or one in a quarantined segment, may be the one that names it.
    let names = disk.names()?;
    let quarantined = names.iter().any(|name| quarantined_generation(name).is_some());
    let doubtful = found.unfinished.iter().any(|unfinished| unfinished.doubtful);
    let orphans_go = found.damage.is_empty() && !doubtful && !quarantined;
    for name in names {
        let Some(id) = spill_id(&name) else { continue };
        let orphan = !log.messages.contains_key(&id);
        if orphan && (orphans_go || log.finished_spills.contains(&id)) {
            disk.remove(&name)?;
        }
    }
    let missing = log.missing_spills(disk)?;
    found.count(&log, missing);
    found.live = log.messages.into_iter().map(|(id, message)| message.into_live(id)).collect();
    found.live.sort_unstable_by_key(|message| message.id);
    Ok(found)
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
    /// By generation: the other segments whose messages its outcomes settle.
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
        let id = record.header.id;
        if record.header.kind != Kind::Outcome {
            let recipients = record.stored_envelope().map_or(0, |envelope| envelope.recipient_count());
            let message = LoggedMessage {
                location,
                octets: record.header.message_octets,
                spilled: record.header.kind == Kind::Spilled,
                recipients: u32::try_from(recipients).unwrap_or(u32::MAX),
                statuses: Statuses::default(),
                lanes: Box::default(),
            };
            self.messages.insert(id, message);
            return;
        }
        let Some(message) = self.messages.get_mut(&id) else {
            // More about a finished message, or about one whose segment is gone.
            if let Some(&generation) = self.finished.get(&id) {
                self.note_settles(location.generation, generation);
            }
            return;
        };
        let generation = message.location.generation;
        message.statuses.add(record, message.recipients as usize);
        if message.statuses.is_finished() {
            if message.spilled {
                self.finished_spills.insert(id);
            }
            self.finished.insert(id, generation);
            self.messages.remove(&id);
        }
        self.note_settles(location.generation, generation);
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
            statuses: self.statuses.to_boxed(),
            lanes: self.lanes,
        }
    }
}

/// What becomes of a segment's file.
enum Fate {
    Keep,
    Cut(u64),
    Remove,
}

/// What a segment holds.
struct Scanned {
    generation: u64,
    header: Option<SegmentHeader>,
    /// Where the intact records begin, and their headers.
    records: Vec<(usize, RecordHeader)>,
    damage: Vec<Damage>,
    /// The end of the last intact record.
    end: usize,
    /// Behind it there are zeros only, or it is `end`.
    used: usize,
}

fn scan(
    disk: &impl Disk,
    reads: usize,
    found: &mut Found,
    visit: &mut impl FnMut(&Record<'_>, Location),
) -> io::Result<Vec<(String, Fate)>> {
    let names = disk.names()?;
    let mut generations: Vec<u64> = names.iter().filter_map(|name| segment_generation(name)).collect();
    // A name that was put aside is not used again: the one segment would replace the other.
    if let Some(highest) = names.iter().filter_map(|name| quarantined_generation(name)).max() {
        found.resume.next_generation = found.resume.next_generation.max(highest + 1);
    }
    generations.sort_unstable();
    let mut octets = Vec::new();
    let mut fates = Vec::new();
    for generation in generations {
        let name = segment_name(generation);
        match disk.read(&name, &mut octets) {
            Ok(()) => {}
            // A running gateway removed it: its messages are finished.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let mut scanned = scan_segment(&name, generation, found.resume.next_sequence, &octets);
        for _ in 1..reads {
            if scanned.damage.is_empty() {
                break;
            }
            disk.read(&name, &mut octets)?;
            scanned = scan_segment(&name, generation, found.resume.next_sequence, &octets);
        }
        found.resume.next_generation = found.resume.next_generation.max(generation + 1);
        let fate = add(scanned, &octets, found, visit);
        fates.push((name, fate));
    }
    Ok(fates)
}

/// Finds the intact records of a segment, with sequences from `next_sequence` on.
fn scan_segment(name: &str, generation: u64, mut next_sequence: u64, octets: &[u8]) -> Scanned {
    let header = SegmentHeader::decode(octets).filter(|header| header.generation == generation);
    let used = used_octets(octets);
    let mut scanned = Scanned { generation, header, records: Vec::new(), damage: Vec::new(), end: HEADER_OCTETS, used };
    if header.is_none() {
        if used == 0 {
            scanned.used = HEADER_OCTETS;
            return scanned;
        }
        // The header says nothing that the records do not say themselves: go on and read them.
        scanned.damage.push(Damage::SegmentHeader { segment: name.to_owned() });
    }
    // Without a header the first record says what the key was; records inside messages stand later.
    let first = || RecordHeader::decode(octets.get(HEADER_OCTETS..)?);
    let key = header.map(|header| header.key).or_else(|| first().map(|record| record.key));
    let mut at = HEADER_OCTETS;
    // Most of a new segment is zeros: no record begins there.
    let searched = &octets[..octets.len().min(used + HEADER_OCTETS)];
    while let Some(start) = find_record(searched, at) {
        let intact = RecordHeader::decode(&octets[start..])
            .filter(|header| header.generation == generation && Some(header.key) == key)
            .filter(|header| header.sequence >= next_sequence)
            .filter(|header| Record::decode(*header, &octets[start..]).is_some());
        let Some(header) = intact else {
            at = start + 8;
            continue;
        };
        if start > scanned.end {
            scanned.damage.push(Damage::Records {
                segment: name.to_owned(),
                offset: scanned.end as u64,
                octets: (start - scanned.end) as u64,
            });
        }
        next_sequence = header.sequence + 1;
        scanned.records.push((start, header));
        scanned.end = start + usize::try_from(header.octets()).unwrap_or(usize::MAX);
        at = scanned.end;
    }
    scanned.used = used.max(scanned.end);
    scanned
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

/// Adds a segment to what was found, shows its messages, and says what becomes of its file.
fn add(scanned: Scanned, octets: &[u8], found: &mut Found, visit: &mut impl FnMut(&Record<'_>, Location)) -> Fate {
    let damaged = !scanned.damage.is_empty();
    found.damage.extend(scanned.damage);
    if let Some(header) = scanned.header {
        found.resume.highest_id = found.resume.highest_id.max(header.highest_id);
    }
    for &(start, header) in &scanned.records {
        found.resume.next_sequence = header.sequence + 1;
        found.resume.highest_id = found.resume.highest_id.max(header.id);
        if let Some(record) = Record::decode(header, &octets[start..]) {
            // A segment has at most 64 MB.
            let (offset, octets) = (start as u32, header.octets() as u32);
            visit(&record, Location { generation: scanned.generation, offset, octets });
        }
    }
    let used = scanned.used;
    if let (true, Some(header)) = (used > scanned.end, scanned.header) {
        let doubtful = !is_beginning(&octets[scanned.end..used], header, found.resume.next_sequence);
        let (segment, offset) = (segment_name(scanned.generation), scanned.end as u64);
        found.unfinished.push(Unfinished { segment, offset, octets: (used - scanned.end) as u64, doubtful });
    }
    match (damaged, scanned.records.is_empty()) {
        (true, _) => Fate::Keep,
        (false, true) if used == scanned.end => Fate::Remove,
        (false, _) if used < octets.len() => Fate::Cut(used as u64),
        (false, _) => Fate::Keep,
    }
}

/// Whether what stands behind the last record is the beginning of the next one and nothing else: a
/// write that a kill ends stops at the end of a page. A whole record with a wrong octet in it is
/// none, and neither is anything with a later page but not an earlier one.
fn is_beginning(octets: &[u8], segment: SegmentHeader, sequence: u64) -> bool {
    if octets.len() < HEADER_OCTETS {
        return begins_like_record(octets);
    }
    let header = RecordHeader::decode(octets).filter(|header| {
        (header.generation, header.key, header.sequence) == (segment.generation, segment.key, sequence)
    });
    // Up to 7 zeros at the end are padding: eight that are missing were never written.
    header.is_some_and(|header| octets.len() as u64 + 8 <= header.octets())
}

#[cfg(test)]
mod tests;
