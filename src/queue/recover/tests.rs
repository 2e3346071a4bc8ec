//! Recovery: what is found after every kind of end.

use super::super::disk::spare_name;
use super::super::outcome::{NewOutcome, Settled, Settles, Status};
use super::super::record::{Body, NewMessage};
use super::super::spool::Spool;
use super::*;
use crate::smtp::address::mailbox;
use crate::smtp::envelope::{Envelope, RecipientParameters, SenderParameters};
use std::collections::BTreeMap;

/// Files, and the names of those that were written to recovery's sync, as often as they were.
#[derive(Clone, Default, PartialEq, Debug)]
struct Memory(BTreeMap<String, Vec<u8>>, Vec<String>);

impl Disk for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }
    fn read(&self, name: &str, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.extend_from_slice(self.0.get(name).ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
    fn read_beginning(&self, name: &str, octets: usize, out: &mut Vec<u8>) -> io::Result<()> {
        self.read(name, out)?;
        out.truncate(octets);
        Ok(())
    }
    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.0.get(name).map(|octets| octets.len() as u64))
    }
    fn create(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        self.0.insert(name.to_owned(), octets.to_vec());
        Ok(())
    }
    fn write_end(&mut self, name: &str, offset: u64, octets: &[u8]) -> io::Result<()> {
        let file = self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.resize(offset as usize, 0);
        file.extend_from_slice(octets);
        self.1.push(name.to_owned());
        Ok(())
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let octets = self.0.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.0.insert(to.to_owned(), octets);
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
            let mut file = spool.segment_beginning(batch.generation);
            file.resize(1 << 14, 0);
            spool.segment_made(batch.generation, 1 << 14);
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

/// A killed process may leave its last batch whole in the kernel's cache and nowhere else, and so may a
/// start that was killed behind it: whoever relies on it syncs it first.
#[test]
fn the_newest_segment_is_synced_whatever_it_looks_like() {
    let mut disk = Memory::default();
    let mut resume = Resume::default();
    for generation in 1..=2 {
        let mut spool = Spool::new(0, resume, generation);
        write(&mut disk, &mut spool, &[Body::Inline(b"one")]);
        resume = recovered(&mut disk).expect("memory does not fail").resume;
    }
    let beginning = Spool::new(0, resume, 3).segment_beginning(3);
    for _ in 0..2 {
        disk.0.insert(segment_name(3), beginning.clone());
        disk.1.clear();
        recovered(&mut disk).expect("memory does not fail");
        assert_eq!(disk.1, [segment_name(2)]);
    }
}

#[test]
fn a_batch_that_was_cut_off_is_put_aside_and_told_once() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two"), Body::Inline(b"three")]);
    let name = segment_name(1);
    let whole = disk.0[&name].clone();
    let end = whole.iter().rposition(|&octet| octet != 0).expect("content") + 1;
    // Behind what was written stand zeros, or what an earlier use of the file left.
    for (cut, behind) in (HEADER_OCTETS..end).flat_map(|cut| [(cut, 0), (cut, b'x')]) {
        let mut torn = whole.clone();
        torn[cut..].fill(behind);
        let mut disk = disk.clone();
        disk.0.insert(name.clone(), torn.clone());
        let orphan = spill_name(QueueId::from_number(1));
        disk.0.insert(orphan.clone(), b"orphan".to_vec());
        let kept = listed(&disk);
        assert_eq!(kept, ids[..kept.len()], "cut at {cut}");
        let found = recovered(&mut disk).expect("memory does not fail");
        let [damage @ Damage::End { offset, octets, .. }] = &found.damage[..] else { panic!("{:?}", found.damage) };
        assert!(*offset as usize <= cut.next_multiple_of(8) && found.messages == kept.len() as u64, "cut at {cut}");
        let copy = disk.0.get(&damage.kept_as().expect("a name"));
        assert_eq!(copy.map_or(0, Vec::len) as u64, *octets, "cut at {cut}");
        assert!(copy.is_none_or(|copy| torn[*offset as usize..].starts_with(copy)));
        assert!(!disk.0.contains_key(&orphan) && disk.0.contains_key(&format!("quarantine-{orphan}")));
        let again = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((again.damage.len(), again.segments, again.live), (0, found.segments, found.live), "cut at {cut}");
        assert_eq!(listed(&disk), kept, "cut at {cut}");
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
        let third = find_record(&disk.0[&name], second + 8).expect("a third record");
        let lost = disk.0[&name][second..third].to_vec();
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!((found.messages, found.damage.len()), (2, 1), "octet {offset}");
        assert_eq!(disk.0[&found.damage[0].kept_as().expect("a name")], lost);
        assert_eq!(listed(&disk), [ids[0], ids[2]]);
        assert_eq!(recovered(&mut disk.clone()).expect("again"), found, "recovery is idempotent");
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
    fn read_beginning(&self, name: &str, octets: usize, out: &mut Vec<u8>) -> io::Result<()> {
        self.0.read_beginning(name, octets, out)
    }
    fn create(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        self.0.create(name, octets)
    }
    fn write_end(&mut self, name: &str, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.0.write_end(name, offset, octets)
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
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
    let whole = disk.clone();
    // The only record of the segment.
    disk.0.get_mut(&segment_name(1)).expect("a segment")[HEADER_OCTETS + 20] ^= 1;
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len(), found.segments.len()), (0, 1, 0));
    assert!(disk.0.contains_key(&quarantined_spill_name(ids[0])));
    assert!(disk.0.contains_key(&quarantine_name(1, HEADER_OCTETS as u64)));
    assert_eq!(found.resume.next_generation, 2);
    let again = recovered(&mut disk).expect("memory does not fail");
    assert_eq!(again.resume.next_generation, 2, "what is put aside later has another name");
    // Of a segment of which nothing can be read, all is kept.
    let mut disk = whole;
    disk.0.get_mut(&segment_name(1)).expect("a segment").iter_mut().for_each(|octet| *octet ^= 0xff);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len(), found.segments.len()), (0, 2, 0));
    let kept: usize = found.damage.iter().map(|damage| disk.0[&damage.kept_as().expect("a name")].len()).sum();
    assert_eq!(kept, 1 << 14);
}

#[test]
fn without_an_end_mark_all_records_count() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
    let mark = find_end_mark(&disk.0[&segment_name(1)], 1, 1, 0).expect("a mark");
    for (at, octets) in [(mark, 8), (mark + 7, 1)] {
        let mut disk = disk.clone();
        disk.0.get_mut(&segment_name(1)).expect("a segment")[mark + 7] ^= 1;
        let found = recovered(&mut disk).expect("memory does not fail");
        assert_eq!(found.damage, [Damage::End { generation: 1, offset: mark as u64, octets: 8 }], "{at} {octets}");
        assert_eq!(listed(&disk), ids);
    }
    // The file was cut: whatever stood there is missed.
    for length in [mark, mark + 4] {
        let mut disk = disk.clone();
        disk.0.get_mut(&segment_name(1)).expect("a segment").truncate(length);
        let found = recovered(&mut disk).expect("memory does not fail");
        assert!(matches!(found.damage[..], [Damage::End { .. }]), "{:?}", found.damage);
        assert_eq!(found.messages, 2);
        assert_eq!(recovered(&mut disk).expect("again").damage, []);
    }
}

#[test]
fn a_mark_of_before_hides_no_record() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let mut ids = write(&mut disk, &mut spool, &[Body::Inline(b"one")]);
    let name = segment_name(1);
    let before = disk.0[&name].clone();
    let mark = find_end_mark(&before, 1, 1, 0).expect("a mark");
    for body in [&[b'x'; 2000][..], b"three"] {
        ids.extend(write(&mut disk, &mut spool, &[Body::Inline(body)]));
    }
    // The disk did not write the place where the first batch had ended.
    let segment = disk.0.get_mut(&name).expect("a segment");
    segment[..1 << 10].copy_from_slice(&before[..1 << 10]);
    let last = segment.windows(5).rposition(|octets| octets == b"three").expect("the last message");
    let found = recovered(&mut disk).expect("memory does not fail");
    let [Damage::Records { generation: 1, offset, octets }] = found.damage[..] else { panic!("{:?}", found.damage) };
    assert_eq!(offset, mark as u64);
    assert!(octets > 2000 && offset + octets < last as u64, "{octets} octets of the second batch");
    assert_eq!(disk.0[&quarantine_name(1, offset)].len() as u64, octets);
    assert_eq!(listed(&disk), [ids[0], ids[2]]);
    assert_eq!(recovered(&mut disk).expect("again").live, found.live);
}

#[test]
fn what_failed_stays_void() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let kept = write(&mut disk, &mut spool, &[Body::Inline(b"kept")]);
    // Written, but its sync failed: the clients were told so, and have sent it again.
    let mut envelope = Envelope::default();
    envelope.begin(None, None, SenderParameters::default());
    let message = NewMessage {
        id: spool.next_id(0),
        arrived_unix_ms: 0,
        envelope: &envelope,
        client: "192.0.2.1".parse().expect("an address"),
        hello: b"",
        body: Body::Inline(b"failed"),
    };
    spool.append(&message);
    let batch = spool.take_batch().expect("a batch");
    let file = disk.0.get_mut(&segment_name(1)).expect("a segment");
    file[batch.offset as usize..][..batch.octets.len()].copy_from_slice(&batch.octets);
    spool.failed();
    let before = disk.clone();
    let again = write(&mut disk, &mut spool, &[Body::Inline(b"again")]);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len()), (2, 0));
    assert_eq!(listed(&disk), [kept[0], again[0]]);
    // It is cut off for good: the segment that said so may go.
    disk.0.remove(&segment_name(2));
    assert_eq!(listed(&disk), kept);
    // Without a next segment nobody says so.
    assert_eq!(listed(&before).len(), 2);
}

#[test]
fn what_was_written_again_counts_once() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let spilled = Body::Spilled { octets: 3, crc: 0 };
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two"), spilled]);
    disk.0.insert(spill_name(ids[2]), b"abc".to_vec());
    let refused = Settled { recipient: 0, status: Status::Failed, reply: "550 no" };
    settle(&mut disk, &mut spool, &[(ids[0], Settles::These(std::slice::from_ref(&refused)))]);
    let mut spool = Spool::new(0, recovered(&mut disk).expect("memory does not fail").resume, 2);
    let before = recovered(&mut disk).expect("memory does not fail");
    let segment = disk.0[&segment_name(1)].clone();
    for live in &before.live {
        let octets = &segment[live.location.offset as usize..];
        let record = Record::decode(RecordHeader::decode(octets).expect("a header"), octets).expect("a record");
        spool.append_again(&record, &live.statuses, 1);
    }
    flush(&mut disk, &mut spool);
    let known = |found: &Found| -> Vec<(QueueId, Statuses, u64)> {
        found.live.iter().map(|live| (live.id, live.statuses.clone(), live.location.generation)).collect()
    };
    let found = recovered(&mut disk).expect("memory does not fail");
    let mut expected = known(&before);
    expected.iter_mut().for_each(|(_, _, generation)| *generation = 2);
    assert_eq!((found.messages, known(&found)), (3, expected.clone()));
    assert_eq!(found.segments[1].settles, BTreeSet::from([1]), "else the old records would come back");
    assert_eq!(listed(&disk), ids);
    // Cut off anywhere while it was written again, nothing is lost.
    let end = find_end_mark(&disk.0[&segment_name(2)], 2, 2, 0).expect("a mark");
    for cut in HEADER_OCTETS..end {
        let mut torn = disk.clone();
        torn.0.get_mut(&segment_name(2)).expect("a segment")[cut..].fill(0);
        let found = recovered(&mut torn).expect("memory does not fail");
        let statuses: Vec<Statuses> = found.live.into_iter().map(|live| live.statuses).collect();
        assert_eq!(statuses, expected.iter().map(|(_, statuses, _)| statuses.clone()).collect::<Vec<_>>(), "{cut}");
    }
    // And when the old segment is gone.
    disk.0.remove(&segment_name(1));
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((known(&found), found.damage.len()), (expected, 0));
    assert!(found.segments[0].settles.is_empty() && disk.0.contains_key(&spill_name(ids[2])));
}

#[test]
fn what_was_finished_while_it_was_written_again_is_finished() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    let ids = write(&mut disk, &mut spool, &[Body::Inline(b"one"), Body::Inline(b"two")]);
    let live = recovered(&mut disk.clone()).expect("memory does not fail").live;
    let segment = disk.0[&segment_name(1)].clone();
    let octets = &segment[live[0].location.offset as usize..];
    let record = Record::decode(RecordHeader::decode(octets).expect("a header"), octets).expect("a record");
    let mut delivered = Statuses::default();
    delivered.settle_rest(1, Status::Delivered, "");
    for (before, known, after) in [(true, &delivered, false), (false, &Statuses::default(), true)] {
        let mut disk = disk.clone();
        let mut spool = Spool::new(0, recovered(&mut disk).expect("memory does not fail").resume, 2);
        let outcome = NewOutcome { id: ids[0], unix_ms: 0, settles: Settles::Rest(Status::Delivered, "") };
        if before {
            spool.append_outcome(&outcome);
        }
        spool.append_again(&record, known, 1);
        if after {
            spool.append_outcome(&outcome);
        }
        flush(&mut disk, &mut spool);
        for _ in 0..2 {
            let found = recovered(&mut disk).expect("memory does not fail");
            assert_eq!(found.live.iter().map(|live| live.id).collect::<Vec<_>>(), [ids[1]]);
            assert_eq!(found.segments[1].settles, BTreeSet::from([1]));
        }
        disk.0.remove(&segment_name(1));
        assert_eq!(recovered(&mut disk).expect("memory does not fail").messages, 0);
    }
}

#[test]
fn spares_are_kept_if_they_are_of_use() {
    let mut disk = Memory::default();
    let mut spool = Spool::new(0, Resume::default(), 1);
    write(&mut disk, &mut spool, &[Body::Inline(b"one")]);
    for (generation, octets) in [(5, SEGMENT_MAX_OCTETS), (6, 80), (7, SEGMENT_MAX_OCTETS), (9, SEGMENT_MAX_OCTETS)] {
        disk.0.insert(spare_name(generation), vec![b'x'; octets as usize]);
    }
    disk.0.insert(PROBE_NAME.to_owned(), vec![0; 80]);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert!(!disk.0.contains_key(PROBE_NAME));
    assert_eq!(found.spares.iter().map(|spare| spare.generation).collect::<Vec<_>>(), [5, 7]);
    assert_eq!((found.messages, found.damage.len(), found.resume.next_generation), (1, 0, 10));
    assert_eq!(disk.0.keys().filter(|name| spare_generation(name).is_some()).count(), 2);
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
    write(&mut disk, &mut spool, &[Body::Inline(b"old"), Body::Inline(b"older")]);
    // The file is used again by the same process.
    let mut file = disk.0.remove(&segment_name(1)).expect("a segment");
    let beginning = spool.segment_beginning(2);
    file[..beginning.len()].copy_from_slice(&beginning);
    disk.0.insert(segment_name(2), file.clone());
    assert_eq!((listed(&disk), recovered(&mut disk.clone()).expect("memory").damage.len()), (vec![], 0));
    // Also where the first batch was cut off, so that nothing says where the end is.
    file[HEADER_OCTETS..HEADER_OCTETS + 8].fill(0);
    disk.0.insert(segment_name(2), file);
    let found = recovered(&mut disk).expect("memory does not fail");
    assert_eq!((found.messages, found.damage.len()), (0, 1));
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
    let mut prepared = spool.segment_beginning(8);
    prepared.resize(4096, 0);
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
        let live: Vec<_> = found.live.iter().map(|live| (live.id, live.statuses.of(0))).collect();
        assert_eq!(live, [(ids[1], (Status::Failed, "550 no")), (ids[3], (Status::Pending, ""))]);
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
