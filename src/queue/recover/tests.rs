//! Recovery: what is found after every kind of end.

use super::super::disk::quarantine_name;
use super::super::outcome::{NewOutcome, Settled, Settles};
use super::super::record::{Body, NewMessage};
use super::super::spool::Spool;
use super::*;
use crate::smtp::address::mailbox;
use crate::smtp::envelope::{Envelope, RecipientParameters, SenderParameters};
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
    envelope.begin(None, None, SenderParameters::default());
    let recipient = mailbox(b"r@example.org").expect("valid");
    assert!(envelope.add_recipient(&recipient, None, RecipientParameters::default()));
    for body in bodies {
        let id = spool.next_id(0);
        let client = "192.0.2.1".parse().expect("an address");
        spool.append(&NewMessage { id, arrived_unix_ms: 0, envelope: &envelope, client, hello: b"", body: *body });
        ids.push(id);
    }
    flush(disk, spool);
    ids
}

/// Writes what was appended.
fn flush(disk: &mut Memory, spool: &mut Spool) {
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
}

/// Recovery with one lane for everything.
fn recovered(disk: &mut Memory) -> io::Result<Found> {
    recover(disk, |_| Box::new([0]))
}

fn listed(disk: &Memory) -> Vec<QueueId> {
    let mut ids = Vec::new();
    read(disk, |record, _| ids.push(record.header.id)).expect("memory does not fail");
    ids
}

#[test]
fn goes_on_where_it_ended() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let mut ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
    for round in 0..3_u64 {
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len()), (ids.len() as u64, 0));
        assert_eq!(found.resume.next_generation, round + 2);
        assert_eq!(recovered(&mut disk.clone()).expect("again"), found, "recovery is idempotent");
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
        let found = recovered(&mut disk.clone()).expect("memory does not fail");
        assert_eq!(found.damage, [], "cut at {cut}");
        let kept = disk.0[&name][..cut].iter().rposition(|&octet| octet != 0).expect("a header") + 1;
        let mut after = disk.clone();
        recovered(&mut after).expect("memory does not fail");
        let whole = after.0.get(&name).is_none_or(|file| file.len() >= kept || kept <= HEADER_OCTETS);
        assert!(whole, "cut at {cut}: what may be damage is kept");
        // Nobody was told of what was cut off: its spill file goes, and the segment is like others.
        let is_aligned = cut.is_multiple_of(8);
        let orphan = spill_name(QueueId::from_number(1));
        let mut after = disk.clone();
        after.0.insert(orphan.clone(), b"orphan".to_vec());
        let found = recovered(&mut after).expect("memory does not fail");
        assert!(!is_aligned || !after.0.contains_key(&orphan), "cut at {cut}");
        assert!(found.segments.iter().all(|segment| !is_aligned || !segment.damaged), "cut at {cut}");
        let again = recovered(&mut after).expect("memory does not fail");
        assert_eq!((again.unfinished, again.segments), (found.unfinished, found.segments), "cut at {cut}");
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
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len()), (2, 1), "octet {offset}");
        assert_eq!(disk, before, "a damaged segment is left as it is");
        assert_eq!(listed(&disk), [ids[0], ids[2]]);
    }
    let mut headless = disk.clone();
    headless.0.get_mut(&name).expect("a segment")[9] ^= 1;
    let found = recovered(&mut headless).expect("memory does not fail");
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
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len(), found.unfinished.len()), (0, 0, 1));
    assert!(disk.0.contains_key(&spill_name(ids[0])) && disk.0.contains_key(&segment_name(1)));
    assert_eq!(recovered(&mut disk).expect("again"), found, "recovery is idempotent");
}

#[test]
fn what_is_no_beginning_of_a_record_may_be_damage() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let body = vec![b'x'; 1000];
    write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(&body)]);
    let name = segment_name(1);
    let whole = disk.0[&name].clone();
    let second = find_record(&whole, HEADER_OCTETS + 8).expect("a second record");
    let end = whole.iter().rposition(|&octet| octet != 0).expect("content") + 1;
    let orphan = spill_name(QueueId::from_number(1));
    disk.0.insert(orphan.clone(), b"orphan".to_vec());
    let doubtful = |change: &dyn Fn(&mut [u8])| {
        let mut disk = disk.clone();
        change(disk.0.get_mut(&name).expect("a segment"));
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len(), found.unfinished.len()), (1, 0, 1));
        assert_eq!(found.segments[0].damaged, disk.0.contains_key(&orphan));
        found.segments[0].damaged
    };
    assert!(!doubtful(&|octets| octets[second + 512..].fill(0)), "cut off");
    for at in second..end {
        assert!(doubtful(&|octets| octets[at] ^= 1), "a wrong octet in a whole record, at {at}");
    }
    assert!(doubtful(&|octets| octets[second..second + 512].fill(0)), "the later half without the earlier");
    assert!(doubtful(&|octets| {
        octets[second + 512..].fill(0);
        octets[end + 100] = 1;
    }));
    assert!(doubtful(&|octets| {
        octets[second + 512..].fill(0);
        octets[second + 20] ^= 1;
    }));
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
        let found = read(&busy, |record, _| seen.push(record.header.id)).expect("memory does not fail");
        assert_eq!((found.damage.len(), seen), (0, ids.clone()), "{torn_reads} torn reads");
    }
}

#[test]
fn records_of_another_generation_are_none() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    write(&mut disk, &mut spool, &[Body::Inline(b"old")]);
    let old = disk.0[&segment_name(1)].clone();
    let mut spool = Spool::new(0, recovered(&mut disk).expect("memory does not fail").resume, 2);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"new")]);
    // A recycled file: the old records lie behind the new ones.
    let file = disk.0.get_mut(&segment_name(2)).expect("a segment");
    file[4096..4096 + 1024].copy_from_slice(&old[..1024]);
    let found = recovered(&mut disk).expect("memory does not fail");
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
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!(found.damage, [Damage::Spill { id: ids[1] }]);
    assert_eq!(found.resume.next_generation, 9);
    let names: Vec<&String> = disk.0.keys().collect();
    assert_eq!(names, [&segment_name(1), "something-else", &spill_name(ids[0]), &spill_name(ids[1])]);
}

/// Writes outcomes to the disk as one batch, as [`write`] writes messages.
fn settle(disk: &mut Memory, spool: &mut Spool, outcomes: &[(QueueId, Settles<'_, &str>)]) {
    for &(id, settles) in outcomes {
        spool.append_outcome(&NewOutcome { id, unix_ms: 0, settles });
    }
    flush(disk, spool);
}

#[test]
fn outcomes_settle_messages() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let spilled = Body::Spilled { octets: 3, crc: 0 };
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two"), spilled, spilled]);
    for id in &ids[2..] {
        disk.0.insert(spill_name(*id), b"abc".to_vec());
    }
    let all = Settles::Rest(Status::Delivered, "");
    let refused = Settled { recipient: 0, status: Status::Failed, reply: "550 no" };
    let refused = std::slice::from_ref(&refused);
    settle(&mut disk, &mut spool, &[(ids[0], all), (ids[1], Settles::These(refused)), (ids[2], all)]);
    for _ in 0..2 {
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.octets, found.damage.len()), (2, 6, 0));
        let live: Vec<(QueueId, &[Status])> = found.live.iter().map(|live| (live.id, &*live.statuses)).collect();
        assert_eq!(live, [(ids[1], &[Status::Failed][..]), (ids[3], &[])]);
        assert!(found.live.iter().all(|live| *live.lanes == [0] && live.recipients == 1));
        assert!(!disk.0.contains_key(&spill_name(ids[2])) && disk.0.contains_key(&spill_name(ids[3])));
        assert_eq!(listed(&disk), [ids[1], ids[3]]);
    }
    let mut replies = Vec::new();
    let keep = |_: &Record<'_>, statuses: &Statuses| replies.push(statuses.of(0).1.to_owned());
    read(&disk, keep).expect("memory does not fail");
    assert_eq!(replies, ["550 no", ""]);
}

#[test]
fn an_outcome_in_a_later_segment_is_told() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
    let mut spool = Spool::new(0, recovered(&mut disk).expect("memory does not fail").resume, 2);
    settle(&mut disk, &mut spool, &[(ids[0], Settles::Rest(Status::Delivered, ""))]);
    let mut spool = Spool::new(0, recovered(&mut disk).expect("memory does not fail").resume, 3);
    // Said again, as a process does that could not tell whether the first was written.
    settle(&mut disk, &mut spool, &[(ids[0], Settles::Rest(Status::Delivered, ""))]);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!(found.live.iter().map(|live| live.id).collect::<Vec<_>>(), [ids[1]]);
    let settles: Vec<Vec<u64>> =
        found.segments.iter().map(|segment| segment.settles.iter().copied().collect()).collect();
    assert_eq!(settles, [vec![], vec![1], vec![1]], "both must outlive the first segment");
    // Without its segment the message is no more, whatever is said of it.
    disk.0.remove(&segment_name(1));
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len()), (0, 0));
    assert!(found.segments.iter().all(|segment| segment.settles.is_empty()));
}

#[test]
fn damage_quarantines_its_segment_and_keeps_orphans() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
    disk.0.get_mut(&segment_name(1)).expect("a segment")[HEADER_OCTETS + 20] ^= 1;
    let orphan = spill_name(QueueId::from_number(1));
    disk.0.insert(orphan.clone(), b"orphan".to_vec());
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!(found.segments, [FoundSegment { generation: 1, settles: BTreeSet::new(), damaged: true }]);
    assert_eq!(found.live.len(), 1);
    // Put aside, it is no segment any more, but what it may name is still kept.
    let octets = disk.0.remove(&segment_name(1)).expect("a segment");
    disk.0.insert(quarantine_name(1), octets);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len(), found.segments.len()), (0, 0, 0));
    assert_eq!(found.resume.next_generation, 2, "another segment to be put aside has another name");
    assert!(disk.0.contains_key(&orphan));
    assert!(!ids.is_empty());
}
