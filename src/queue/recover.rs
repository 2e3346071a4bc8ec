//! Reading a shard's directory: at start, to go on where it ended, and offline, to list and print.
//!
//! | found | means | done at start |
//! |---|---|---|
//! | record with right checksums | a message that was or may have been acknowledged | kept |
//! | zeros behind the last record | unused space | cut off |
//! | other octets behind the last record | a batch that was cut off before its sync, so that nobody was told; or damage | kept, reported |
//! | octets between records that are none | damage: acknowledged messages may be hit | kept, reported |
//! | segment without a record, else zero | abandoned | removed |
//! | segment without a right header | cut off while it was made, or damaged | removed if all zero, else kept, reported |
//! | spill file that no record names | its message was never acknowledged; or its record is damaged | removed, but kept where there is damage or a cut-off batch |
//! | record whose spill file is missing or has another length | damage | kept, reported |
//!
//! Reading twice gives the same result, and so does reading again after a crash in the middle of
//! tidying.

use super::disk::{Disk, segment_generation, segment_name, spill_id, spill_name};
use super::record::{HEADER_OCTETS, Record, RecordHeader, SegmentHeader, find_record};
use super::spool::Resume;
use crate::smtp::QueueId;
use std::collections::HashSet;
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
    /// Messages in the queue.
    pub messages: u64,
    /// Their octets.
    pub octets: u64,
    /// What is not as it should be.
    pub damage: Vec<Damage>,
    /// Batches that were cut off, each as the octets it left: after a crash nothing unusual.
    pub unfinished: Vec<Unfinished>,
}

/// Octets behind the last record of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    segment: String,
    offset: u64,
    octets: u64,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unfinished { segment, offset, octets } = self;
        write!(
            f,
            "{segment}: {octets} octets at {offset} are a batch that was cut off before anybody was told, or damage; they are kept"
        )
    }
}

/// How often a segment that looks damaged is read when its writer may be at work: a read that
/// overlaps a write can see its later pages without its earlier ones.
const READS_BESIDE_A_WRITER: usize = 5;

/// Reads the directory of a shard, shows every message to `visit` in the order of their arrival in
/// the log, and changes nothing. The gateway may be running; what it writes at that moment may be
/// missed.
pub fn read(disk: &impl Disk, mut visit: impl FnMut(&Record<'_>)) -> io::Result<Found> {
    let mut found = Found::default();
    scan(disk, READS_BESIDE_A_WRITER, &mut found, &mut visit)?;
    Ok(found)
}

/// Reads the directory of a shard and tidies it as the table above says. For the process that
/// holds the spool's lock.
pub fn recover(disk: &mut impl Disk) -> io::Result<Found> {
    let mut found = Found::default();
    let mut spilled = HashSet::new();
    let fates = scan(disk, 1, &mut found, &mut |record| {
        if record.header.spilled {
            spilled.insert(record.header.id);
        }
    })?;
    for (name, fate) in fates {
        match fate {
            Fate::Remove => disk.remove(&name)?,
            Fate::Cut(octets) => disk.truncate(&name, octets)?,
            Fate::Keep => {}
        }
    }
    // A damaged record may be the one that names it.
    let records_damaged = found.damage.iter().any(|damage| !matches!(damage, Damage::Spill { .. }));
    if records_damaged || !found.unfinished.is_empty() {
        return Ok(found);
    }
    for name in disk.names()? {
        if spill_id(&name).is_some_and(|id| !spilled.contains(&id)) {
            disk.remove(&name)?;
        }
    }
    Ok(found)
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
}

fn scan(
    disk: &impl Disk,
    reads: usize,
    found: &mut Found,
    visit: &mut impl FnMut(&Record<'_>),
) -> io::Result<Vec<(String, Fate)>> {
    let mut generations: Vec<u64> = disk.names()?.iter().filter_map(|name| segment_generation(name)).collect();
    generations.sort_unstable();
    let mut octets = Vec::new();
    let mut fates = Vec::new();
    for generation in generations {
        let name = segment_name(generation);
        disk.read(&name, &mut octets)?;
        let mut scanned = scan_segment(&name, generation, found.resume.next_sequence, &octets);
        for _ in 1..reads {
            if scanned.damage.is_empty() {
                break;
            }
            disk.read(&name, &mut octets)?;
            scanned = scan_segment(&name, generation, found.resume.next_sequence, &octets);
        }
        found.resume.next_generation = found.resume.next_generation.max(generation + 1);
        let fate = add(disk, scanned, &octets, found, visit)?;
        fates.push((name, fate));
    }
    Ok(fates)
}

/// Finds the intact records of a segment, with sequences from `next_sequence` on.
fn scan_segment(name: &str, generation: u64, mut next_sequence: u64, octets: &[u8]) -> Scanned {
    let header = SegmentHeader::decode(octets).filter(|header| header.generation == generation);
    let mut scanned = Scanned { generation, header, records: Vec::new(), damage: Vec::new(), end: HEADER_OCTETS };
    if header.is_none() {
        if octets.iter().all(|&octet| octet == 0) {
            return scanned;
        }
        // The header says nothing that the records do not say themselves: go on and read them.
        scanned.damage.push(Damage::SegmentHeader { segment: name.to_owned() });
    }
    // Without a header the first record says what the key was; records inside messages stand later.
    let first = || RecordHeader::decode(octets.get(HEADER_OCTETS..)?);
    let key = header.map(|header| header.key).or_else(|| first().map(|record| record.key));
    let mut at = HEADER_OCTETS;
    while let Some(start) = find_record(octets, at) {
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
    scanned
}

/// Adds a segment to what was found, shows its messages, and says what becomes of its file.
fn add(
    disk: &impl Disk,
    scanned: Scanned,
    octets: &[u8],
    found: &mut Found,
    visit: &mut impl FnMut(&Record<'_>),
) -> io::Result<Fate> {
    let mut damaged = !scanned.damage.is_empty();
    found.damage.extend(scanned.damage);
    if let Some(header) = scanned.header {
        found.resume.highest_id = found.resume.highest_id.max(header.highest_id);
    }
    for &(start, header) in &scanned.records {
        found.resume.next_sequence = header.sequence + 1;
        found.resume.highest_id = found.resume.highest_id.max(header.id);
        found.messages += 1;
        found.octets += header.message_octets;
        if header.spilled && disk.length(&spill_name(header.id))? != Some(header.message_octets) {
            damaged = true;
            found.damage.push(Damage::Spill { id: header.id });
        }
        if let Some(record) = Record::decode(header, &octets[start..]) {
            visit(&record);
        }
    }
    let tail = octets.get(scanned.end..).unwrap_or_default();
    let used = scanned.end + tail.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1);
    if used > scanned.end && scanned.header.is_some() {
        found.unfinished.push(Unfinished {
            segment: segment_name(scanned.generation),
            offset: scanned.end as u64,
            octets: (used - scanned.end) as u64,
        });
    }
    Ok(match (damaged, scanned.records.is_empty()) {
        (true, _) => Fate::Keep,
        (false, true) if used == scanned.end => Fate::Remove,
        (false, _) if used < octets.len() => Fate::Cut(used as u64),
        (false, _) => Fate::Keep,
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::{Body, NewMessage};
    use super::super::spool::Spool;
    use super::*;
    use crate::smtp::envelope::{BodyType, Envelope};
    use std::collections::BTreeMap;

    #[derive(Clone, Default, PartialEq, Debug)]
    struct Memory(BTreeMap<String, Vec<u8>>);

    impl Disk for Memory {
        fn names(&self) -> io::Result<Vec<String>> {
            Ok(self.0.keys().cloned().collect())
        }
        fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
            out.clear();
            out.extend_from_slice(self.0.get(name).ok_or(io::ErrorKind::NotFound)?);
            Ok(())
        }
        fn length(&self, name: &str) -> io::Result<Option<u64>> {
            Ok(self.0.get(name).map(|octets| octets.len() as u64))
        }
        fn truncate(&mut self, name: &str, octets: u64) -> io::Result<()> {
            self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?.truncate(octets as usize);
            Ok(())
        }
        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.0.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    /// Appends messages with these bodies and writes them to the disk as one batch.
    fn write(disk: &mut Memory, spool: &mut Spool, bodies: &[Body<'_>]) -> Vec<QueueId> {
        let mut ids = Vec::new();
        let mut envelope = Envelope::default();
        envelope.begin(None, None, BodyType::SevenBit);
        for body in bodies {
            let id = spool.next_id(0);
            let client = "192.0.2.1".parse().expect("an address");
            spool.append(&NewMessage { id, arrived_unix_ms: 0, envelope: &envelope, client, hello: b"", body: *body });
            ids.push(id);
        }
        while let Some(batch) = spool.take_batch() {
            let file = disk.0.entry(segment_name(batch.generation)).or_insert_with(|| {
                let mut file = vec![0; 1 << 14];
                file[..HEADER_OCTETS].copy_from_slice(&spool.segment_header(batch.generation).encode());
                file
            });
            let offset = batch.offset as usize;
            file[offset..offset + batch.octets.len()].copy_from_slice(&batch.octets);
            spool.synced();
        }
        ids
    }

    fn listed(disk: &Memory) -> Vec<QueueId> {
        let mut ids = Vec::new();
        read(disk, |record| ids.push(record.header.id)).expect("memory does not fail");
        ids
    }

    #[test]
    fn goes_on_where_it_ended() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let mut ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
        for round in 0..3_u64 {
            let found = recover(&mut disk).expect("memory does not fail");
            assert_eq!((found.messages, found.damage.len()), (ids.len() as u64, 0));
            assert_eq!(found.resume.next_generation, round + 2);
            assert_eq!(recover(&mut disk.clone()).expect("again"), found, "recovery is idempotent");
            assert_eq!(listed(&disk), ids);
            let mut spool = Spool::new(0, found.resume, 2 + round);
            ids.extend(write(&mut disk, &mut spool, &[Body::Inline(b"more")]));
            assert!(ids.is_sorted());
        }
        assert!(disk.0[&segment_name(1)].len() < 1000, "unused space is given back");
    }

    #[test]
    fn a_cut_off_batch_is_no_damage() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two"), Body::Inline(b"three")]);
        let name = segment_name(1);
        let whole = disk.0[&name].clone();
        let end = whole.iter().rposition(|&octet| octet != 0).expect("content") + 1;
        for cut in HEADER_OCTETS..end {
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            disk.0.insert(name.clone(), torn);
            let found = recover(&mut disk.clone()).expect("memory does not fail");
            assert_eq!(found.damage, [], "cut at {cut}");
            let kept = disk.0[&name][..cut].iter().rposition(|&octet| octet != 0).expect("a header") + 1;
            let mut after = disk.clone();
            recover(&mut after).expect("memory does not fail");
            let whole = after.0.get(&name).is_none_or(|file| file.len() >= kept || kept <= HEADER_OCTETS);
            assert!(whole, "cut at {cut}: what may be damage is kept");
            let kept = listed(&disk);
            assert_eq!(kept, ids[..kept.len()], "cut at {cut}");
        }
        disk.0.insert(name, whole);
        assert_eq!(listed(&disk), ids);
    }

    #[test]
    fn damage_is_reported_and_nothing_else_is_lost() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two"), Body::Inline(b"three")]);
        let name = segment_name(1);
        let second = find_record(&disk.0[&name], HEADER_OCTETS + 8).expect("a second record");
        for offset in [0, 4, 20, 60, 70] {
            let mut disk = disk.clone();
            disk.0.get_mut(&name).expect("a segment")[second + offset] ^= 0x10;
            let before = disk.clone();
            let found = recover(&mut disk).expect("memory does not fail");
            assert_eq!((found.messages, found.damage.len()), (2, 1), "octet {offset}");
            assert_eq!(disk, before, "a damaged segment is left as it is");
            assert_eq!(listed(&disk), [ids[0], ids[2]]);
        }
        let mut headless = disk.clone();
        headless.0.get_mut(&name).expect("a segment")[9] ^= 1;
        let found = recover(&mut headless).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len()), (3, 1));
    }

    /// A disk whose writer is at work: the first reads see a page of the batch too few.
    struct BeingWritten(Memory, std::cell::Cell<usize>);

    impl Disk for BeingWritten {
        fn names(&self) -> io::Result<Vec<String>> {
            self.0.names()
        }
        fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
            self.0.read(name, out)?;
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                let second = find_record(out, HEADER_OCTETS + 8).expect("a second record");
                out[second..second + 64].fill(0);
            }
            Ok(())
        }
        fn length(&self, name: &str) -> io::Result<Option<u64>> {
            self.0.length(name)
        }
        fn truncate(&mut self, name: &str, octets: u64) -> io::Result<()> {
            self.0.truncate(name, octets)
        }
        fn remove(&mut self, name: &str) -> io::Result<()> {
            self.0.remove(name)
        }
    }

    #[test]
    fn nothing_goes_where_a_record_may_be_damaged() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let ids = write(&mut disk, &mut spool, &[Body::Spilled { octets: 3, crc: 0 }]);
        disk.0.insert(spill_name(ids[0]), b"abc".to_vec());
        // The only record of the segment, so that nothing behind it tells damage from a torn batch.
        disk.0.get_mut(&segment_name(1)).expect("a segment")[HEADER_OCTETS + 20] ^= 1;
        let found = recover(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len(), found.unfinished.len()), (0, 0, 1));
        assert!(disk.0.contains_key(&spill_name(ids[0])) && disk.0.contains_key(&segment_name(1)));
        assert_eq!(recover(&mut disk).expect("again"), found, "recovery is idempotent");
    }

    #[test]
    fn a_write_in_progress_is_no_damage() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let bodies = [Body::Inline(b"one"), Body::Inline(b"two"), Body::Inline(b"three")];
        let ids = write(&mut disk, &mut spool, &bodies);
        for torn_reads in 0..READS_BESIDE_A_WRITER {
            let mut seen = Vec::new();
            let busy = BeingWritten(disk.clone(), torn_reads.into());
            let found = read(&busy, |record| seen.push(record.header.id)).expect("memory does not fail");
            assert_eq!((found.damage.len(), seen), (0, ids.clone()), "{torn_reads} torn reads");
        }
    }

    #[test]
    fn records_of_another_generation_are_none() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        write(&mut disk, &mut spool, &[Body::Inline(b"old")]);
        let old = disk.0[&segment_name(1)].clone();
        let mut spool = Spool::new(0, recover(&mut disk).expect("memory does not fail").resume, 2);
        let ids = write(&mut disk, &mut spool, &[Body::Inline(b"new")]);
        // A recycled file: the old records lie behind the new ones.
        let file = disk.0.get_mut(&segment_name(2)).expect("a segment");
        file[4096..4096 + 1024].copy_from_slice(&old[..1024]);
        let found = recover(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len()), (2, 0));
        assert_eq!(listed(&disk).last(), ids.last());
    }

    #[test]
    fn a_message_cannot_smuggle_a_record() {
        // The sender knows everything but the key.
        let mut forged = Memory::default();
        write(
            &mut forged,
            &mut Spool::new(0, Resume { next_sequence: 2, ..Resume::default() }, 99),
            &[Body::Inline(b"forged")],
        );
        let forged = &forged.0[&segment_name(1)][HEADER_OCTETS..HEADER_OCTETS + 256];
        for shift in 0..8 {
            let mut body = vec![b'x'; shift];
            body.extend_from_slice(forged);
            let mut disk = Memory::default();
            write(&mut disk, &mut Spool::new(0, Resume::default(), 1), &[Body::Inline(&body)]);
            // The smuggling message itself was cut off.
            disk.0.get_mut(&segment_name(1)).expect("a segment")[HEADER_OCTETS + 4] ^= 1;
            assert_eq!(listed(&disk), []);
        }
    }

    #[test]
    fn empty_segments_and_orphans_go() {
        let mut disk = Memory::default();
        let mut spool = Spool::new(0, Resume::default(), 1);
        let spilled = Body::Spilled { octets: 3, crc: 0 };
        let ids = write(&mut disk, &mut spool, &[spilled, spilled]);
        disk.0.insert(spill_name(ids[0]), b"abc".to_vec());
        disk.0.insert(spill_name(ids[1]), b"ab".to_vec());
        disk.0.insert(spill_name(QueueId::from_number(1)), b"orphan".to_vec());
        disk.0.insert(segment_name(7), vec![0; 4096]);
        let mut prepared = vec![0; 4096];
        prepared[..HEADER_OCTETS].copy_from_slice(&spool.segment_header(8).encode());
        disk.0.insert(segment_name(8), prepared);
        disk.0.insert("something-else".into(), b"kept".to_vec());
        let found = recover(&mut disk).expect("memory does not fail");
        assert_eq!(found.damage, [Damage::Spill { id: ids[1] }]);
        assert_eq!(found.resume.next_generation, 9);
        let names: Vec<&String> = disk.0.keys().collect();
        assert_eq!(names, [&segment_name(1), "something-else", &spill_name(ids[0]), &spill_name(ids[1])]);
    }
}
