//! What recovery makes of a spool, and whether that is right.

use crate::harness::split_received;
use crate::injury::{Files, Injury, Wound};
use crate::spools::Mail;
use gatepost::queue::disk::{quarantined_generation, segment_name, spill_name};
use gatepost::queue::outcome::Status;
use gatepost::queue::record::Kind;
use gatepost::queue::recover::{self, Found};
use gatepost::queue::spool::Location;
use gatepost::shard::storage::{Directory, shard_directories};
use gatepost::smtp::QueueId;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A message in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    pub location: Location,
    pub statuses: Vec<Status>,
    /// Its content can be read: it is in the record, or its file is what the record says.
    pub is_readable: bool,
}

/// What is in a shard's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    pub queued: BTreeMap<QueueId, Queued>,
    /// What operators are told.
    pub reports: Vec<String>,
}

/// What is in a spool, by the names of the shards' directories.
pub type Recovered = BTreeMap<String, Shard>;

/// Recovers a spool, and asserts that every message in it is one that was sent, as it was sent.
pub fn recovered(spool: &Path, mail: &Mail) -> Recovered {
    let directories = shard_directories(spool).expect("a spool");
    directories.into_iter().map(|directory| (directory.name(), recovered_shard(directory, mail))).collect()
}

fn recovered_shard(mut directory: Directory, mail: &Mail) -> Shard {
    let found = recover::recover(&mut directory, |_| Box::default()).expect("a disk that can be read");
    let mut queued = BTreeMap::new();
    let read = recover::read(&directory, |record, statuses| {
        let id = record.header.id;
        let sent = mail.get(&id).unwrap_or_else(|| panic!("{id} was never accepted"));
        let envelope = record.stored_envelope().expect("an envelope");
        assert_eq!(envelope.reverse_path(), sent.from.as_bytes(), "{id}");
        let to: Vec<_> = envelope.recipients().map(|recipient| recipient.path.to_vec()).collect();
        assert!(to.iter().eq(sent.to.iter().map(String::as_bytes)), "{id}: {to:?}");
        let is_readable = match record.header.kind {
            Kind::Message => {
                assert_content(id, record.message, &sent.content);
                true
            }
            _ => match fs::read(directory.file(&spill_name(id))) {
                Ok(octets) if crc32c::crc32c(&octets) == record.header.message_crc => {
                    assert_content(id, &octets, &sent.content);
                    true
                }
                _ => false,
            },
        };
        let location = location(&found, id);
        let statuses = (0..to.len()).map(|recipient| statuses.of(recipient).0).collect();
        queued.insert(id, Queued { location, statuses, is_readable });
    });
    let read = read.expect("a disk that can be read");
    assert_eq!((found.messages, found.octets), (read.messages, read.octets));
    assert!(found.live.iter().map(|live| live.id).eq(queued.keys().copied()), "{queued:?}");
    Shard { queued, reports: found.damage.iter().map(ToString::to_string).collect() }
}

fn location(found: &Found, id: QueueId) -> Location {
    found.live.iter().find(|live| live.id == id).unwrap_or_else(|| panic!("{id} is not in the queue")).location
}

fn assert_content(id: QueueId, stored: &[u8], sent: &[u8]) {
    let (field, content) = split_received(stored);
    assert!(field.contains(&format!(" id {id};")), "{field}");
    assert!(content == sent, "{id} is not what was sent");
}

/// Judges what became of a wounded spool: `was` is what recovery makes of it without the wound.
pub fn judge(spool: &Path, intact: &Files, wounded: &Files, wound: &Wound, was: &Recovered, is: &Recovered) {
    for (name, was) in was {
        let Some(is) = is.get(name) else {
            // It had one file.
            assert!(wounded.shards().iter().all(|shard| shard != name), "{name} is forgotten");
            continue;
        };
        let is_wounded = *name == wound.shard;
        let region = |octets: Option<&[u8]>, location: &Location| {
            let begin = location.offset as usize;
            octets.and_then(|octets| octets.get(begin..begin + location.octets as usize)).map(<[u8]>::to_vec)
        };
        for (id, queued) in &was.queued {
            let segment = segment_name(queued.location.generation);
            let octets = wounded.get(name, &segment);
            let is_whole = region(intact.get(name, &segment), &queued.location) == region(octets, &queued.location);
            match is.queued.get(id) {
                Some(now) => {
                    let is_same = now.statuses == queued.statuses;
                    assert!(is_same || is_told(is, wound), "{id}: what became of it is forgotten: {now:?}");
                    let is_spill_whole = wound.name != spill_name(*id) || !is_wounded;
                    assert_eq!(now.is_readable, is_spill_whole || is_unhurt(intact, wounded, wound), "{id}");
                }
                None => {
                    assert!(!is_whole, "{id} is lost, and its record is as it was");
                    assert!(is_told(is, wound), "{id} is lost, and nobody is told");
                    assert_kept(&spool.join(name), octets, &queued.location);
                }
            }
        }
        // Messages that were finished come back only where what says so is damaged.
        let back = is.queued.keys().find(|id| !was.queued.contains_key(id));
        assert!(back.is_none() || is_told(is, wound), "{back:?} is back, and nobody is told");
        assert!(is_wounded || (&is.queued, &is.reports) == (&was.queued, &was.reports), "{name} is not hurt");
    }
}

/// Whether somebody is told of the wound. That a whole segment is gone cannot be seen: they go when
/// their mail is delivered.
fn is_told(is: &Shard, wound: &Wound) -> bool {
    let is_gone = matches!(wound.injury, Injury::Removed) && wound.name.starts_with("segment-");
    is_gone || is.reports.iter().any(|report| report.contains(&wound.name))
}

fn is_unhurt(intact: &Files, wounded: &Files, wound: &Wound) -> bool {
    intact.get(&wound.shard, &wound.name) == wounded.get(&wound.shard, &wound.name)
}

/// Asserts that what is left of a lost record is in quarantine.
fn assert_kept(shard: &Path, segment: Option<&[u8]>, lost: &Location) {
    let Some(octets) = segment else { return };
    let begin = octets.len().min(lost.offset as usize);
    let end = octets.len().min(lost.offset as usize + lost.octets as usize);
    let mut is_kept = vec![false; end - begin];
    for entry in fs::read_dir(shard).expect("a shard") {
        let name = entry.expect("an entry").file_name().into_string().expect("ASCII");
        if quarantined_generation(&name) != Some(lost.generation) {
            continue;
        }
        let offset = name.rsplit('-').next().and_then(|offset| usize::from_str_radix(offset, 16).ok());
        let offset = offset.unwrap_or_else(|| panic!("no offset: {name}"));
        let copy = fs::read(shard.join(&name)).expect("a file");
        assert!(octets[offset..].starts_with(&copy), "{name} is no copy");
        for at in offset.max(begin)..(offset + copy.len()).min(end) {
            is_kept[at - begin] = true;
        }
    }
    // Zeros at the end tell nothing.
    let forgotten = is_kept.iter().zip(&octets[begin..end]).position(|(kept, &octet)| !kept && octet != 0);
    assert_eq!(forgotten, None, "of the record at {lost:?}");
}
