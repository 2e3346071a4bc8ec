//! A spool's files in memory, and what disks and others do to them.

use crate::load::Random;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// Files of the log end at a multiple of this, as preallocated ones do.
const STEP: usize = 1 << 20;

/// The files of a spool by shard's directory and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<(String, String), Arc<Vec<u8>>>);

impl Files {
    /// Reads those in the shards' directories. Of the unused end of a segment only some is kept.
    pub fn read(spool: &Path) -> Self {
        let mut files = BTreeMap::new();
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().expect("ASCII");
        for shard in fs::read_dir(spool).expect("a spool").map(|entry| entry.expect("an entry")) {
            if !name(&shard).starts_with("shard-") {
                continue;
            }
            for file in fs::read_dir(shard.path()).expect("a shard").map(|entry| entry.expect("an entry")) {
                let mut octets = fs::read(file.path()).expect("a file");
                octets.truncate(used(&octets).next_multiple_of(STEP).max(STEP).min(octets.len()));
                files.insert((name(&shard), name(&file)), Arc::new(octets));
            }
        }
        Files(files)
    }

    /// Writes them into a directory that is empty.
    pub fn write(&self, spool: &Path) {
        fs::write(spool.join("format"), format!("gatepost-spool {}\n", gatepost::queue::record::FORMAT_VERSION))
            .expect("a directory of ours");
        for ((shard, name), octets) in &self.0 {
            let directory = spool.join(shard);
            fs::create_dir_all(&directory).expect("a directory of ours");
            fs::write(directory.join(name), &**octets).expect("space");
        }
    }

    /// The same, as if each segment's file had been another segment's before.
    pub fn used_before(&self) -> Self {
        let segments: Vec<_> = self.0.iter().filter(|((_, name), _)| name.starts_with("segment-")).collect();
        let mut files = self.clone();
        for (key, octets) in &segments {
            let of_shard = segments.iter().filter(|(other, _)| other.0 == key.0);
            let Some((_, earlier)) = of_shard.min_by_key(|(other, _)| other.1 == key.1) else { continue };
            // Records and marks stand at multiples of 8; the last octet of a mark may be a zero.
            let end = used(octets).next_multiple_of(8);
            let mut octets = octets[..octets.len().min(end)].to_vec();
            octets.extend_from_slice(earlier.get(octets.len()..).unwrap_or_default());
            files.0.insert((*key).clone(), Arc::new(octets));
        }
        files
    }

    /// A file's octets; none, where there is no such file.
    pub fn get(&self, shard: &str, name: &str) -> Option<&[u8]> {
        self.0.get(&(shard.to_owned(), name.to_owned())).map(|octets| octets.as_slice())
    }

    /// Those that were put aside.
    pub fn quarantined(&self) -> Self {
        let is_one = |(_, name): &(String, String)| name.starts_with("quarantine-");
        Files(self.0.iter().filter(|(key, _)| is_one(key)).map(|(key, octets)| (key.clone(), octets.clone())).collect())
    }

    /// The names of the shards' directories.
    pub fn shards(&self) -> Vec<String> {
        let mut shards: Vec<String> = self.0.keys().map(|(shard, _)| shard.clone()).collect();
        shards.dedup();
        shards
    }
}

/// The octets up to the last one that is not zero.
fn used(octets: &[u8]) -> usize {
    let last = octets.chunks(PAGE).rposition(|page| page != &[0; PAGE][..page.len()]).unwrap_or_default();
    let end = octets.len().min((last + 1) * PAGE);
    octets[..end].iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1)
}

/// What befalls a file.
#[derive(Clone, Debug)]
pub enum Injury {
    /// These bits are flipped.
    Bits(Vec<usize>),
    /// These octets are others.
    Octets(Vec<(usize, u8)>),
    /// A sector is all zeros.
    Zeros(usize),
    /// A page is as it was earlier in the file's life, which may have been another segment's.
    OldPage(usize),
    /// The file ends here.
    Cut(usize),
    /// It is gone.
    Removed,
}

/// A file, and what befalls it.
#[derive(Clone, Debug)]
pub struct Wound {
    pub shard: String,
    pub name: String,
    pub injury: Injury,
}

impl fmt::Display for Wound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {:?}", self.shard, self.name, self.injury)
    }
}

/// Wounds a copy of `files`; `before` is what they were earlier.
pub fn wound(random: &mut Random, files: &Files, before: &Files) -> (Files, Wound) {
    let keys: Vec<_> = files.0.iter().filter(|(_, octets)| !octets.is_empty()).map(|(key, _)| key).collect();
    let (shard, name) = keys[random.below(keys.len() as u64) as usize].clone();
    let octets = &*files.0[&(shard.clone(), name.clone())];
    // Now and then behind the end, where it does not matter.
    let reach = (used(octets) + PAGE).min(octets.len()).max(1);
    let mut at = || random.below(reach as u64) as usize;
    let (one, several): (usize, Vec<usize>) = (at(), (0..8).map(|_| at()).collect());
    let count = 1 + random.below(8) as usize;
    let injury = match random.below(10) {
        0..=2 => Injury::Bits(several[..count].iter().map(|at| at * 8 + random.below(8) as usize).collect()),
        3 | 4 => Injury::Octets(several[..count].iter().map(|&at| (at, random.below(256) as u8)).collect()),
        5 | 6 => Injury::Zeros(one / SECTOR * SECTOR),
        7 => Injury::OldPage(one / PAGE * PAGE),
        8 => Injury::Cut(one),
        _ => Injury::Removed,
    };
    let others: Vec<_> = keys.iter().filter(|key| key.0 == shard && key.1.starts_with("segment-")).collect();
    let other = others.get(random.below(others.len().max(1) as u64) as usize).map(|key| &files.0[**key]);
    let earlier = before.0.get(&(shard.clone(), name.clone())).or(other);
    let mut wounded = files.clone();
    match injure(octets, &injury, earlier.map_or(&[], |earlier| earlier)) {
        Some(octets) => _ = wounded.0.insert((shard.clone(), name.clone()), Arc::new(octets)),
        None => _ = wounded.0.remove(&(shard.clone(), name.clone())),
    }
    (wounded, Wound { shard, name, injury })
}

fn injure(octets: &[u8], injury: &Injury, earlier: &[u8]) -> Option<Vec<u8>> {
    let mut octets = octets.to_vec();
    match injury {
        Injury::Bits(bits) => {
            for bit in bits {
                octets[bit / 8] ^= 1 << (bit % 8);
            }
        }
        Injury::Octets(others) => others.iter().for_each(|&(at, octet)| octets[at] = octet),
        Injury::Zeros(at) => {
            let end = octets.len().min(at + SECTOR);
            octets[*at..end].fill(0);
        }
        Injury::OldPage(at) => {
            let end = octets.len().min(at + PAGE);
            for (place, octet) in octets[*at..end].iter_mut().enumerate() {
                *octet = earlier.get(at + place).copied().unwrap_or(0);
            }
        }
        Injury::Cut(at) => octets.truncate(*at),
        Injury::Removed => return None,
    }
    Some(octets)
}
